//! Who is told of breaches.

use guard_cluster::{
    connect::{Clients, Identity},
    events::Teller,
};

use crate::{
    breaches::Breaches,
    metrics::Metrics,
    webhook::{Alert, Webhook},
};

/// The last breaches, and the webhook.
#[derive(Debug)]
pub struct Voice {
    /// The last breaches, for whoever asks.
    pub breaches: Breaches,
    /// Whom alerts are sent to; nobody without `alerts.webhook`.
    pub webhook: Option<Webhook>,
    /// Who tells it on pods; nobody without an API server.
    pub teller: Option<Teller>,
    /// The pod of a breach gets an annotation: `flag.annotation`.
    pub flag: bool,
    /// The node's name.
    pub node: String,
    /// The alert that there is a storm, as long as there is.
    pub(super) storm: Option<Alert>,
}

impl Voice {
    /// Tells nobody but those who ask.
    pub fn new(breaches: Breaches, node: String) -> Self {
        Self { breaches, webhook: None, teller: None, flag: false, node, storm: None }
    }

    /// Tells it on pods too, if there is an API server. The task goes on for ever.
    pub fn tell_pods(
        &mut self,
        clients: Option<&Clients>,
        identity: &Identity,
        metrics: &Metrics,
    ) -> Result<(), prometheus::Error> {
        let Some(clients) = clients else { return Ok(()) };
        let teller = Teller::new()?;
        teller.collectors().into_iter().try_for_each(|collector| metrics.register(collector))?;
        let (client, agent, of_task) = (clients.once.clone(), identity.pod.clone(), teller.clone());
        tokio::spawn(async move { of_task.run(client, &agent).await });
        self.teller = Some(teller);
        Ok(())
    }

    /// Sends an alert, made for this node. `None`: there is nobody to send it to.
    pub(super) fn alert(&self, make: impl FnOnce(&str) -> Alert) -> Option<Alert> {
        let webhook = self.webhook.as_ref()?;
        let alert = make(&self.node);
        webhook.send(alert.clone());
        Some(alert)
    }
}
