//! The pure core: what is known and what follows from it. No clock, file, runtime or kernel in here; time comes in as
//! an argument, decisions go out as values.

#![forbid(unsafe_code)]

pub mod audit;
pub mod baseline;
pub mod breach;
pub mod bucket;
pub mod budget;
pub mod bypass;
pub mod config;
pub mod detect;
pub mod event;
pub mod fleet;
pub mod identity;
pub mod inventory;
pub mod judge;
pub mod ledger;
pub mod overrides;
pub mod policy;
pub mod quota;
pub mod relapse;
pub mod replay;
pub mod roster;
pub mod safety;
pub mod state;
pub mod trace;
pub mod units;
pub mod usage;
pub mod verdict;
pub mod watch;
