//! Containers that are metered before their names are known.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::identity::Identity;

fn labels(name: &str) -> Labels {
    Labels { container: name.into(), ..Labels::default() }
}

fn owner(cgroup_id: u64, name: &str) -> Owner {
    let labels = labels(name);
    Owner {
        cgroup_id,
        path: name.into(),
        extra: false,
        since: cgroup_id * 1000,
        gone: None,
        identity: Identity::default(),
        labels,
    }
}

fn sent(bytes: u64) -> Totals {
    let mut totals = Totals::default();
    totals.egress.bytes[1] = bytes;
    totals
}

fn totals(ledger: &Ledger) -> BTreeMap<String, u64> {
    ledger.series().map(|(labels, totals)| (labels.container.clone(), totals.egress.bytes[1])).collect()
}

fn assert_totals<const N: usize>(ledger: &Ledger, expected: [(&str, u64); N]) {
    assert_eq!(totals(ledger), expected.map(|(name, total)| (name.to_owned(), total)).into());
}

/// What a new agent makes of the pinned records, which have no labels, once it has given the owners their names.
fn restart(ledger: &Ledger) -> Ledger {
    let mut new = Ledger::new(ledger.records.len() as u32 - 1);
    new.restore(ledger.records.clone(), &ledger.raw, ledger.sampled_at);
    new
}

#[test]
fn a_series_goes_on_under_its_new_name() {
    let mut ledger = Ledger::new(2);
    let slot = ledger.assign(owner(10, "uid")).expect("a slot").slot;
    ledger.sample(&[sent(7), sent(7)], 1);
    assert_eq!(ledger.rename(&labels("uid"), &labels("web")), [], "no record has labels");
    assert_totals(&ledger, [("web", 7)]);
    assert_eq!(ledger.record(slot).owner.as_ref().map(|owner| &owner.labels), Some(&labels("web")));
    ledger.sample(&[sent(9), sent(9)], 2);
    assert_totals(&ledger, [("web", 9)]);
    ledger.gone(slot, sent(10), 3);
    assert_eq!(ledger.expire(3 + KEEP), [slot]);
    assert_totals(&ledger, []);
}

#[test]
fn it_joins_the_series_of_an_earlier_container() {
    for meters in [1, 2, 3] {
        let mut ledger = Ledger::new(meters);
        let first = ledger.assign(owner(10, "web")).expect("a slot").slot;
        ledger.gone(first, sent(50), 1);
        let second = ledger.assign(owner(11, "uid")).expect("a slot").slot;
        let mut raw = ledger.raw.clone();
        raw[second.0 as usize] += sent(5);
        ledger.sample(&raw, 2);
        assert_totals(&ledger, [("uid", 5), ("web", 50)]);
        // With one slot nothing but memory knows of the 50: the second's record carries them from now on.
        let changed = ledger.rename(&labels("uid"), &labels("web"));
        assert_eq!(changed, if meters == 1 { vec![second] } else { vec![] }, "{meters} meters");
        assert_totals(&ledger, [("web", 55)]);
        assert_totals(&restart(&ledger), [("web", 55)]);
    }
}

#[test]
fn what_a_nameless_series_lost_comes_along() {
    let mut ledger = Ledger::new(2);
    let first = ledger.assign(owner(10, "uid")).expect("a slot").slot;
    let second = ledger.assign(owner(11, "web")).expect("a slot").slot;
    ledger.gone(first, sent(4), 1);
    assert_eq!(ledger.assign(owner(12, "other")).map(|given| given.slot), Some(first));
    assert_totals(&ledger, [("other", 0), ("uid", 4), ("web", 0)]);
    assert_eq!(ledger.rename(&labels("uid"), &labels("web")), [second]);
    assert_totals(&ledger, [("other", 0), ("web", 4)]);
    assert_totals(&restart(&ledger), [("other", 0), ("web", 4)]);
}

#[test]
fn a_series_with_only_a_memory_is_renamed_too() {
    let mut ledger = Ledger::new(1);
    let slot = ledger.assign(owner(10, "uid")).expect("a slot").slot;
    ledger.gone(slot, sent(4), 1);
    ledger.assign(owner(11, "other"));
    assert_eq!(ledger.rename(&labels("uid"), &labels("web")), []);
    assert_totals(&ledger, [("other", 0), ("web", 4)]);
    ledger.gone(slot, sent(4), 2);
    assert_eq!(ledger.expire(1 + KEEP), []);
    assert_totals(&ledger, [("other", 0)]);
}

#[test]
fn a_name_that_is_not_there_or_is_the_same_changes_nothing() {
    let mut ledger = Ledger::new(1);
    ledger.assign(owner(10, "a"));
    ledger.sample(&[sent(3), sent(3)], 1);
    assert_eq!(ledger.rename(&labels("b"), &labels("c")), []);
    assert_eq!(ledger.rename(&labels("a"), &labels("a")), []);
    assert_totals(&ledger, [("a", 3)]);
}

/// What may happen to a ledger. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    /// A container of one of three names begins, nameless or not.
    Begin { name: u8, known: bool },
    /// All that are there send.
    Send(Vec<u8>),
    /// One ends, after some last bytes.
    End { which: u8, bytes: u8 },
    /// The name of a container becomes known.
    Name(u8),
    /// Minutes go by.
    Wait(u8),
    /// The agent dies and another goes on.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u8, any::<bool>()).prop_map(|(name, known)| Step::Begin { name, known }),
        3 => prop::collection::vec(any::<u8>(), 4).prop_map(Step::Send),
        2 => any::<(u8, u8)>().prop_map(|(which, bytes)| Step::End { which, bytes }),
        3 => any::<u8>().prop_map(Step::Name),
        2 => (1..7u8).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

/// A ledger with what the world knows of it.
struct World {
    ledger: Ledger,
    /// By cgroup id: its name, and how it is shown.
    shown: BTreeMap<u64, (String, String)>,
    now: u64,
}

impl World {
    fn sample(&mut self, raw: &[Totals]) {
        self.now += 1;
        self.ledger.sample(raw, self.now);
    }

    fn owners(&self, there: bool) -> Vec<(Slot, u64)> {
        let slots = (1..self.ledger.records.len() as u32).map(Slot);
        let owned = slots.filter_map(|slot| Some((slot, self.ledger.record(slot).owner.as_ref()?)));
        owned.filter(|(_, owner)| !there || owner.gone.is_none()).map(|(slot, owner)| (slot, owner.cgroup_id)).collect()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin { name, known } => {
                let id = self.shown.len() as u64 + 10;
                let name = format!("name-{name}");
                let shown = if *known { name.clone() } else { format!("id-{id}") };
                if self.ledger.assign(owner(id, &shown)).is_some() {
                    self.shown.insert(id, (name, shown));
                }
            }
            Step::Send(bytes) => {
                let mut raw = self.ledger.raw.clone();
                for (slot, _) in self.owners(true) {
                    let bytes = sent(u64::from(bytes[slot.0 as usize % bytes.len()]));
                    raw[slot.0 as usize] += bytes;
                    raw[0] += bytes;
                }
                self.sample(&raw);
            }
            Step::End { which, bytes } => {
                let there = self.owners(true);
                let Some((slot, _)) = there.get(usize::from(*which) % there.len().max(1)) else { return };
                let last = self.ledger.raw(*slot) + sent(u64::from(*bytes));
                self.now += 1;
                self.ledger.gone(*slot, last, self.now);
            }
            Step::Name(which) => {
                let nameless: Vec<u64> = self.shown.iter().filter(|(_, (n, s))| n != s).map(|(id, _)| *id).collect();
                let Some(id) = nameless.get(usize::from(*which) % nameless.len().max(1)) else { return };
                if let Some((name, shown)) = self.shown.get_mut(id) {
                    self.ledger.rename(&labels(shown), &labels(name));
                    shown.clone_from(name);
                }
            }
            Step::Wait(minutes) => {
                self.now += u64::from(*minutes) * KEEP / 5;
                let mut pinned = self.ledger.records.clone();
                let changed = self.ledger.expire(self.now);
                let kept = totals(&self.ledger);
                // An agent may die before any of these is written.
                for slot in changed {
                    pinned[slot.0 as usize] = self.ledger.record(slot).clone();
                    let mut next = Ledger::new(pinned.len() as u32 - 1);
                    next.restore(pinned.clone(), &self.ledger.raw, self.now);
                    let next = totals(&next);
                    // What only memory knew is lost then, and nothing is there twice.
                    for (name, total) in &next {
                        assert!(kept.get(name).is_none_or(|kept| total <= kept), "{name}: {kept:?} became {next:?}");
                    }
                    for name in self.carried() {
                        assert_eq!(next.get(&name), kept.get(&name), "{name}");
                    }
                }
            }
            Step::Restart => self.ledger = restart(&self.ledger),
        }
    }

    /// The series whose totals are all in records.
    fn carried(&self) -> Vec<String> {
        let carried = self.ledger.series.iter().filter(|(_, series)| series.lost == Totals::default());
        carried.filter(|(_, series)| !series.slots.is_empty()).map(|(labels, _)| labels.container.clone()).collect()
    }

    /// Whether the series is kept for good.
    fn is_there(&self, name: &str) -> bool {
        let metered = self.ledger.metered();
        metered.into_iter().any(|(_, owner, ..)| owner.labels.container == name)
    }
}

proptest! {
    /// The total of each container's name is never less than before, wherever its parts are shown, and no container is
    /// shown under two names. Only what no record was left to carry goes with an agent that dies, and with its series.
    #[test]
    fn no_name_loses_a_byte(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World { ledger: Ledger::new(3), shown: BTreeMap::new(), now: 0 };
        for step in &steps {
            let before = totals(&world.ledger);
            let names = world.shown.clone();
            world.take(step);
            let after = totals(&world.ledger);
            let restarted = matches!(step, Step::Restart);
            let waited = matches!(step, Step::Wait(_));
            for (shown, total) in &before {
                // Where this series is now: under the same name, or under the one that became known.
                let known = names.iter().find(|(_, (_, was))| was == shown).map(|(id, _)| &world.shown[id].1);
                let now = known.unwrap_or(shown);
                match after.get(now) {
                    Some(now) => prop_assert!(now >= total, "{shown}: {total} became {now} by {step:?}"),
                    None => prop_assert!(restarted || waited && !world.is_there(now), "{shown} is gone by {step:?}"),
                }
                prop_assert!(now == shown || !after.contains_key(shown), "{shown} is shown beside {now}");
            }
            if matches!(step, Step::Name(_)) {
                prop_assert_eq!(before.values().sum::<u64>(), after.values().sum::<u64>());
            }
            if restarted {
                for (shown, total) in &after {
                    prop_assert_eq!(Some(total), before.get(shown));
                }
            }
        }
    }
}
