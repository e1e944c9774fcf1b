//! A real Kubernetes API server with its controllers, and what else a test of the agent needs of a cluster: nodes whose pods
//! come up without a kubelet, workloads, budgets, identities, and what the API server was asked.
//!
//! `cargo xtask e2e` builds the servers and runs these tests. Everything that a [`ControlPlane`] starts and writes is gone when
//! it is dropped, and also when its test process is killed.

pub mod audit;
mod component;
pub mod control_plane;
mod credentials;
pub mod kubelet;
pub mod objects;
pub mod space;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub use audit::Request;
pub use control_plane::{ControlPlane, Options};
pub use kubelet::{Behaviour, Kubelet};
pub use space::Space;

/// Tries until it holds, for at most `limit`; the error says what was seen last.
pub async fn eventually<T>(what: &str, limit: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        // An API server that is stopped answers never.
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
        let result = match tokio::time::timeout(left, attempt()).await {
            Ok(result) => result,
            Err(_elapsed) => Err(anyhow::anyhow!("the last attempt came to no end")),
        };
        match result {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => return Err(error).context(format!("not within {limit:?}: {what}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
