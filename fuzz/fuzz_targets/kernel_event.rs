//! Records of the ring buffer: those of another build's programs are refused, not misread.
#![no_main]

use bytes::Buf;
use guard_common::event_kind;
use guard_core::breach::Limit;
use guard_core::event::{CgroupChange, Crossing, Event, decode};
use libfuzzer_sys::fuzz_target;

/// Where the record begins that follows instant, kind and length or slot.
const HEAD: usize = 16;

fuzz_target!(|record: &[u8]| {
    let decoded = decode(record);
    let (front, back) = record.split_at(record.len() / 2);
    assert_eq!(decode(front.chain(back)), decoded, "in two parts");
    match decoded {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Event::Crossed(Crossing { at, limit, slot, owner })) => {
            let kind = if limit == Limit::Rate { event_kind::EGRESS } else { event_kind::INGRESS };
            let words = [kind.to_ne_bytes(), slot.0.to_ne_bytes()].concat();
            assert_eq!([&at.to_ne_bytes(), &*words, &owner.0.to_ne_bytes()].concat(), record);
        }
        Ok(Event::Cgroup(CgroupChange { at, made, path })) => {
            let kind = if made { event_kind::MKDIR } else { event_kind::RMDIR };
            let length = u32::from_ne_bytes(record[12..HEAD].try_into().expect("four bytes")) as usize;
            let told = String::from_utf8_lossy(&record[HEAD..HEAD + length]);
            assert_eq!([&at.to_ne_bytes(), &kind.to_ne_bytes()[..]].concat(), record[..12]);
            assert_eq!(path, (length > 0).then(|| told.trim_start_matches('/').to_owned()));
        }
    }
});
