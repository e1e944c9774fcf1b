//! The pinned form of a slot's record.

use guard_common::{MeterRecord, RECORD_PATH};

use crate::core::{
    identity::{self, Labels},
    ledger::{Owner, Record},
};

/// What the map holds for a record. A path that does not fit is left out, and the record ends with its agent.
pub fn encode(record: &Record) -> MeterRecord {
    let Record { owner, base, carry, foreign, absorbed } = record;
    let mut pinned = MeterRecord {
        cgroup_id: 0,
        since: 0,
        gone: 0,
        absorbed: *absorbed,
        base: *base,
        carry: *carry,
        foreign: *foreign,
        extra: 0,
        path_len: 0,
        path: [0; RECORD_PATH],
    };
    if let Some(Owner { cgroup_id, path, extra, since, gone, identity: _, labels: _ }) = owner {
        pinned.cgroup_id = *cgroup_id;
        pinned.since = *since;
        pinned.gone = gone.unwrap_or(0);
        pinned.extra = u32::from(*extra);
        if let Some(room) = pinned.path.get_mut(..path.len()) {
            room.copy_from_slice(path.as_bytes());
            pinned.path_len = path.len() as u32;
        }
    }
    pinned
}

/// The record that the map holds.
pub fn decode(pinned: &MeterRecord) -> Record {
    let MeterRecord { cgroup_id, since, gone, absorbed, base, carry, foreign, extra, path_len, path } = pinned;
    let path = path.get(..*path_len as usize).map(String::from_utf8_lossy).unwrap_or_default();
    let extra = *extra != 0;
    let owner = (*cgroup_id != 0).then(|| {
        let identity =
            if extra { identity::extra_container(&path) } else { identity::container(&path).unwrap_or_default() };
        let labels = Labels::of(&identity, extra, &path);
        let gone = (*gone != 0).then_some(*gone);
        Owner { cgroup_id: *cgroup_id, path: path.into_owned(), extra, since: *since, gone, identity, labels }
    });
    Record { owner, base: *base, carry: *carry, foreign: *foreign, absorbed: *absorbed }
}

#[cfg(test)]
mod tests {
    use guard_common::Totals;

    use super::*;

    fn record(path: &str, extra: bool) -> Record {
        let identity =
            if extra { identity::extra_container(path) } else { identity::container(path).unwrap_or_default() };
        let labels = Labels::of(&identity, extra, path);
        let (base, carry, foreign) = (totals(1), totals(2), totals(3));
        let owner = Owner { cgroup_id: 77, path: path.into(), extra, since: 5, gone: Some(9), identity, labels };
        Record { owner: Some(owner), base, carry, foreign, absorbed: 4 }
    }

    fn totals(n: u64) -> Totals {
        let mut totals = Totals::default();
        (totals.egress.bytes, totals.ingress.packets) = ([n, n + 1], [n + 2, n + 3]);
        totals
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let id = "5".repeat(64);
        let paths = [
            (format!("kubepods.slice/kubepods-pod12345678_9abc.slice/crio-{id}.scope"), false),
            (format!("kubelet/kubepods/besteffort/pod12345678-9abc/{id}"), false),
            ("system.slice/ssh.service".to_owned(), true),
        ];
        for (path, extra) in paths {
            assert_eq!(decode(&encode(&record(&path, extra))), record(&path, extra));
        }
        assert_eq!(decode(&encode(&Record::default())), Record::default());
    }

    #[test]
    fn a_path_that_does_not_fit_is_left_out() {
        let back = decode(&encode(&record(&"x".repeat(RECORD_PATH + 1), true)));
        assert_eq!(back.owner.map(|owner| (owner.cgroup_id, owner.path)), Some((77, String::new())));
    }
}
