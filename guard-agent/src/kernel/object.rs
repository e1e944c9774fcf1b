//! The kernel object: its maps and tracepoints through aya, and a program for each meter from its instructions.

use std::{
    collections::HashSet,
    ffi::CString,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};
use aya_obj::{Object, generated::bpf_insn};
use guard_common::parameter;
use ipnet::IpNet;

use super::sys::{self, BpfError, Hook};

/// The kernel programs, built by the build script.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard"));

/// The programs that the benchmark compares with. The agent does not use it, and so does not contain it.
pub const BENCH_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// Why the kernel object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The embedded object is broken: a bug in the build.
    #[error("the embedded kernel object is not usable: {0}")]
    Object(String),
    /// The kernel refused maps or programs.
    #[error("the kernel refused the maps")]
    Ebpf(#[from] aya::EbpfError),
    /// The kernel refused a meter's program.
    #[error("the kernel refused the meter's program")]
    Program(#[from] BpfError),
}

/// How the object is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The object file.
    pub object: &'a [u8],
    /// Entries of the maps that are indexed by slot.
    pub slots: u32,
    /// Let the programs write diagnostics for [`aya_log`]; off, the verifier removes that code.
    pub log: bool,
    /// Where the maps that outlive the agent are pinned, or opened if they are.
    pub pins: Option<&'a Pinned>,
}

/// Where maps are pinned.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The folder of the maps of this layout.
    pub layout: PathBuf,
    /// The kill switch's map.
    pub kill_switch: PathBuf,
}

/// Maps with an entry per slot. They outlive the agent.
pub const PER_SLOT: [&str; 3] = ["COUNTERS", "CONTROLS", "METERS"];

/// Each hook's map of the program that all its meters hand packets over to, and that program. They outlive the agent.
pub const POLICE: [(Hook, &str, &str); 2] =
    [(Hook::Egress, "POLICE_EGRESS", "police_egress"), (Hook::Ingress, "POLICE_INGRESS", "police_ingress")];

/// The map that outlives the agent's versions too.
pub const KILL_SWITCH: &str = "KILL_SWITCH";

/// The loaded object.
#[derive(Debug)]
pub struct Programs {
    /// Maps and tracepoint programs. Its map descriptors stand in the templates' instructions.
    pub ebpf: Ebpf,
    object: Object,
}

impl Programs {
    /// Creates or opens the maps and prepares the meters' programs.
    pub fn load(options: Options<'_>) -> Result<Self, ObjectError> {
        let Options { object, slots, log, pins } = options;
        let level = if log { aya_log::Level::Trace as u8 } else { 0 };
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, false);
        for name in PER_SLOT {
            loader.map_max_entries(name, slots);
        }
        if let Some(Pinned { layout, kill_switch }) = pins {
            for name in PER_SLOT.into_iter().chain(POLICE.map(|(_, map, _)| map)) {
                loader.map_pin_path(name, layout.join(name));
            }
            loader.map_pin_path(KILL_SWITCH, kill_switch);
        }
        let ebpf = loader.load(object)?;
        let object = relocate(object, &ebpf)?;
        Ok(Self { ebpf, object })
    }

    /// Loads a copy of a cgroup program with these parameters.
    pub fn load_program(&self, name: &str, parameters: &Parameters, hook: Hook) -> Result<OwnedFd, ObjectError> {
        let (instructions, license) = self.code(name, parameters)?;
        Ok(sys::prog_load(&instructions, &license, hook)?)
    }

    /// What the verifier says that a program takes: see [`sys::prog_statistics`].
    pub fn statistics(&self, name: &str, parameters: &Parameters, hook: Option<Hook>) -> Result<String, ObjectError> {
        let (instructions, license) = self.code(name, parameters)?;
        Ok(sys::prog_statistics(&instructions, &license, hook)?)
    }

    fn code(&self, name: &str, parameters: &Parameters) -> Result<(Vec<bpf_insn>, CString), ObjectError> {
        let program =
            self.object.programs.get(name).ok_or_else(|| ObjectError::Object(format!("no program {name}")))?;
        let function = self.object.functions.get(&program.function_key());
        let function = function.ok_or_else(|| ObjectError::Object(format!("no code for program {name}")))?;
        let mut instructions = function.instructions.clone();
        parameters.write_into(&mut instructions);
        Ok((instructions, program.license.clone()))
    }

    /// Loads the programs that the meters hand packets over to, and puts them in their places. Returns their ids.
    pub fn load_police(&self, parameters: &Parameters) -> Result<[u32; 2], ObjectError> {
        let mut ids = [0; POLICE.len()];
        for ((hook, map, name), id) in POLICE.into_iter().zip(&mut ids) {
            let program = self.load_program(name, parameters, hook)?;
            sys::program_array_set(self.map(map)?, 0, program.as_fd())?;
            *id = sys::prog_id(program.as_fd())?;
        }
        Ok(ids)
    }

    /// The ids of the programs that are in those places now; 0: none.
    pub fn police(&self) -> Result<[u32; 2], ObjectError> {
        let mut ids = [0; POLICE.len()];
        for ((_, map, _), id) in POLICE.into_iter().zip(&mut ids) {
            *id = sys::program_array_get(self.map(map)?, 0)?.unwrap_or(0);
        }
        Ok(ids)
    }

    /// A map's descriptor.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>, ObjectError> {
        let map = self.ebpf.map(name).and_then(map_data);
        map.map(|data| data.fd().as_fd()).ok_or_else(|| ObjectError::Object(format!("no map {name}")))
    }
}

/// Parses the object once more and puts the descriptors of the loaded maps into its instructions.
fn relocate(object: &[u8], ebpf: &Ebpf) -> Result<Object, ObjectError> {
    let broken = |error: &dyn std::fmt::Display| ObjectError::Object(error.to_string());
    let mut object = Object::parse(object).map_err(|e| broken(&e))?;
    let maps = std::mem::take(&mut object.maps);
    let mut relocations = Vec::with_capacity(maps.len());
    for (name, map) in &maps {
        let data = ebpf.map(name).and_then(map_data).ok_or_else(|| ObjectError::Object(format!("no map {name}")))?;
        relocations.push((name.as_str(), data.fd().as_fd().as_raw_fd(), map));
    }
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(relocations.into_iter(), &text).map_err(|e| broken(&e))?;
    object.relocate_calls(&text).map_err(|e| broken(&e))?;
    object.sanitize_functions(aya::features());
    Ok(object)
}

/// The values of the programs' [`parameter`]s.
#[derive(Clone, Debug)]
pub struct Parameters([u64; parameter::COUNT as usize]);

impl Parameters {
    /// The parameters of all meters of an agent, but for the slot. At most [`guard_common::MAX_CIDRS`] of each IP
    /// version.
    ///
    /// # Panics
    ///
    /// If there are more.
    pub fn new(cidrs: &[IpNet]) -> Self {
        let mut values = [0; parameter::COUNT as usize];
        let (mut v4, mut v6) = (0, 0);
        for cidr in cidrs {
            match cidr {
                IpNet::V4(cidr) => {
                    let word = |address: Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets()));
                    values[parameter::v4(v4, parameter::NET) as usize] = word(cidr.network());
                    values[parameter::v4(v4, parameter::MASK) as usize] = word(cidr.netmask());
                    v4 += 1;
                }
                IpNet::V6(cidr) => {
                    let (net, mask) = (cidr.network().octets(), cidr.netmask().octets());
                    for half in 0..2 {
                        let word = |bytes: &[u8; 16]| {
                            let (words, _) = bytes.as_chunks::<8>();
                            u64::from_ne_bytes(words[half])
                        };
                        values[parameter::v6(v6, parameter::NET, half as u64) as usize] = word(&net);
                        values[parameter::v6(v6, parameter::MASK, half as u64) as usize] = word(&mask);
                    }
                    v6 += 1;
                }
            }
        }
        values[parameter::V4_LEN as usize] = v4;
        values[parameter::V6_LEN as usize] = v6;
        Self(values)
    }

    /// With the mark of packets that are dropped.
    #[must_use]
    pub fn with_dropped_mark(mut self, mark: u32) -> Self {
        self.0[parameter::DROPPED_MARK as usize] = mark.into();
        self
    }

    /// The parameters of the meter with this slot.
    #[must_use]
    pub fn with_slot(mut self, slot: u32) -> Self {
        self.0[parameter::SLOT as usize] = slot.into();
        self
    }

    /// Puts the values in the place of their placeholders, each an `lddw` of 64 bits in two instructions.
    fn write_into(&self, instructions: &mut [bpf_insn]) {
        const LDDW: u8 = 0x18;
        for i in 1..instructions.len() {
            let (low, high) = (instructions[i - 1], instructions[i]);
            if low.code != LDDW || low.src_reg() != 0 {
                continue;
            }
            let constant = u64::from(low.imm as u32) | u64::from(high.imm as u32) << 32;
            if let Some(index) = parameter::index(constant) {
                instructions[i - 1].imm = self.0[index] as i32;
                instructions[i].imm = (self.0[index] >> 32) as i32;
            }
        }
    }
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::CgroupStorage(data)
        | Map::LruHashMap(data)
        | Map::ProgramArray(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
