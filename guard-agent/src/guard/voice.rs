//! Who is told of breaches.

use crate::{
    breaches::Breaches,
    webhook::{Alert, Webhook},
};

/// The last breaches, and the webhook.
#[derive(Debug)]
pub struct Voice {
    /// The last breaches, for whoever asks.
    pub breaches: Breaches,
    /// Whom alerts are sent to; nobody without `alerts.webhook`.
    pub webhook: Option<Webhook>,
    /// The node's name.
    pub node: String,
    /// The alert that there is a storm, as long as there is.
    pub(super) storm: Option<Alert>,
}

impl Voice {
    /// Tells nobody but those who ask.
    pub fn new(breaches: Breaches, node: String) -> Self {
        Self { breaches, webhook: None, node, storm: None }
    }

    /// Sends an alert, made for this node. `None`: there is nobody to send it to.
    pub(super) fn alert(&self, make: impl FnOnce(&str) -> Alert) -> Option<Alert> {
        let webhook = self.webhook.as_ref()?;
        let alert = make(&self.node);
        webhook.send(alert.clone());
        Some(alert)
    }
}
