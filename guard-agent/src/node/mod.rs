//! The node's cgroup tree: where it is mounted, where the pods are, what is in it.

pub mod hierarchy;
pub mod tree;
