use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SEEDS: u64 = 300;

/// Of all actions.
const WORDS: usize = 22;

fn each_round(minutes: u32, mut look: impl FnMut(u64, &[Step])) {
    for seed in 0..SEEDS {
        for round in plan(seed, minutes).chunk_by(|a, b| a.round == b.round) {
            look(seed, round);
        }
    }
}

#[test]
fn a_seed_gives_the_same_steps_and_another_seed_others() {
    assert_eq!(plan(7, 10), plan(7, 10));
    let plans: Vec<_> = (0..20).map(|seed| plan(seed, 10)).collect();
    for (index, one) in plans.iter().enumerate() {
        assert!(plans[index + 1..].iter().all(|other| one != other), "seed {index} is not the only one");
    }
}

#[test]
fn a_plan_has_as_many_rounds_as_its_minutes_and_a_part_of_them_for_one_agent() {
    for (minutes, expected) in [(60, (36, 23)), (10, (6, 4)), (1, (5, 3))] {
        assert_eq!(rounds(minutes), expected, "{minutes}");
    }
}

#[test]
fn every_round_ends_with_its_only_checkpoint_and_steps_are_in_order() {
    each_round(20, |seed, round| {
        let checkpoints = round.iter().filter(|step| step.action == Action::Checkpoint).count();
        assert_eq!(checkpoints, 1, "seed {seed}: {round:#?}");
        assert_eq!(round.last().map(|step| &step.action), Some(&Action::Checkpoint), "seed {seed}");
        assert!(round.is_sorted_by_key(|step| step.at), "seed {seed}: {round:#?}");
        assert!(round.iter().all(|step| step.at <= ROUND), "seed {seed}: {round:#?}");
    });
}

#[test]
fn what_is_begun_in_a_round_is_ended_in_it() {
    each_round(20, |seed, round| {
        let (mut fault, mut engaged, mut breached) = (false, false, BTreeSet::new());
        for step in round {
            match &step.action {
                Action::Fault(_) => assert!(!std::mem::replace(&mut fault, true), "seed {seed}: two faults at once"),
                Action::EndFault => fault = false,
                Action::KillSwitch(on) => engaged = *on,
                Action::Breach { name, .. } => drop(breached.insert(name)),
                Action::EndBreach { name } => assert!(breached.remove(name), "seed {seed}: {name} did not breach"),
                _ => {}
            }
        }
        assert!(!fault && !engaged && breached.is_empty(), "seed {seed}: {round:#?}");
    });
}

#[test]
fn there_are_never_too_many_pods_nor_breaches_nor_a_name_twice() {
    for seed in 0..SEEDS {
        let (mut pods, mut names) = (BTreeMap::new(), BTreeSet::new());
        let plan = plan(seed, 60);
        for round in plan.chunk_by(|a, b| a.round == b.round) {
            pods.retain(|_, kind| !matches!(kind, Kind::Job(_)));
            let breaches = round.iter().filter(|step| matches!(step.action, Action::Breach { .. })).count();
            assert!(breaches as u64 <= MOST_BREACHES, "seed {seed}: {breaches} breaches are a storm");
            // What is removed in a round may be there until its end.
            let mut most = pods.clone();
            for step in round {
                match &step.action {
                    Action::Make { name, kind } => {
                        assert!(names.insert(name.clone()), "seed {seed}: {name} twice");
                        pods.insert(name.clone(), *kind);
                        most.insert(name.clone(), *kind);
                    }
                    Action::Remove { name } => {
                        assert!(pods.remove(name).is_some(), "seed {seed}: {name} is not there");
                    }
                    Action::Breach { name, .. } | Action::KillContainer { name, .. } => {
                        assert!(most.contains_key(name), "seed {seed}: {name} is not there");
                    }
                    _ => {}
                }
            }
            let at_once: u32 = pods.values().map(|kind| kind.pods()).sum();
            assert!(at_once <= MOST_PODS, "seed {seed}: {at_once} pods: {pods:?}");
            let hosts = pods.values().filter(|kind| **kind == Kind::HostNetwork).count();
            assert!(hosts <= 1, "seed {seed}: {hosts} pods in the node's network");
        }
    }
}

#[test]
fn the_kill_switch_is_engaged_for_longer_than_it_takes_and_while_the_api_server_is_well() {
    let mut breaches = 0;
    each_round(20, |seed, round| {
        let at = |action: &Action| round.iter().find(|step| step.action == *action).map(|step| step.at);
        let Some(on) = at(&Action::KillSwitch(true)) else { return };
        let off = at(&Action::KillSwitch(false)).expect("it is released");
        assert!(off >= on + Duration::from_secs(30), "seed {seed}: {round:#?}");
        assert!(!round.iter().any(|step| matches!(step.action, Action::Fault(_))), "seed {seed}: {round:#?}");
        // A pod is evicted seven seconds after it has begun, and from ten seconds on none may be.
        let due = |step: &&Step| {
            let at = step.at + Duration::from_secs(7);
            matches!(step.action, Action::Breach { .. }) && at > on + Duration::from_secs(10) && at < off
        };
        breaches += round.iter().filter(due).count() as u64;
    });
    assert!(breaches > SEEDS, "{breaches} breaches meanwhile");
}

#[test]
fn there_are_always_two_deployments_and_none_that_evictions_do_not_cure() {
    for seed in 0..SEEDS {
        let (mut there, mut breaches) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
        for step in plan(seed, 60) {
            match step.action {
                Action::Make { name, kind: Kind::Deployment(_) } => drop(there.insert(name)),
                Action::Remove { name } => drop(there.remove(&name)),
                Action::Breach { name, .. } => *breaches.entry(name).or_default() += 1,
                Action::Checkpoint => assert!(there.len() >= STAY, "seed {seed}: only {there:?}"),
                _ => {}
            }
        }
        let cured = breaches.iter().filter(|(name, count)| name.starts_with("web") && **count <= CURED).count();
        assert!(cured > 5, "seed {seed}: {breaches:?}");
    }
}

#[test]
fn towards_the_end_nothing_ends_the_agent() {
    let (_, steady) = rounds(60);
    let mut ends = 0;
    for seed in 0..SEEDS {
        for step in plan(seed, 60) {
            if matches!(step.action, Action::KillAgent | Action::Rollout) {
                assert!(step.round < steady, "seed {seed}: {step:?}");
                ends += 1;
            }
        }
    }
    assert!(ends > SEEDS, "{ends} ends of an agent in {SEEDS} plans");
}

#[test]
fn an_hour_has_something_of_everything_and_evictions_for_the_faults_of_evictions() {
    for seed in 0..SEEDS {
        let plan = plan(seed, 60);
        let words: BTreeSet<_> = plan.iter().map(|step| step.action.word()).collect();
        let always = [
            "API server away",
            "API server frozen",
            "API server slow",
            "API server refusing",
            "API server's answers lost",
            "watches ended",
            "agent killed",
            "agent rolled out",
            "breach",
            "container killed",
        ];
        assert!(always.iter().all(|word| words.contains(word)), "seed {seed}: {words:?}");
        for round in plan.chunk_by(|a, b| a.round == b.round) {
            let fault = |step: &&Step| matches!(step.action, Action::Fault(fault) if fault.is_of_evictions());
            let Some(begin) = round.iter().find(fault) else { continue };
            let end = round.iter().find(|step| step.action == Action::EndFault).expect("its end");
            let meets = |step: &Step| {
                let deployment = matches!(&step.action, Action::Breach { name, .. } if name.starts_with("web"));
                deployment && begin.at < step.at + Duration::from_secs(10) && step.at + Duration::from_secs(10) < end.at
            };
            assert!(round.iter().any(meets), "seed {seed}: {round:#?}");
        }
    }
}

#[test]
fn ten_minutes_of_most_seeds_have_something_of_everything() {
    let mut words: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let found: BTreeSet<_> = plan(seed, 10).iter().map(|step| step.action.word()).collect();
        for word in found {
            *words.entry(word).or_default() += 1;
        }
    }
    let rare: Vec<_> = words.iter().filter(|(_, plans)| **plans < SEEDS / 10).collect();
    assert!(rare.is_empty() && words.len() == WORDS, "{} words; rare ones: {rare:?}", words.len());
    assert!(words["breach"] > SEEDS * 95 / 100 && words["agent killed"] > SEEDS * 80 / 100, "{words:?}");
}
