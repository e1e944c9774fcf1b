//! The only place that names kube: what the agent and its verbs ask of a Kubernetes API server, and tell it.

#![forbid(unsafe_code)]

pub mod connect;
