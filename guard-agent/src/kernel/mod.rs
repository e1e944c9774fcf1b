//! The only place that names aya, and the only one with `unsafe`: maps, programs, links and pins.

#![expect(unsafe_code, reason = "the bpf(2) calls that aya does not offer, and plain data from and to maps")]

pub mod controls;
pub mod events;
pub mod evidence;
pub mod kill_switch;
pub mod meters;
pub mod object;
pub mod pins;
pub mod probe;
pub mod record;
pub mod sys;
