//! Egress Guard's node agent. ARCHITECTURE.md has the map.

#![deny(unsafe_code)]

pub mod agent;
mod alerts;
pub mod audit;
pub mod breaches;
pub mod check_config;
pub mod client;
pub mod clock;
pub mod config;
mod fleet;
pub mod guard;
pub mod http;
pub mod kernel;
pub mod kill_switch;
pub mod metrics;
pub mod node;
pub mod orchestrator;
pub mod record;
pub mod reload;
pub mod simulate;
pub mod snapshot;
pub mod state_file;
pub mod trace_stream;
mod watching;
pub mod webhook;

pub use guard_core as core;
