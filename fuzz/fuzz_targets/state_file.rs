//! State files: torn, foreign, or of another version of the agent.
#![no_main]

use guard_core::{
    config::Config,
    judge::{Judge, Means, Saved, Settings},
    state::{Kept, decode, encode},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    // As the file: what is refused says why. Few mutations come past the checksum ...
    match decode::<Value>(bytes) {
        Ok(kept) => check(&kept),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // ... so as what it guards, too.
    if let Ok(kept) = serde_json::from_slice(bytes) {
        check(&kept);
    }
});

fn check(kept: &Kept<Value>) {
    let bytes = encode(kept).expect("what was JSON is JSON again");
    assert_eq!(&decode::<Value>(&bytes).expect("what was written is read"), kept);
    match decode::<Saved>(&bytes) {
        Ok(kept) => restore(kept),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What an agent makes of it, it can keep and make of it again.
fn restore(kept: Kept<Saved>) {
    let Kept { boot_id, written, at, state } = kept;
    for same_boot in [true, false] {
        let mut judge = Judge::new(Settings::from(&Config::default()), Means::default());
        let _lost = judge.restore(at, state.clone(), same_boot);
        let _effects = judge.sample(at.saturating_add(1), 1, []);
        let again = Kept { boot_id: boot_id.clone(), written, at, state: judge.save() };
        let again = encode(&again).expect("what was kept is kept again");
        decode::<Saved>(&again).expect("what was kept again is read");
    }
}
