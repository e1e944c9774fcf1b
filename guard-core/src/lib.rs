//! The pure core: what is known and what follows from it. No clock, file, runtime or kernel in here; time comes in as
//! an argument, decisions go out as values.

#![forbid(unsafe_code)]

pub mod baseline;
pub mod breach;
pub mod identity;
pub mod ledger;
pub mod policy;
pub mod quota;
pub mod units;
pub mod usage;
