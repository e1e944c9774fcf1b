//! The node's cgroup tree: where it is mounted, where the pods are, what is in it; and the interfaces that pods have.

pub mod hierarchy;
mod netlink;
mod processes;
pub mod tree;
pub mod uplinks;
