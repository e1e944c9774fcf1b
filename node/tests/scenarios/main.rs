//! The whole product on a whole node. `cargo xtask node` runs these, one after the other on one node.

mod base;
mod names;
mod replaced;
