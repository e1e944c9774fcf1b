//! Egress Guard's kernel programs: the packet path and the cgroup events.
//!
//! The binaries only name the entry points; all they do is here, so that the benchmark measures the very code that
//! the agent runs.

#![no_std]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "core::sync::atomic has no fetch_add for this target")]

pub mod atomic;
pub mod cgroup;
pub mod maps;
pub mod meter;
mod packet;
mod parameter;
pub mod police;
mod tokens;
