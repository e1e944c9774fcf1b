//! The only place that names kube: what the agent and its verbs ask of a Kubernetes API server, and tell it.

#![forbid(unsafe_code)]

pub mod audit;
mod backoff;
pub mod config_map;
pub mod connect;
pub mod convert;
pub mod events;
pub mod evict;
mod flag;
#[cfg(test)]
mod mock;
mod owners;
pub mod pods;
