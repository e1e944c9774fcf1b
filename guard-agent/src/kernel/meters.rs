//! The meters in the kernel: their programs, links, counters and records.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::Array,
    programs::{ProgramError, RawTracePoint},
};
use guard_common::{Counters, MeterRecord, Totals};
use ipnet::IpNet;

use super::{
    controls::Controls,
    events::{KernelEvents, KernelLog},
    evidence::{self, Sample},
    object::{OBJECT, ObjectError, Options, Parameters, Programs},
    pins::{PinError, Pins},
    record,
    sys::{self, BpfError, Hook, ProgStats},
};
use crate::core::ledger::{Record, Slot};

/// Why a meter could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// Maps or programs were refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A pin could not be made or removed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A call failed.
    #[error("{what}: {cause}")]
    Bpf {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        cause: BpfError,
    },
    /// The record of a slot could not be read or written.
    #[error("cannot {what} the record of slot {slot}: {cause}")]
    Record {
        /// What was tried.
        what: &'static str,
        /// On which.
        slot: u32,
        /// What the kernel answered.
        cause: aya::maps::MapError,
    },
    /// A tracepoint program was refused.
    #[error("cannot attach to the tracepoint {name}: {cause}")]
    Tracepoint {
        /// Which.
        name: &'static str,
        /// What the kernel answered.
        cause: ProgramError,
    },
    /// The controls cannot be mapped into memory.
    #[error("cannot map the meters' controls into memory: {0}")]
    Controls(io::Error),
    /// How many CPUs there may be is not known.
    #[error("cannot read {0}: {1}")]
    Cpus(&'static str, io::Error),
}

impl MeterError {
    /// The cgroup was removed while it was being attached to.
    pub fn cgroup_gone(&self) -> bool {
        matches!(self, Self::Bpf { cause, .. } if matches!(cause.cause.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)))
    }
}

fn bpf_error(what: &'static str) -> impl FnOnce(BpfError) -> MeterError {
    move |cause| MeterError::Bpf { what, cause }
}

/// Most bytes of counters that are read at once.
const READ_BUFFER: usize = 1 << 20;

/// The links of a meter. Dropping them leaves a pinned meter in place.
#[derive(Debug)]
pub struct Links {
    egress: OwnedFd,
    ingress: OwnedFd,
}

/// Everything in the kernel that is the agent's.
#[derive(Debug)]
pub struct Meters {
    programs: Programs,
    parameters: Parameters,
    /// Limits and containments.
    pub controls: Controls,
    pins: Pins,
    /// Each slot's programs, egress and ingress, once it was used: they are the same for every owner.
    loaded: Vec<Option<[OwnedFd; 2]>>,
    /// The ids of the police programs.
    police: [u32; 2],
    cpus: usize,
    keys: Vec<u32>,
    values: Vec<u8>,
}

impl Meters {
    /// Loads the object with room for `meters` containers and the node. Counters and records that are pinned are
    /// taken over.
    pub fn load(pins: Pins, cidrs: &[IpNet], meters: u32, log: bool) -> Result<Self, MeterError> {
        let slots = meters + 1;
        let programs = Programs::load(Options { object: OBJECT, slots, log, pins: Some(&pins.maps()) })?;
        let controls = Controls::open(programs.map("CONTROLS")?, slots).map_err(MeterError::Controls)?;
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| MeterError::Cpus(file, error))?;
        let loaded = (0..slots).map(|_| None).collect();
        let parameters = Parameters::new(cidrs).with_dropped_mark(controls.dropped_mark());
        let police = programs.load_police(&parameters)?;
        Ok(Self { programs, parameters, controls, pins, loaded, police, cpus, keys: Vec::new(), values: Vec::new() })
    }

    /// How many CPUs there may be.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// Starts to receive the programs' events.
    pub fn events(&mut self) -> Result<KernelEvents, MeterError> {
        for name in ["cgroup_mkdir", "cgroup_rmdir"] {
            let failed = |cause| MeterError::Tracepoint { name, cause };
            let program = self.programs.ebpf.program_mut(name);
            let program = program.ok_or_else(|| ObjectError::Object(format!("no program {name}")))?;
            let program: &mut RawTracePoint = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            program.attach(name).map_err(failed)?;
        }
        Ok(KernelEvents::new(&mut self.programs.ebpf)?)
    }

    /// Starts to receive the programs' diagnostics.
    pub fn log(&mut self) -> Result<KernelLog, MeterError> {
        Ok(KernelLog::new(&mut self.programs.ebpf)?)
    }

    /// Attaches the slot's programs to a cgroup. On an error nothing stays attached.
    pub fn attach(&mut self, slot: Slot, cgroup: &File) -> Result<Links, MeterError> {
        let [egress, ingress] = Hook::ALL.map(|hook| -> Result<OwnedFd, MeterError> {
            let program = self.program(slot, hook)?;
            sys::link_create(program, cgroup.as_fd(), hook).map_err(bpf_error("cannot attach to the cgroup"))
        });
        let links = Links { egress: egress?, ingress: ingress? };
        let pinned = self.pins.pin_link(slot, Hook::Egress, &links.egress);
        if let Err(error) = pinned.and_then(|()| self.pins.pin_link(slot, Hook::Ingress, &links.ingress)) {
            self.unpin(slot)?;
            return Err(error.into());
        }
        Ok(links)
    }

    /// Takes over the links that an earlier agent pinned for a slot, if they are attached to this cgroup, and puts
    /// this agent's programs into them. `None`: there are none; whatever was pinned in their place is gone.
    pub fn adopt(&mut self, slot: Slot, cgroup_id: u64) -> Result<Option<Links>, MeterError> {
        let mut links = Vec::with_capacity(2);
        for hook in Hook::ALL {
            let Some(link) = self.pins.open_link(slot, hook)? else { break };
            let cgroup = sys::link_cgroup(link.as_fd()).map_err(bpf_error("cannot read a pinned link"))?;
            if cgroup != Some(cgroup_id) {
                break;
            }
            let program = self.program(slot, hook)?;
            match sys::link_update(link.as_fd(), program) {
                Ok(()) => links.push(link),
                // The cgroup was released between the two calls.
                Err(error) if error.cause.raw_os_error() == Some(libc::ENOLINK) => break,
                Err(error) => return Err(bpf_error("cannot put a new program into a pinned link")(error)),
            }
        }
        let Ok([egress, ingress]) = <[OwnedFd; 2]>::try_from(links) else {
            self.unpin(slot)?;
            return Ok(None);
        };
        Ok(Some(Links { egress, ingress }))
    }

    /// Whether the kernel has released the cgroup of a meter: it was removed, no socket of it is left, and its
    /// counters will never move again.
    pub fn released(&self, links: &Links) -> Result<bool, MeterError> {
        for link in [&links.egress, &links.ingress] {
            if sys::link_cgroup(link.as_fd()).map_err(bpf_error("cannot read a link"))?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts right what somebody else has done to the links of a meter whose cgroup is there: attaches again what is
    /// detached, and puts this agent's program back where there is another. Returns whether there was anything to do.
    pub fn mend(&mut self, slot: Slot, links: &mut Links, cgroup: &File) -> Result<bool, MeterError> {
        let mut mended = false;
        for (hook, link) in Hook::ALL.into_iter().zip([&mut links.egress, &mut links.ingress]) {
            let attached = sys::link_cgroup(link.as_fd()).map_err(bpf_error("cannot read a link"))?.is_some();
            let runs = sys::link_program(link.as_fd()).map_err(bpf_error("cannot read a link"))?;
            let program = self.program(slot, hook)?;
            if !attached {
                let again = sys::link_create(program, cgroup.as_fd(), hook);
                *link = again.map_err(bpf_error("cannot attach to the cgroup"))?;
                self.pins.pin_link(slot, hook, link)?;
            } else if runs != sys::prog_id(program).map_err(bpf_error("cannot read a program"))? {
                let put_back = sys::link_update(link.as_fd(), program);
                put_back.map_err(bpf_error("cannot put the program back into a link"))?;
            } else {
                continue;
            }
            mended = true;
        }
        Ok(mended)
    }

    /// Puts the police programs back if somebody else has taken them away. Returns whether there was anything to do.
    pub fn mend_police(&mut self) -> Result<bool, MeterError> {
        if self.programs.police()? == self.police {
            return Ok(false);
        }
        self.police = self.programs.load_police(&self.parameters)?;
        Ok(true)
    }

    /// Detaches a meter. A packet that is on its way may still be counted until the kernel's next grace period.
    pub fn detach(&mut self, slot: Slot, links: &Links) -> Result<(), MeterError> {
        for link in [&links.egress, &links.ingress] {
            sys::link_detach(link.as_fd()).map_err(bpf_error("cannot detach a link"))?;
        }
        self.unpin(slot)
    }

    /// Removes the pins of a slot whose cgroup is released.
    pub fn unpin(&self, slot: Slot) -> Result<(), MeterError> {
        Ok(Hook::ALL.into_iter().try_for_each(|hook| self.pins.unpin_link(slot, hook))?)
    }

    /// Whether a slot's programs are loaded.
    pub fn is_loaded(&self, slot: Slot) -> bool {
        self.loaded[slot.0 as usize].is_some()
    }

    /// Loads a slot's programs, if they are not yet: what takes longest of making a meter.
    pub fn load_programs(&mut self, slot: Slot) -> Result<(), MeterError> {
        if !self.is_loaded(slot) {
            let parameters = self.parameters.clone().with_slot(slot.0);
            let [egress, ingress] = Hook::ALL.map(|hook| self.programs.load_program(hook.program(), &parameters, hook));
            self.loaded[slot.0 as usize] = Some([egress?, ingress?]);
        }
        Ok(())
    }

    fn program(&mut self, slot: Slot, hook: Hook) -> Result<std::os::fd::BorrowedFd<'_>, MeterError> {
        self.load_programs(slot)?;
        let programs = self.loaded[slot.0 as usize].as_ref().map(|[egress, ingress]| match hook {
            Hook::Egress => egress.as_fd(),
            Hook::Ingress => ingress.as_fd(),
        });
        programs.ok_or_else(|| ObjectError::Object("no program for the slot".into()).into())
    }

    /// Reads the counters of `count` slots from `first` on, in the order of their index, each summed over all CPUs.
    pub fn read(&mut self, first: u32, count: u32) -> Result<Vec<Totals>, MeterError> {
        let stride = size_of::<Counters>() * self.cpus;
        // A machine with many CPUs has much to read: in parts, so that the buffer stays small.
        let part = (READ_BUFFER / stride).clamp(1, count.max(1) as usize);
        if self.keys.len() < part {
            self.keys.resize(part, 0);
            self.values.resize(part * stride, 0);
        }
        let counters = self.programs.map("COUNTERS")?;
        let mut totals = Vec::with_capacity(count as usize);
        while totals.len() < count as usize {
            let (first, part) = (first + totals.len() as u32, part.min(count as usize - totals.len()));
            sys::array_lookup_batch(counters, first, part as u32, stride, &mut self.keys, &mut self.values)
                .map_err(bpf_error("cannot read the counters"))?;
            totals.extend(self.values[..part * stride].chunks_exact(stride).map(sum));
        }
        Ok(totals)
    }

    /// Reads the records of all slots.
    pub fn records(&self) -> Result<Vec<Record>, MeterError> {
        let map = self.records_map()?;
        let records = (0..self.loaded.len() as u32).map(|slot| {
            let pinned = map.get(&slot, 0).map_err(|cause| MeterError::Record { what: "read", slot, cause })?;
            Ok(record::decode(&pinned.0))
        });
        records.collect()
    }

    /// Writes the record of a slot, in one step.
    pub fn write_record(&mut self, slot: Slot, record: &Record) -> Result<(), MeterError> {
        let failed = |cause| MeterError::Record { what: "write", slot: slot.0, cause };
        let map = self.programs.ebpf.map_mut("METERS");
        let map = map.ok_or_else(|| ObjectError::Object("no map METERS".into()))?;
        let mut map: Array<_, PodRecord> = Array::try_from(map).map_err(failed)?;
        map.set(slot.0, PodRecord(record::encode(record)), 0).map_err(failed)
    }

    fn records_map(&self) -> Result<Array<&aya::maps::MapData, PodRecord>, MeterError> {
        let failed = |cause| MeterError::Record { what: "find", slot: 0, cause };
        let map = self.programs.ebpf.map("METERS");
        let map = map.ok_or_else(|| ObjectError::Object("no map METERS".into()))?;
        Array::try_from(map).map_err(failed)
    }

    /// Where the bytes of all containers went in the last one to two minutes.
    pub fn evidence(&self, now: u64) -> Result<Vec<Sample>, MeterError> {
        Ok(evidence::read(&self.programs, now)?)
    }

    /// Events that found no room in the ring buffer, ever.
    pub fn events_lost(&self) -> Result<u64, MeterError> {
        let failed = |cause| MeterError::Record { what: "find", slot: 0, cause };
        let map = self.programs.ebpf.map("EVENTS_LOST");
        let map = map.ok_or_else(|| ObjectError::Object("no map EVENTS_LOST".into()))?;
        Array::<_, u64>::try_from(map).and_then(|map| map.get(&0, 0)).map_err(failed)
    }

    /// The statistics of all meters' programs, egress and ingress.
    pub fn program_stats(&self) -> Result<[ProgStats; 2], MeterError> {
        let mut sums = [ProgStats::default(); 2];
        for programs in self.loaded.iter().flatten() {
            for (sum, program) in sums.iter_mut().zip(programs) {
                let stats =
                    sys::prog_stats(program.as_fd()).map_err(bpf_error("cannot read a program's statistics"))?;
                sum.runs += stats.runs;
                sum.run_nanos += stats.run_nanos;
            }
        }
        Ok(sums)
    }
}

/// Whether the kernel times every run of a program (`kernel.bpf_stats_enabled`).
pub fn stats_enabled() -> bool {
    std::fs::read_to_string(Path::new("/proc/sys/kernel/bpf_stats_enabled")).is_ok_and(|on| on.trim() == "1")
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodRecord(MeterRecord);
// SAFETY: integers without padding (asserted by its size), for which every bit pattern is a value.
unsafe impl aya::Pod for PodRecord {}

/// Sums a slot's counters, as they are read from the map, over its CPUs.
pub fn sum(cpus: &[u8]) -> Totals {
    const WORDS: usize = size_of::<Counters>() / 8;
    const LANE: usize = WORDS / 2;
    const TALLY: usize = size_of::<guard_common::Tally>() / 8;
    let mut words = [0u64; WORDS];
    let (values, _) = cpus.as_chunks::<8>();
    for (index, value) in values.iter().enumerate() {
        // The rest of a lane is not for summing up.
        if index % LANE < TALLY {
            words[index % WORDS] += u64::from_ne_bytes(*value);
        }
    }
    let tally =
        |lane: &[u64]| guard_common::Tally { bytes: [lane[0], lane[1]], packets: [lane[2], lane[3]], other: lane[4] };
    Totals { egress: tally(&words[..LANE]), ingress: tally(&words[LANE..]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_counters_are_summed_over_all_cpus() {
        let mut words: Vec<u64> = (0..48).collect();
        // What the programs keep beside the counts may be anything.
        words.iter_mut().skip(7).step_by(8).for_each(|word| *word = u64::MAX);
        let words: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        let totals = sum(&words);
        // Three CPUs of 16 words each: word i is i + (i + 16) + (i + 32).
        assert_eq!((totals.egress.bytes, totals.egress.packets, totals.dropped()), ([48, 51], [54, 57], 60));
        assert_eq!((totals.ingress.bytes, totals.ingress.packets), ([72, 75], [78, 81]));
    }
}
