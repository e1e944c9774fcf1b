//! Traces: cut off, damaged, or made by somebody who wants to see an agent fall.
#![no_main]

use guard_core::trace::{Decoder, HEADER, Header, Reader, Record, TraceError, Writer};
use libfuzzer_sys::fuzz_target;

/// Length and checksum before a record.
const FRAME: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Few mutations come past the checksums.
    check(&mended(bytes));
});

fn check(bytes: &[u8]) {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut records = Vec::new();
    let damage = loop {
        match reader.next() {
            Some(Ok(record)) => records.push(record),
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    assert_eq!(reader.next(), None, "after the end, or after damage, there is no more");
    assert!(damage.is_none() || reader.truncated().is_none());
    assert!(reader.truncated().is_none_or(|cut| cut.offset + cut.bytes as u64 == bytes.len() as u64));
    assert_eq!(piecemeal(reader.header(), &bytes[HEADER..]), (records.clone(), damage), "as the bytes come in");
    rewrite(reader.header(), &records);
}

/// What a decoder finds to which the bytes come a few at a time.
fn piecemeal(header: Header, bytes: &[u8]) -> (Vec<Record>, Option<TraceError>) {
    let (mut decoder, mut records, mut from, mut to) = (Decoder::new(header), Vec::new(), 0, 0);
    loop {
        let mut left = &bytes[from..to];
        let next = decoder.decode(&mut left);
        from = to - left.len();
        match next {
            Ok(Some(record)) => records.push(record),
            Ok(None) if to == bytes.len() => return (records, None),
            Ok(None) => to = bytes.len().min(to + 1 + to % 7),
            Err(error) => return (records, Some(error)),
        }
    }
}

/// What was read can be written, up to a record that tells of a container by a number that another took over. What was
/// written is read and written again to the same bytes.
fn rewrite(header: Header, records: &[Record]) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(header, &mut bytes);
    for record in records {
        if writer.write(record, &mut bytes).is_err() {
            break;
        }
    }
    let mut again = Vec::new();
    let mut writer = Writer::new(header, &mut again);
    for record in Reader::new(&bytes).expect("a header was written") {
        let record = record.expect("what was written is whole");
        writer.write(&record, &mut again).expect("what was written can be written");
    }
    assert_eq!(again, bytes);
}

/// The bytes with right checksums: of the header, and of each frame whose length is right.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some((header, mut left)) = bytes.split_at_mut_checked(HEADER) else { return bytes };
    let (said, checksum) = header.split_at_mut(HEADER - 4);
    checksum.copy_from_slice(&crc32fast::hash(said).to_le_bytes());
    while let Some((frame, rest)) = left.split_first_chunk_mut::<FRAME>() {
        let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        let Some((record, rest)) = rest.split_at_mut_checked(length) else { break };
        frame[4..].copy_from_slice(&crc32fast::hash(record).to_le_bytes());
        left = rest;
    }
    bytes
}
