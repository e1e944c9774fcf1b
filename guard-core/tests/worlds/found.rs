//! Worlds in which something was found to be wrong once.

use crate::node::World;

/// What a world begins with, and what happens in it.
type Found = ([u16; 7], &'static [u32]);

const FOUND: [Found; 3] = [
    // What a dry run was charged for a container that is gone was never given back.
    (
        [24576, 0, 0, 19981, 29696, 9925, 9172],
        &[
            1_073_741_824,
            271_494_400,
            1_342_177_280,
            1_051_459_584,
            1_965_369_344,
            199_577_600,
            1_841_905_666,
            402_677_760,
            1_828_716_544,
            6_739_968,
            2_967_223_552,
            0,
            420_436_800,
            0,
        ],
    ),
    // A day later a container in no pod was evicted though it had been.
    ([0, 0, 188, 776, 0, 30722, 8192], &[3_673_755_648, 0, 1_996_488_704, 326_303_744, 654_311_424, 3_949_847_552, 0]),
    // How an eviction ended that took more than a day was not taken over.
    (
        [26658, 49836, 0, 0, 29696, 3061, 64],
        &[
            982_682_624,
            2_025_345_792,
            1_774_955_264,
            0,
            0,
            1_996_488_704,
            497_674_240,
            3_880_452_096,
            654_999_552,
            1_307_733_760,
        ],
    ),
];

#[test]
fn what_was_found_once_is_not_found_again() {
    for (index, (setup, events)) in FOUND.into_iter().enumerate() {
        let mut world = World::new(setup).unwrap_or_else(|why| panic!("world {index}: {why}"));
        for (number, event) in events.iter().enumerate() {
            world.event(*event).unwrap_or_else(|why| panic!("world {index}, event {number}: {why}"));
        }
    }
}
