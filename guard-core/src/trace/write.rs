//! Records to bytes.

use std::collections::HashMap;

use super::{
    APPEARS, COUNTS, Container, FRAME, GONE, Header, MAGIC, MAX_RECORD, Record, SAMPLE, Sample, VERSION, WriteError,
    counts,
};
use crate::{breach::ContainerId, identity::Labels, policy::Subject};

/// Says records as bytes.
#[derive(Debug)]
pub struct Writer {
    at: u64,
    /// A container's number is how many appeared before it.
    numbers: HashMap<ContainerId, u64>,
    appeared: u64,
}

impl Writer {
    /// Begins a trace: appends its header to `out`.
    pub fn new(header: Header, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend(MAGIC);
        out.push(VERSION);
        out.extend(header.wall.to_le_bytes());
        out.extend(header.at.to_le_bytes());
        out.extend(crc32fast::hash(&out[start..]).to_le_bytes());
        Self { at: header.at, numbers: HashMap::new(), appeared: 0 }
    }

    /// Appends a record to `out`.
    pub fn write(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let start = out.len();
        out.extend([0; FRAME]);
        let written = self.put(record, out).and_then(|()| match out.len() - start - FRAME {
            length if length > MAX_RECORD => Err(WriteError::TooLarge(length)),
            length => Ok(length as u32),
        });
        let length = written.inspect_err(|_| out.truncate(start))?;
        let checksum = crc32fast::hash(&out[start + FRAME..]);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4..start + FRAME].copy_from_slice(&checksum.to_le_bytes());
        match record {
            Record::Appears(container) => {
                self.numbers.insert(container.id, self.appeared);
                self.appeared += 1;
            }
            Record::Gone(id) => {
                self.numbers.remove(id);
            }
            Record::Sample(sample) => self.at = sample.at,
        }
        Ok(())
    }

    fn put(&self, record: &Record, out: &mut Vec<u8>) -> Result<(), WriteError> {
        match record {
            Record::Appears(container) => put_container(container, out),
            Record::Gone(id) => {
                out.push(GONE);
                put_number(self.number(*id)?, out);
            }
            Record::Sample(sample) => self.put_sample(sample, out)?,
        }
        Ok(())
    }

    fn put_sample(&self, sample: &Sample, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let (at, before) = (sample.at, self.at);
        out.push(SAMPLE);
        put_number(at.checked_sub(before).ok_or(WriteError::Backwards { at, before })?, out);
        let numbered = sample.moved.iter().map(|(id, counted)| Ok((self.number(*id)?, counts(counted))));
        let mut moved = numbered.collect::<Result<Vec<_>, WriteError>>()?;
        moved.sort_unstable();
        let mut last = 0;
        for (number, counts) in moved {
            // Which counts moved stands beside how far the container is from the last one: mostly one byte for both.
            let which = counts.iter().rev().fold(0, |bits, &count| bits << 1 | u64::from(count != 0));
            if which != 0 {
                put_number((number - last) << COUNTS | which, out);
                counts.into_iter().filter(|&count| count != 0).for_each(|count| put_number(count, out));
                last = number;
            }
        }
        Ok(())
    }

    fn number(&self, id: ContainerId) -> Result<u64, WriteError> {
        self.numbers.get(&id).copied().ok_or(WriteError::Unknown(id))
    }
}

fn put_container(container: &Container, out: &mut Vec<u8>) {
    // Annotations are not recorded: what they change is tried out in the file.
    let Container { id, subject: Subject { names, labels, annotations: _ }, workload, totals } = container;
    let Labels { namespace, pod, container } = names;
    out.push(APPEARS);
    put_number(id.0, out);
    for text in [namespace, pod, container, workload] {
        put_text(text, out);
    }
    for count in counts(totals) {
        put_number(count, out);
    }
    for (key, value) in labels {
        put_text(key, out);
        put_text(value, out);
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_number(text.len() as u64, out);
    out.extend(text.as_bytes());
}

/// LEB128: seven bits a byte, the lowest first, the top bit set on all but the last.
fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
