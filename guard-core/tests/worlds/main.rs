//! Random worlds that evolve through time, and what must never happen in any of them.
//!
//! `EGRESS_GUARD_CASES` says how many worlds, 10,000 if it does not.

mod deeds;
mod evictions;
mod found;
mod node;
mod operator;
mod pods;
mod relapse;
mod seen;
mod setup;
mod weather;
mod witness;

use std::{cell::RefCell, env};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use self::{node::World, seen::Seen};

const CASES: u32 = 10_000;

fn cases() -> u32 {
    match env::var("EGRESS_GUARD_CASES") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("EGRESS_GUARD_CASES={text:?} is not a number of worlds")),
        Err(env::VarError::NotPresent) => CASES,
        Err(error) => panic!("EGRESS_GUARD_CASES: {error}"),
    }
}

#[test]
fn what_must_never_happen_does_not_in_any_world() {
    let cases = cases();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let seen = RefCell::new(Seen::default());
    let worlds = (any::<[u16; 7]>(), prop::collection::vec(any::<u32>(), 1..80));
    let ran = runner.run(&worlds, |(setup, events)| {
        let mut world = World::new(setup).map_err(TestCaseError::fail)?;
        for event in events {
            world.event(event).map_err(TestCaseError::fail)?;
        }
        seen.borrow_mut().add(&world.witness.seen);
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    println!("{cases} worlds: {seen:?}");
    // Worlds in which nothing happens would prove nothing.
    assert!(cases < CASES || seen.missing().is_empty(), "never seen in {cases} worlds: {:?}", seen.missing());
}
