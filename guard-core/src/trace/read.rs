//! Bytes to records.

use std::{collections::BTreeMap, fmt};

use super::{
    APPEARS, CHECKSUM, COUNTS, Container, FRAME, GONE, HEADER, Header, MAGIC, MAX_RECORD, Record, SAMPLE, Sample,
    TraceError, VERSION, totals,
};
use crate::{breach::ContainerId, identity::Labels, policy::Subject};

impl Header {
    /// Reads what a trace begins with. Fewer than [`HEADER`] bytes are [`TraceError::Empty`], unless they are foreign.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(TraceError::Foreign);
        }
        match bytes.get(MAGIC.len()) {
            Some(&version) if version != VERSION => return Err(TraceError::Version(version)),
            _ => {}
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(TraceError::Empty(bytes.len())) };
        let (said, checksum) = header.split_at(HEADER - CHECKSUM);
        if crc32fast::hash(said).to_le_bytes() != checksum {
            return Err(TraceError::Damaged { offset: 0, what: "the header's checksum is another" });
        }
        let clock = |from: usize| said[from..].iter().take(8).rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        Ok(Self { wall: clock(MAGIC.len() + 1), at: clock(MAGIC.len() + 9) })
    }
}

/// Reads records from bytes as they come in.
#[derive(Debug)]
pub struct Decoder {
    offset: u64,
    at: u64,
    /// By number. `None`: gone.
    containers: Vec<Option<ContainerId>>,
}

impl Decoder {
    /// For what follows the header.
    pub fn new(header: Header) -> Self {
        Self { offset: HEADER as u64, at: header.at, containers: Vec::new() }
    }

    /// Takes the next record off the front of `bytes`. `None`: it is not all there yet, and nothing was taken. After an
    /// error there is no more to be had.
    pub fn decode(&mut self, bytes: &mut &[u8]) -> Result<Option<Record>, TraceError> {
        let damaged = |offset| move |what| TraceError::Damaged { offset, what };
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_RECORD {
            return Err(damaged(self.offset)("a record is longer than any is"));
        }
        let Some((checksum, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let Some((record, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        if crc32fast::hash(record) != u32::from_le_bytes(*checksum) {
            return Err(damaged(self.offset)("a record's checksum is another"));
        }
        let record = self.record(Fields(record)).map_err(damaged(self.offset))?;
        self.offset += (FRAME + length) as u64;
        *bytes = rest;
        Ok(Some(record))
    }

    fn record(&mut self, mut fields: Fields<'_>) -> Result<Record, &'static str> {
        match fields.byte()? {
            APPEARS => {
                let container = fields.container()?;
                self.containers.push(Some(container.id));
                Ok(Record::Appears(container))
            }
            GONE => {
                let number = fields.number()?;
                let known = usize::try_from(number).ok().and_then(|number| self.containers.get_mut(number));
                let id = known.and_then(Option::take).ok_or(NOT_THERE)?;
                if fields.0.is_empty() { Ok(Record::Gone(id)) } else { Err("a record is longer than what it says") }
            }
            SAMPLE => self.sample(fields).map(Record::Sample),
            _ => Err("a record of an unknown kind"),
        }
    }

    fn sample(&mut self, mut fields: Fields<'_>) -> Result<Sample, &'static str> {
        let at = self.at.checked_add(fields.number()?).ok_or("a sample is later than time goes")?;
        // A container takes two bytes or more.
        let mut moved = Vec::with_capacity(self.containers.len().min(fields.0.len() / 2));
        let mut number = 0_u64;
        while !fields.0.is_empty() {
            if moved.len() == self.containers.len() {
                return Err("a sample tells of more containers than there are");
            }
            let key = fields.number()?;
            number = number.checked_add(key >> COUNTS).ok_or(NOT_THERE)?;
            let known = usize::try_from(number).ok().and_then(|number| self.containers.get(number));
            let id = known.copied().flatten().ok_or(NOT_THERE)?;
            let mut counts = [0; COUNTS];
            for (bit, count) in counts.iter_mut().enumerate() {
                if key >> bit & 1 == 1 {
                    *count = fields.number()?;
                }
            }
            moved.push((id, totals(counts)));
        }
        self.at = at;
        Ok(Sample { at, moved })
    }
}

const NOT_THERE: &str = "a record tells of a container that is not there";
/// Bytes of the largest number.
const MAX_NUMBER: usize = 10;

const CUT: &str = "a record is shorter than what it says";

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0;
        for (index, &byte) in self.0.iter().enumerate().take(MAX_NUMBER) {
            let (bits, shift) = (u64::from(byte & 0x7f), 7 * index);
            number |= bits << shift;
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return if number >> shift == bits { Ok(number) } else { Err("a number has more than 64 bits") };
            }
        }
        Err(if self.0.len() < MAX_NUMBER { CUT } else { "a number has more than 64 bits" })
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let length = usize::try_from(self.number()?).map_err(|_| CUT)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        str::from_utf8(text).map(str::to_owned).map_err(|_| "a name is not UTF-8")
    }

    fn container(&mut self) -> Result<Container, &'static str> {
        let id = ContainerId(self.number()?);
        let names = Labels { namespace: self.text()?, pod: self.text()?, container: self.text()? };
        let workload = self.text()?;
        let totals = totals([self.number()?, self.number()?, self.number()?, self.number()?]);
        let mut labels = BTreeMap::new();
        while !self.0.is_empty() {
            labels.insert(self.text()?, self.text()?);
        }
        Ok(Container { id, subject: Subject { names, labels, ..Subject::default() }, workload, totals })
    }
}

/// The records of a whole trace. After an error it is at its end.
#[derive(Debug)]
pub struct Reader<'a> {
    header: Header,
    decoder: Decoder,
    left: &'a [u8],
}

/// A trace ends in the middle of a record. All before is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Where in the trace the record begins.
    pub offset: u64,
    /// How many bytes of it there are.
    pub bytes: usize,
}

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, bytes } = self;
        write!(
            f,
            "the trace breaks off in a record at byte {offset}, {bytes} bytes before its end: that one is left out"
        )
    }
}

impl<'a> Reader<'a> {
    /// Reads the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, TraceError> {
        let header = Header::decode(bytes)?;
        Ok(Self { header, decoder: Decoder::new(header), left: &bytes[HEADER..] })
    }

    /// When the trace begins, on both clocks.
    pub fn header(&self) -> Header {
        self.header
    }

    /// To be asked at the end: whether the recorder was killed while it wrote.
    pub fn truncated(&self) -> Option<Truncated> {
        (!self.left.is_empty()).then_some(Truncated { offset: self.decoder.offset, bytes: self.left.len() })
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.decoder.decode(&mut self.left).transpose()?;
        if record.is_err() {
            self.left = &[];
        }
        Some(record)
    }
}
