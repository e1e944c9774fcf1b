//! A soak of the agent on a whole node: what is done to it, and what must hold all the while.
//!
//! This library is pure: [`plan`] makes a sequence of steps out of a seed, [`books`] and [`reading`] read what the agent and
//! the guest say, [`invariants`] finds what is wrong with it ([`violation`]). The program `soak` does the steps and reads the guest;
//! `cargo xtask soak` makes all that it takes.

pub mod books;
pub mod evictions;
pub mod invariants;
pub mod leaks;
pub mod plan;
pub mod reading;
pub mod violation;
pub mod wire;
