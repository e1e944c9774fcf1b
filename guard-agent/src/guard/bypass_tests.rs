use std::path::Path;

use super::*;
use crate::{
    core::bypass::{Frames, Gap, Reading},
    node::uplinks::{Link, Netns},
};

const S: u64 = 1_000_000_000;
const PATH: &str = "system.slice/web.service";

/// One that is watched, and has been compared.
fn watched() -> Bypass {
    let mut bypass = Bypass::new(std::process::id());
    // Nothing is looked for.
    bypass.uplinks = None;
    let mut unit = Unit::new(Labels::default(), 0);
    let first = Reading { at: 0, skew: 0, uplink: Uplink::default(), moved: Totals::default() };
    let links = vec![(7, "veth7".to_owned())];
    unit.state = State::Watched { netns: Netns::numbered(1), links, gap: Some(Gap::new(&first)) };
    bypass.units.insert(key(PATH), unit);
    bypass
}

/// A second later the interface has sent so many bytes, and the meters say nothing.
fn take(bypass: &mut Bypass, seconds: u64, bytes: u64) -> Option<u64> {
    let uplink = Uplink { sent: Frames { bytes, packets: 0 }, ..Uplink::default() };
    let read = Interfaces { before: seconds * S, counted: HashMap::from([("veth7".to_owned(), uplink)]) };
    bypass.units.get_mut(PATH).expect("it is there").take(&read, seconds * S, &HashMap::new())
}

#[test]
fn what_one_sent_whose_meter_came_late_bypassed_nothing() {
    let mut bypass = watched();
    bypass.late("system.slice/another.service");
    assert!(take(&mut bypass, 1, 10 << 20).is_some_and(|told| told > 9 << 20));
    bypass.late(PATH);
    assert_eq!(take(&mut bypass, 2, 20 << 20), None);
    assert!(take(&mut bypass, 3, 30 << 20).is_some_and(|told| told > 9 << 20), "it is compared again");
}

#[test]
fn one_without_a_meter_is_not_watched_before_a_walk_has_seen_it_have_one() {
    let mut bypass = watched();
    bypass.unmetered(PATH);
    assert_eq!(take(&mut bypass, 1, 10 << 20), None, "what it has sent by then bypassed nothing");
    let since = bypass.unmetered[PATH];
    let later = since + 2 * UNMETERED;
    bypass.look(Path::new("/"), later);
    assert!(matches!(bypass.units[PATH].state, State::Not(Unwatched::Unmetered)));
    assert!(bypass.unmetered.contains_key(PATH), "no walk has been since: none succeeded, or the node was suspended");
    // The one in which it was said says nothing of whether it lasts.
    bypass.walked = since;
    bypass.look(Path::new("/"), later);
    assert!(bypass.unmetered.contains_key(PATH));
    bypass.walked = since + 1;
    bypass.look(Path::new("/"), since + UNMETERED / 2);
    assert!(bypass.unmetered.contains_key(PATH), "it is too early");
    bypass.look(Path::new("/"), later);
    assert!(!bypass.unmetered.contains_key(PATH));
}

#[test]
fn a_series_goes_on_with_the_successor_of_a_pod_whose_meters_are_forgotten() {
    let mut bypass = watched();
    let web = Labels { pod: "web-0".into(), ..Labels::default() };
    let mut unit = |key: &str, labels: &Labels, bytes| {
        bypass.units.insert(key.into(), Unit { bytes, ..Unit::new(labels.clone(), 0) });
    };
    unit("first", &web, Some(900));
    unit("second", &web, Some(50));
    unit("another", &Labels { pod: "web-1".into(), ..Labels::default() }, None);
    let left = |keys: &[&str]| keys.iter().map(|key| ((*key).into(), HashMap::new())).collect();
    bypass.forget(&left(&["second", "another"]));
    let told: Vec<_> = bypass.units.iter().map(|(key, unit)| (&**key, unit.bytes)).collect();
    assert_eq!(told, [("another", None), ("second", Some(950))]);
    bypass.forget(&left(&["another"]));
    assert_eq!(bypass.units.values().map(|unit| unit.bytes).collect::<Vec<_>>(), [None], "nobody goes on");
}

/// An interface with its other end in a namespace, and that end.
fn pair(index: i32, peer: i32) -> [Link; 2] {
    let kind = Some("veth".to_owned());
    let end = Link { index, name: format!("veth{index}"), kind, loopback: false, lower: index + 100, peer: None };
    let (node, inside) = (Netns::numbered(peer), Netns::numbered(0));
    [Link { peer: Some(node), ..end.clone() }, Link { index: index + 100, lower: index, peer: Some(inside), ..end }]
}

#[test]
fn a_pod_with_an_interface_that_leads_elsewhere_is_not_watched() {
    let [end, eth0] = pair(7, 1);
    let own = Link { peer: None, lower: 0, ..eth0.clone() };
    let lo = Link { kind: None, loopback: true, ..own.clone() };
    let of_kind = |kind: Option<&str>, below: &Link| Link { kind: kind.map(str::to_owned), ..below.clone() };
    let outcome = |ends: &[&Link], inside: &[Link]| {
        let mut unit = Unit::new(Labels::default(), 0);
        unit.watch(Netns::numbered(1), ends, Netns::numbered(0), inside);
        match unit.state {
            State::Watched { links, .. } => Ok(links.len()),
            State::Not(why) => Err(why),
        }
    };
    let beside = Err(Unwatched::Beside);
    assert_eq!(outcome(&[&end], &[lo.clone(), eth0.clone()]), Ok(1));
    assert_eq!(outcome(&[], &[lo.clone(), eth0.clone()]), Err(Unwatched::NoUplink));
    let [end2, eth1] = pair(8, 1);
    assert_eq!(outcome(&[&end, &end2], &[lo.clone(), eth0.clone(), eth1.clone()]), Ok(2));
    // Bridges, tunnels and what is on top of its own interface send by that.
    for kind in ["bridge", "tun", "macvlan", "veth"] {
        assert_eq!(outcome(&[&end], &[eth0.clone(), of_kind(Some(kind), &own)]), Ok(1), "{kind}");
    }
    // On top of the node's, the other end of which is elsewhere, or a device of the machine's.
    let apart = Link { lower: 3, ..eth1.clone() };
    for kind in [Some("macvlan"), Some("ipvlan"), Some("vlan"), Some("veth")] {
        assert_eq!(outcome(&[&end], &[eth0.clone(), of_kind(kind, &apart)]), beside, "{kind:?}");
    }
    for kind in [None, Some("ipoib"), Some("wireguard")] {
        assert_eq!(outcome(&[&end], &[eth0.clone(), of_kind(kind, &own)]), beside, "{kind:?}");
    }
    // Its number says nothing where it is another namespace's.
    let far = Link { peer: Some(Netns::numbered(4)), ..eth0.clone() };
    assert_eq!(outcome(&[&end], &[eth0.clone(), far.clone()]), beside);
    assert_eq!(outcome(&[&end], &[far]), beside);
    assert_eq!(outcome(&[&end], &[lo]), beside, "the other end is not there");
    // The node's end of a netkit does not count what is redirected.
    assert_eq!(outcome(&[&of_kind(Some("netkit"), &end)], &[of_kind(Some("netkit"), &eth0)]), beside);
}

#[test]
fn interfaces_that_come_or_have_become_others_are_compared_anew() {
    let ([end, eth0], [end2, _]) = (pair(7, 1), pair(8, 1));
    let mut unit = Unit::new(Labels::default(), 0);
    let netns = Netns::numbered(1);
    assert!(!unit.is_watched_by(netns, &[&end]));
    unit.watch(netns, &[&end], Netns::numbered(0), &[eth0]);
    assert!(unit.is_watched_by(netns, &[&end]));
    assert!(!unit.is_watched_by(Netns::numbered(2), &[&end]));
    assert!(!unit.is_watched_by(netns, &[&end, &end2]) && !unit.is_watched_by(netns, &[]));
    let another = Link { index: 9, ..end };
    assert!(!unit.is_watched_by(netns, &[&another]), "it bears the old name");
}

#[test]
fn a_pod_without_containers_is_compared_with_no_interface_of_the_same_name() {
    let mut bypass = watched();
    let owner = |gone| Owner {
        cgroup_id: 5,
        path: PATH.into(),
        extra: true,
        since: 0,
        gone,
        identity: identity::extra_container(PATH),
        labels: Labels::default(),
    };
    bypass.know(0, [(&owner(None), Totals::default())].into_iter());
    assert!(matches!(bypass.units[PATH].state, State::Watched { .. }));
    bypass.know(0, [(&owner(Some(1)), Totals::default())].into_iter());
    assert!(matches!(bypass.units[PATH].state, State::Not(Unwatched::New)));
    assert_eq!(take(&mut bypass, 1, 10 << 20), None);
}

#[test]
fn an_interface_that_counts_less_is_another_one_and_has_to_be_found_out() {
    let mut bypass = watched();
    assert!(take(&mut bypass, 1, 10 << 20).is_some());
    assert_eq!(take(&mut bypass, 2, 9 << 20), None);
    assert!(matches!(bypass.units[PATH].state, State::Not(Unwatched::New)));
}

#[test]
fn one_that_has_no_process_yet_is_looked_for_again_when_it_is_twice_as_old() {
    let mut unit = Unit::new(Labels::default(), 100 * S);
    assert!(!unit.is_due(90 * S, 60 * S), "it is gone");
    unit.attached.insert(1, PATH.into());
    let due = |unit: &Unit, looked: u64| (0..600).map(|tenth| tenth * S / 10).find(|since| unit.is_due(looked, *since));
    assert_eq!(due(&unit, 99 * S), Some(LOOK_NEW), "nobody has looked yet");
    assert_eq!(due(&unit, 100 * S + LOOK_NEW), Some(LOOK_NEW));
    assert_eq!(due(&unit, 104 * S), Some(4 * S));
    unit.leave(Unwatched::HostNetwork);
    assert!(!unit.is_due(104 * S, 60 * S));
}
