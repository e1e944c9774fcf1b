//! What an agent keeps across restarts, as the bytes of a file.
//!
//! One line that says what it is, how long and with which checksum, and then JSON: somebody who has to know why an
//! agent thinks what it thinks can read it, and a field that a later version adds does not make the file foreign. JSON
//! has no infinities: floats that are not finite do not come back.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How a state file begins.
const MAGIC: &str = "egress-guard-state";

/// Of the first line and of what stands around the state. What is in the state is the caller's business.
const VERSION: u32 = 1;

/// A state, and when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept<T> {
    /// The kernel's boot id at that time: instants of `CLOCK_BOOTTIME` in the state mean nothing in another boot.
    pub boot_id: String,
    /// Wall clock: nanoseconds since 1970.
    pub written: u64,
    /// `CLOCK_BOOTTIME` nanoseconds of the same instant.
    pub at: u64,
    /// What was kept.
    pub state: T,
}

/// Why bytes are not a state, or a state no bytes.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file was not written to its end.
    #[error("it is torn: {there} of its {length} bytes are there")]
    Torn {
        /// What is there of the state, in bytes.
        there: usize,
        /// What should be.
        length: usize,
    },
    /// Not even the first line is whole.
    #[error("it is torn in its first line")]
    TornHead,
    /// Something else than a state file.
    #[error("it is no state file of an agent")]
    Foreign,
    /// Of another program's version.
    #[error("it is of version {0}, and this agent knows version {VERSION}")]
    Version(u32),
    /// As long as it should be, but not what was written.
    #[error("it is damaged: its checksum is another")]
    Damaged,
    /// Whole, but not what this agent keeps.
    #[error("it is whole, but holds something else than this agent keeps: {0}")]
    Form(serde_json::Error),
    /// The state has a form that JSON does not have, such as a map whose keys are not text or numbers.
    #[error("cannot write the state as JSON: {0}")]
    Encode(serde_json::Error),
}

/// A state as bytes.
pub fn encode<T: Serialize>(kept: &Kept<T>) -> Result<Vec<u8>, StateError> {
    let json = serde_json::to_vec(kept).map_err(StateError::Encode)?;
    let mut bytes = format!("{MAGIC} {VERSION} {} {:08x}\n", json.len(), crc32fast::hash(&json)).into_bytes();
    bytes.extend(json);
    Ok(bytes)
}

/// The state of bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Kept<T>, StateError> {
    let magic = bytes.len().min(MAGIC.len());
    if bytes[..magic] != MAGIC.as_bytes()[..magic] {
        return Err(StateError::Foreign);
    }
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or(StateError::TornHead)?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let (length, checksum) = decode_head(head)?;
    match json.len() {
        there if there < length => Err(StateError::Torn { there, length }),
        there if there > length || crc32fast::hash(json) != checksum => Err(StateError::Damaged),
        _ => serde_json::from_slice(json).map_err(StateError::Form),
    }
}

/// Length and checksum.
fn decode_head(head: &[u8]) -> Result<(usize, u32), StateError> {
    let head = str::from_utf8(head).map_err(|_| StateError::Foreign)?;
    let mut words = head.strip_prefix(MAGIC).ok_or(StateError::Foreign)?.split_whitespace();
    let mut word = || words.next().ok_or(StateError::Foreign);
    let version = word()?.parse().map_err(|_| StateError::Foreign)?;
    if version != VERSION {
        return Err(StateError::Version(version));
    }
    let length = word()?.parse().map_err(|_| StateError::Foreign)?;
    let checksum = u32::from_str_radix(word()?, 16).map_err(|_| StateError::Foreign)?;
    Ok((length, checksum))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type State = BTreeMap<String, (u64, f64)>;

    fn kept() -> Kept<State> {
        let state = [("web".to_owned(), (u64::MAX, 0.1 + 0.2)), ("ü\n".to_owned(), (0, 1.7e308))];
        Kept { boot_id: "b0".into(), written: 1_700_000_000_000_000_000, at: 77, state: state.into() }
    }

    #[test]
    fn what_is_kept_comes_back_to_the_last_bit() {
        let bytes = encode(&kept()).expect("bytes");
        assert_eq!(decode::<State>(&bytes).expect("a state"), kept());
    }

    #[test]
    fn torn_at_any_byte_is_said_to_be_torn() {
        let bytes = encode(&kept()).expect("bytes");
        for end in 0..bytes.len() {
            let error = decode::<State>(&bytes[..end]).expect_err("torn");
            assert!(matches!(error, StateError::Torn { .. } | StateError::TornHead), "{end}: {error}");
        }
    }

    #[test]
    fn no_changed_bit_goes_unseen() {
        let bytes = encode(&kept()).expect("bytes");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A letter of the checksum in capitals says the same.
            assert!(decode::<State>(&changed).map_or(true, |state| state == kept()), "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_state_says_what_it_is() {
        let whole = String::from_utf8(encode(&kept()).expect("bytes")).expect("text");
        let cases = [
            ("{}".into(), "it is no state file of an agent"),
            ("egress-guard-state\n".into(), "it is no state file of an agent"),
            ("egress-guard-state 1 lots ff\n".into(), "it is no state file of an agent"),
            (whole.replacen(" 1 ", " 2 ", 1), "it is of version 2, and this agent knows version 1"),
            (format!("{whole} "), "it is damaged: its checksum is another"),
            (whole.replacen("b0", "b1", 1), "it is damaged: its checksum is another"),
        ];
        for (text, expected) in cases {
            assert_eq!(decode::<State>(text.as_bytes()).expect_err(expected).to_string(), expected, "{text}");
        }
        let error = decode::<BTreeMap<String, bool>>(whole.as_bytes()).expect_err("another form").to_string();
        assert!(error.starts_with("it is whole, but holds something else than this agent keeps: "), "{error}");
    }
}
