use std::path::Path;

use super::*;
use crate::{
    core::bypass::{Frames, Gap, Reading},
    node::uplinks::Netns,
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
