//! Whom alerts are sent to.

use tokio::task::JoinHandle;
use tracing::error;

use crate::webhook::{Endpoint, Webhook};

/// Sends alerts to where the configuration says.
#[derive(Debug)]
pub(crate) struct Alerts {
    webhook: Webhook,
    to: Option<String>,
    sender: Option<JoinHandle<()>>,
}

impl Alerts {
    /// To nobody yet.
    pub(crate) fn new(webhook: Webhook) -> Self {
        Self { webhook, to: None, sender: None }
    }

    /// Goes on with another receiver, or none; the webhook for whoever has something to send.
    pub(crate) fn send_to(&mut self, to: Option<String>) -> Option<Webhook> {
        if to != self.to {
            if let Some(sender) = self.sender.take() {
                sender.abort();
            }
            self.to.clone_from(&to);
            self.sender = to.and_then(|to| match to.parse::<Endpoint>() {
                Ok(endpoint) => {
                    let webhook = self.webhook.clone();
                    Some(tokio::spawn(async move {
                        let Err(error) = webhook.run(&endpoint).await;
                        error!("alerts.webhook {endpoint} gets no alerts: {error}");
                    }))
                }
                Err(error) => {
                    error!("alerts.webhook gets no alerts: {error}");
                    None
                }
            });
        }
        self.sender.is_some().then(|| self.webhook.clone())
    }
}
