use super::*;
use crate::inventory::Container;

const UID: &str = "0e3b1a1c-5b6f-4b8e-9d62-8f2f6c1a7e55";

fn identity(digit: char) -> Identity {
    Identity { pod_uid: UID.into(), container_id: digit.to_string().repeat(64), runtime: String::new() }
}

/// A pod whose only container has the id of this digit, if any.
fn pod(digit: Option<char>) -> Arc<Pod> {
    let id = digit.map(|digit| identity(digit).container_id).unwrap_or_default();
    let containers = vec![Container { name: "main".into(), id, ..Container::default() }];
    Arc::new(Pod { uid: UID.into(), namespace: "shop".into(), name: "web-0".into(), containers, ..Pod::default() })
}

fn told<const N: usize>(pods: [&Arc<Pod>; N]) -> Arc<Inventory> {
    Arc::new(Inventory::of(pods.map(Arc::clone)))
}

fn name(roster: &Roster, digit: char, before: Option<&Labels>) -> Option<String> {
    roster.labels(&identity(digit), before).map(|labels| labels.to_string())
}

#[test]
fn a_container_is_called_by_what_is_known_of_it_and_no_less_later() {
    let mut roster = Roster::default();
    assert_eq!(name(&roster, 'a', None), None);
    roster.tell(told([&pod(None)]));
    let half = roster.labels(&identity('a'), None);
    assert_eq!(name(&roster, 'a', None).as_deref(), Some("shop/web-0/aaaaaaaaaaaa"));
    roster.tell(told([&pod(Some('a'))]));
    let whole = roster.labels(&identity('a'), half.as_ref());
    assert_eq!(name(&roster, 'a', half.as_ref()).as_deref(), Some("shop/web-0/main"));
    // Restarted in place: the pod tells only of the new one.
    roster.tell(told([&pod(Some('b'))]));
    assert_eq!(name(&roster, 'a', whole.as_ref()).as_deref(), Some("shop/web-0/main"));
    assert_eq!(name(&roster, 'b', None).as_deref(), Some("shop/web-0/main"));
    // And the pod is gone.
    roster.tell(told([]));
    assert_eq!(name(&roster, 'a', whole.as_ref()).as_deref(), Some("shop/web-0/main"));
    assert_eq!(name(&roster, 'b', None).as_deref(), Some("shop/web-0/main"));
    assert_eq!(name(&roster, 'c', None).as_deref(), Some("shop/web-0/cccccccccccc"));
}

#[test]
fn a_pod_that_is_gone_is_known_as_long_as_a_container_of_it_is() {
    let mut roster = Roster::default();
    roster.tell(told([&pod(Some('a'))]));
    roster.tell(told([]));
    roster.forget([&identity('a')]);
    assert!(roster.pod(UID).is_some());
    roster.forget([]);
    assert!(roster.pod(UID).is_none());
}

#[test]
fn only_what_changed_is_told() {
    let mut roster = Roster::default();
    let first = pod(Some('a'));
    assert_eq!(roster.tell(told([&first])), [UID.to_owned()].into());
    assert_eq!(roster.tell(told([&first])), BTreeSet::new());
    assert_eq!(roster.tell(told([&pod(Some('a'))])), BTreeSet::new(), "a list tells the same again");
    assert_eq!(roster.tell(told([&pod(Some('b'))])), [UID.to_owned()].into());
    assert_eq!(roster.tell(told([])), [UID.to_owned()].into(), "it is gone");
    assert_eq!(roster.tell(told([])), BTreeSet::new(), "which is told once");
    assert_eq!(
        roster.tell(told([&pod(Some('b'))])),
        [UID.to_owned()].into(),
        "a list that was too old had left it out"
    );
}

#[test]
fn what_runs_on_of_a_pod_that_is_gone_is_terminating() {
    let terminating = |roster: &Roster| roster.pod(UID).is_some_and(|pod| pod.terminating);
    let there = pod(Some('a'));
    let mut roster = Roster::default();
    roster.tell(told([&there]));
    let saved = roster.save([(&identity('a'), &there.labels_of(&identity('a')))]);
    roster.tell(told([]));
    assert!(terminating(&roster) && !there.terminating);
    roster.tell(told([&there]));
    assert!(!terminating(&roster));

    // Of what an earlier agent knew that is said once the API server has told what there is.
    let mut next = Roster::restore(saved);
    assert!(next.pod(UID).is_some() && !terminating(&next));
    assert_eq!(next.tell(told([])), [UID.to_owned()].into());
    assert!(terminating(&next));
}

#[test]
fn the_next_agent_knows_the_names_before_it_is_told_any() {
    let mut roster = Roster::default();
    roster.tell(told([&pod(Some('b'))]));
    let main = Labels { namespace: "shop".into(), pod: "web-0".into(), container: "main".into() };
    let (gone, there) = (identity('a'), identity('b'));
    let nameless = Identity { pod_uid: "7d8a9f0b".into(), ..identity('f') };
    let unknown = Labels::of(&nameless, false, "");
    let saved = roster.save([(&gone, &main), (&there, &main), (&nameless, &unknown)]);
    let saved: Saved = serde_json::from_str(&serde_json::to_string(&saved).expect("JSON")).expect("as it was");

    let mut next = Roster::restore(saved);
    assert!(!next.is_told());
    next.forget([]);
    for digit in ['a', 'b'] {
        assert_eq!(name(&next, digit, None).as_deref(), Some("shop/web-0/main"), "{digit}");
    }
    assert_eq!(name(&next, 'c', None).as_deref(), Some("shop/web-0/cccccccccccc"), "begun meanwhile");
    assert_eq!(next.labels(&nameless, None), None);
    // The pod has gone meanwhile, and with it the one that is there; the other is kept for its series.
    next.tell(told([]));
    next.forget([&gone]);
    assert_eq!(name(&next, 'a', None).as_deref(), Some("shop/web-0/main"));
    assert_eq!(name(&next, 'b', None).as_deref(), Some("shop/web-0/main"), "of a pod that is still known");
    next.forget([]);
    assert_eq!((name(&next, 'a', None), name(&next, 'b', None)), (None, None));
}

#[test]
fn pods_that_have_ended_are_kept_only_for_a_series() {
    let mut roster = Roster::default();
    let ended = Arc::new(Pod { phase: Phase::Succeeded, ..(*pod(Some('a'))).clone() });
    roster.tell(told([&ended]));
    let main = ended.labels_of(&identity('a'));
    assert_eq!(roster.save([]), Saved::default());
    assert!(Roster::restore(roster.save([(&identity('a'), &main)])).pod(UID).is_some());
}

#[test]
fn the_mirror_of_a_static_pod_is_known_by_its_manifests_hash() {
    let hash = "7d8a9f0b1c2d3e4f5a6b7c8d9e0f1a2b";
    let mirror = Pod { cgroup_uid: Some(hash.into()), ..(*pod(Some('a'))).clone() };
    let mut roster = Roster::default();
    roster.tell(told([&Arc::new(mirror)]));
    let identity = Identity { pod_uid: hash.into(), ..identity('a') };
    assert_eq!(roster.labels(&identity, None).map(|labels| labels.container).as_deref(), Some("main"));
    assert!(roster.pod(UID).is_none());
}

#[test]
fn nobody_takes_a_pods_place_by_calling_itself_its_mirror() {
    let ours = pod(Some('a'));
    let false_mirror = Pod { uid: "f".into(), cgroup_uid: Some(UID.into()), mirror: true, ..Pod::default() };
    let false_mirror = Arc::new(false_mirror);
    for pods in [[&ours, &false_mirror], [&false_mirror, &ours]] {
        assert_eq!(told(pods).pod(UID), Some(&ours));
        let mut applied = Inventory::default();
        for pod in pods {
            applied.apply(Arc::clone(pod));
        }
        assert_eq!(applied.pod(UID), Some(&ours));
    }
    // A static pod's next mirror is one.
    let [first, next] = ["1", "2"].map(|uid| Arc::new(Pod { uid: uid.into(), ..(*false_mirror).clone() }));
    assert_eq!(told([&first, &next]).pod(UID), Some(&next));
}
