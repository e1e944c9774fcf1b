//! The whole product on a whole node. `cargo xtask node` runs these, one after the other on one node.

mod base;
mod budget;
mod bypass;
mod faults;
mod hardened;
mod kill_switch;
mod names;
mod replaced;
mod rollout;
mod rough;
