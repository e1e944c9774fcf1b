//! The kill switch: a pinned map that the meters' programs read with every packet they hold back, whether an agent runs,
//! hangs or is dead. Nothing here takes the agent's lock on the pins' folder.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use guard_common::{Engagement, SOURCES, WHO};
use serde::{Deserialize, Serialize};

use super::{
    pins::{self, PinError},
    sys::{self, BpfError},
};

const VALUE: usize = size_of::<Engagement>();

/// Why the kill switch cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KillSwitchError {
    /// Its folder or its pin could not be made or opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Something else is pinned in its place.
    #[error(
        "{0} is no kill switch of this program: stop what uses it and remove it (rm {0}), or pass another --bpffs. \
         Nothing was engaged or released"
    )]
    Foreign(PathBuf),
    /// A call failed.
    #[error("cannot {what} the kill switch {path}: {cause}")]
    Bpf {
        /// What was tried.
        what: &'static str,
        /// Its pin.
        path: PathBuf,
        /// What the kernel answered.
        cause: BpfError,
    },
}

/// Who can engage it, each on its own: the index of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Root on this node: the command or the socket.
    Operator,
    /// `killSwitch` in the configuration's file.
    File,
    /// The cluster's operator, for many nodes.
    Cluster,
}

/// That a source has engaged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engaged {
    /// Since when.
    pub since: SystemTime,
    /// Who did it. At most [`WHO`] bytes of it are kept, on one line.
    pub who: String,
}

/// All entries, by the index of their source; the last has none in this version.
pub type Engagements = [Option<Engaged>; SOURCES as usize];

/// The pinned map.
#[derive(Debug)]
pub struct KillSwitch {
    map: OwnedFd,
    path: PathBuf,
}

impl KillSwitch {
    /// Opens the kill switch in the pins' folder. If there is none yet, it is made, with folder and bpffs if need be;
    /// what is `remembered` then holds from the start, so that a reboot, which takes bpffs away, does not release it.
    pub fn open(root: &Path, remembered: &[(Source, Engaged)]) -> Result<Self, KillSwitchError> {
        pins::make_folder(root)?;
        if let Some(found) = Self::existing(root)? {
            return Ok(found);
        }
        let path = pins::kill_switch(root);
        let failed = |what, cause| KillSwitchError::Bpf { what, path: path.clone(), cause };
        let map = sys::array_create(VALUE as u32, SOURCES).map_err(|cause| failed("make", cause))?;
        let new = Self { map, path: path.clone() };
        for (source, engaged) in remembered {
            new.set(*source, encode(engaged))?;
        }
        match sys::obj_pin(new.map.as_fd(), &pins::c_path(&path)) {
            Ok(()) => Ok(new),
            // Another process may have been as quick.
            Err(cause) => Self::existing(root)?.ok_or_else(|| failed("pin", cause)),
        }
    }

    /// Opens the kill switch if there is one, and makes nothing.
    pub fn existing(root: &Path) -> Result<Option<Self>, KillSwitchError> {
        let path = pins::kill_switch(root);
        let Some(map) = pins::open(&path)? else { return Ok(None) };
        match sys::map_info(map.as_fd()) {
            Ok(info) if info.is_array(VALUE as u32, SOURCES) => Ok(Some(Self { map, path })),
            Ok(_) => Err(KillSwitchError::Foreign(path)),
            Err(cause) => Err(KillSwitchError::Bpf { what: "look at", path, cause }),
        }
    }

    /// Engages it for a source. If that has engaged it already, since when stays, and `who` is the last.
    pub fn engage(&self, source: Source, who: &str) -> Result<(), KillSwitchError> {
        let before = self.engagements()?[source as usize].take();
        let since = before.map_or_else(SystemTime::now, |engaged| engaged.since);
        self.set(source, encode(&Engaged { since, who: who.to_owned() }))
    }

    /// Takes back a source's engagement. It stays engaged if another source says so.
    pub fn release(&self, source: Source) -> Result<(), KillSwitchError> {
        self.set(source, [0; VALUE])
    }

    /// Who has engaged it. It is engaged if anybody has.
    pub fn engagements(&self) -> Result<Engagements, KillSwitchError> {
        let values = self.read().map_err(|cause| self.failed("read", cause))?;
        let (values, _) = values.as_chunks();
        Ok(std::array::from_fn(|index| decode(&values[index])))
    }

    /// Whether anybody has engaged it: one call, to be asked before every action. If the kernel does not say, it is:
    /// then nothing is touched.
    pub fn engaged(&self) -> bool {
        self.engagements().map_or(true, |by| by.iter().any(Option::is_some))
    }

    fn read(&self) -> Result<[u8; VALUE * SOURCES as usize], BpfError> {
        let (mut keys, mut values) = ([0; SOURCES as usize], [0; VALUE * SOURCES as usize]);
        sys::array_lookup_batch(&self.map, 0, SOURCES, VALUE, &mut keys, &mut values)?;
        Ok(values)
    }

    fn set(&self, source: Source, value: [u8; VALUE]) -> Result<(), KillSwitchError> {
        sys::array_set(self.map.as_fd(), source as u32, &value).map_err(|cause| self.failed("write", cause))
    }

    fn failed(&self, what: &'static str, cause: BpfError) -> KillSwitchError {
        KillSwitchError::Bpf { what, path: self.path.clone(), cause }
    }
}

const SINCE: usize = size_of::<u64>();
const _: () = assert!(std::mem::offset_of!(Engagement, who) == SINCE);

/// What the map holds for an engagement: who did it as one line, and as much of it as there is room for.
fn encode(engaged: &Engaged) -> [u8; VALUE] {
    let Engaged { since, who } = engaged;
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let who: String = who.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let who = &who[..who.floor_char_boundary(WHO)];
    let mut value = [0; VALUE];
    // 0 means that it is not engaged.
    value[..SINCE].copy_from_slice(&since.max(1).to_ne_bytes());
    value[SINCE..][..who.len()].copy_from_slice(who.as_bytes());
    value
}

fn decode(value: &[u8; VALUE]) -> Option<Engaged> {
    let (since, who) = value.split_first_chunk::<SINCE>()?;
    let since = u64::from_ne_bytes(*since);
    let who = who.split(|&byte| byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default();
    (since != 0).then(|| Engaged { since: UNIX_EPOCH + Duration::from_nanos(since), who: who.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(who: &str) -> String {
        decode(&encode(&Engaged { since: SystemTime::now(), who: who.into() })).expect("it is engaged").who
    }

    #[test]
    fn an_engagement_comes_back_as_it_was() {
        let since = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let engaged = Engaged { since, who: "root (uid 0): Übung".into() };
        assert_eq!(decode(&encode(&engaged)), Some(engaged));
        assert_eq!(decode(&[0; VALUE]), None);
    }

    #[test]
    fn even_without_a_clock_it_is_engaged() {
        let engaged = Engaged { since: UNIX_EPOCH, who: String::new() };
        assert!(decode(&encode(&engaged)).is_some());
    }

    #[test]
    fn who_is_cut_between_characters_and_stays_on_its_line() {
        assert_eq!(kept(&"x".repeat(WHO)), "x".repeat(WHO));
        assert_eq!(kept(&"x".repeat(WHO + 1)), "x".repeat(WHO));
        assert_eq!(kept(&format!("{}é", "x".repeat(WHO - 1))), "x".repeat(WHO - 1));
        assert_eq!(kept("a\nb\0c\u{1b}[2J"), "a b c [2J");
    }
}
