//! The task that watches this node's pods, if somebody tells of them.

use std::{convert::Infallible, future, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use guard_cluster::{
    connect::{Clients, Identity},
    pods::{Latest, Pods},
};
use tokio::{task::JoinHandle, time};
use tracing::info;

use crate::{
    core::{
        inventory::Inventory,
        roster::{self, Roster},
    },
    metrics::Metrics,
};

/// How long the start waits for the pods, if it must.
const FIRST: Duration = Duration::from_secs(3);

/// A running watch, or none.
#[derive(Debug)]
pub(crate) struct Watching(Option<(Latest, JoinHandle<Infallible>)>);

/// Starts the task, which goes on for ever. `kept`: what an earlier agent knew, which nobody would correct if there is nobody
/// who tells.
pub(crate) fn begin(
    clients: Option<&Clients>,
    identity: &Identity,
    kept: roster::Saved,
    metrics: &Metrics,
) -> Result<(Option<Roster>, Watching)> {
    let Some(clients) = clients else { return Ok((None, Watching(None))) };
    let roster = Roster::restore(kept);
    let pods = Pods::new(clients.patient.clone(), &identity.node, roster.pods())?;
    pods.collectors().into_iter().try_for_each(|collector| metrics.register(collector))?;
    Ok((Some(roster), Watching(Some((pods.latest(), tokio::spawn(pods.run()))))))
}

impl Watching {
    /// The pods, as soon as they are listed. `None`: not in time.
    pub(crate) async fn first(&mut self) -> Option<Arc<Inventory>> {
        let (latest, _) = self.0.as_mut()?;
        let listed = time::timeout(FIRST, latest.wait_for(Option::is_some)).await;
        if listed.is_err() {
            info!(
                "the API server does not tell of the pods within {FIRST:?}; containers are shown under ids until it does"
            );
        }
        // Read so that it is not news later.
        listed.ok()?.ok()?;
        latest.borrow_and_update().clone()
    }

    /// Other pods than before. An error: the task has ended.
    pub(crate) async fn changed(&mut self) -> Result<Arc<Inventory>> {
        let Some((latest, task)) = &mut self.0 else { return future::pending().await };
        loop {
            if latest.changed().await.is_err() {
                let Err(error) = task.await;
                bail!("this node's pods are no longer watched: {error}");
            }
            if let Some(told) = latest.borrow_and_update().clone() {
                return Ok(told);
            }
        }
    }
}
