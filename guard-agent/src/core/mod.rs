//! The pure core: what is known and what follows from it. No clock, file, runtime or kernel in here; time comes in as
//! an argument.

pub mod identity;
pub mod ledger;
pub mod usage;
