//! A real Kubernetes API server with its controllers, and what else a test of the agent needs of a cluster: nodes whose pods
//! come up without a kubelet, workloads, budgets, identities, and what the API server was asked.
//!
//! `cargo xtask e2e` builds the servers and runs these tests. Everything that a [`ControlPlane`] starts and writes is gone when
//! it is dropped, and also when its test process is killed.

pub mod arguments;
pub mod audit;
mod component;
pub mod control_plane;
pub mod credentials;
pub mod fleet;
pub mod installation;
pub mod kubelet;
pub mod objects;
pub mod proxy;
pub mod space;
pub mod stage;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

pub use audit::Request;
pub use control_plane::{ControlPlane, Options};
pub use fleet::Fleet;
pub use installation::Installation;
pub use kubelet::{Behaviour, Kubelet};
pub use proxy::{Fault, Proxy, Side};
pub use space::Space;

/// Tries until it holds, for at most `limit`; the error says what was seen last.
pub async fn eventually<T>(what: &str, limit: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    let mut seen = anyhow!("nothing was seen");
    loop {
        // A frozen API server never answers.
        match tokio::time::timeout_at(end.into(), attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => seen = error,
            Err(_elapsed) => seen = seen.context("the last attempt came to no end; before it"),
        }
        if Instant::now() > end {
            return Err(seen.context(format!("not within {limit:?}: {what}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn what_comes_late_is_waited_for() {
        let mut attempts = 0;
        let third = eventually("the third", Duration::from_secs(10), async || {
            attempts += 1;
            ensure!(attempts == 3, "{attempts}");
            Ok(attempts)
        });
        assert_eq!(third.await.expect("it comes"), 3);
    }

    #[tokio::test]
    async fn what_never_comes_is_said_with_what_was_seen() {
        let error = eventually::<()>("peace", SHORT, async || bail!("war")).await.expect_err("there is none");
        assert_eq!(format!("{error:#}"), "not within 100ms: peace: war");
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_given_up() {
        let mut attempts = 0;
        let result = eventually::<()>("an answer", SHORT, async || {
            attempts += 1;
            if attempts > 1 {
                std::future::pending::<()>().await;
            }
            bail!("busy")
        });
        let error = format!("{:#}", result.await.expect_err("there is none"));
        assert_eq!(error, "not within 100ms: an answer: the last attempt came to no end; before it: busy");
    }
}
