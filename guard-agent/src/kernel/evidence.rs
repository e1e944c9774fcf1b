//! Where the bytes went, as the programs noted it.

use std::net::{IpAddr, Ipv6Addr};

use guard_common::{Class, Destination, EVIDENCE_EPOCH, EVIDENCE_ROOM, INGRESS};

use super::{
    object::{ObjectError, Programs},
    sys,
};

/// A destination (or a source), with the bytes that it is estimated to have got (or sent) in the last one to two minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The container's cgroup.
    pub owner: u64,
    /// The peer.
    pub address: IpAddr,
    /// Its port; 0: the protocol has none.
    pub port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
    /// What it is to the cluster.
    pub class: Class,
    /// It is a source.
    pub ingress: bool,
    /// The estimate.
    pub bytes: u64,
}

const KEY: usize = size_of::<Destination>();

/// Reads what is noted of all containers since about `now` minus one to two minutes.
pub fn read(programs: &Programs, now: u64) -> Result<Vec<Sample>, ObjectError> {
    let (keys, values) = sys::hash_lookup_all(programs.map("EVIDENCE")?, EVIDENCE_ROOM, KEY, size_of::<u64>())?;
    let epoch = (now >> EVIDENCE_EPOCH) as u32;
    let (keys, _) = keys.as_chunks::<KEY>();
    let (values, _) = values.as_chunks::<8>();
    let samples = keys.iter().zip(values).filter_map(|(key, bytes)| {
        let (sample, noted) = decode(key, u64::from_ne_bytes(*bytes));
        // The clock may have moved on while the map was read.
        (epoch.wrapping_add(1).wrapping_sub(noted) <= 2).then_some(sample)
    });
    Ok(samples.collect())
}

/// A map's entry, in the layout of [`Destination`], and the epoch in which it was noted.
fn decode(key: &[u8; KEY], bytes: u64) -> (Sample, u32) {
    let part = |from: usize, len: usize| {
        let mut word = [0; 16];
        word[..len].copy_from_slice(&key[from..from + len]);
        word
    };
    let number = |from, len| u128::from_le_bytes(part(from, len));
    let class = key[31];
    let sample = Sample {
        owner: number(0, 8) as u64,
        address: Ipv6Addr::from(part(8, 16)).to_canonical(),
        port: number(28, 2) as u16,
        protocol: key[30],
        class: if class & 1 == Class::External as u8 { Class::External } else { Class::Cluster },
        ingress: class & INGRESS != 0,
        bytes,
    };
    (sample, number(24, 4) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_decoded() {
        let mut key = [0; KEY];
        key[0] = 7;
        key[18..20].fill(0xff);
        key[20..24].copy_from_slice(&[203, 0, 113, 2]);
        key[24] = 9;
        key[28..30].copy_from_slice(&443u16.to_ne_bytes());
        (key[30], key[31]) = (6, Class::External as u8 | INGRESS);
        let (sample, epoch) = decode(&key, 1000);
        let expected = Sample {
            owner: 7,
            address: [203, 0, 113, 2].into(),
            port: 443,
            protocol: 6,
            class: Class::External,
            ingress: true,
            bytes: 1000,
        };
        assert_eq!((sample, epoch), (expected, 9));
    }
}
