//! What passes by the meters of a pod.

use std::cmp::Reverse;

use super::{Judge, told::Effect};
use crate::{
    breach::{ContainerId, Limit},
    bucket::{Bucket, Taken},
    policy::RateLimit,
    watch::Over,
};

impl Judge {
    /// So many bytes left by the interface of these containers, which are all of a pod, between `from` and `now`, and no
    /// meter saw them. Whose they are nobody knows: the breach is one of a container whose policy limits that, the loosest if
    /// there are several, and of the same one as long as it lasts.
    pub fn bypassed(&mut self, from: u64, now: u64, containers: &[ContainerId], bytes: u64) -> Vec<Effect> {
        let limits = |id: ContainerId| Some((id, self.containers.get(&id)?.facts.policy.as_ref()?.egress.bypass?));
        let is_open = |id| self.watch.of(id).any(|open| open.breach.limit == Limit::Bypass);
        let limited = containers.iter().filter_map(|id| limits(*id));
        // The sandbox, which has no name, is what an operator would look at last.
        let order = |(id, limit): &(ContainerId, RateLimit)| {
            (!is_open(*id), Reverse(limit.rate.bytes_per_second()), !self.is_named(*id), *id)
        };
        let Some((id, limit)) = limited.min_by_key(order) else { return vec![] };
        let bucket = self.bypass.entry(id).or_insert(Bucket::full());
        if bucket.take_evenly(from, now, bytes, limit) == Taken::Within {
            return vec![];
        }
        let RateLimit { rate, burst: _ } = limit;
        let figure = bytes as f64 * 1e9 / now.saturating_sub(from).max(1) as f64;
        let over = Over { figure, allowed: rate.bytes_per_second() as f64 };
        let Some(breach) = self.watch.crossed(now, id, Limit::Bypass, over) else { return vec![] };
        let mut effects = vec![Effect::Opened(breach)];
        effects.extend(self.decide(now));
        effects
    }

    /// Whether its pod's status names it.
    fn is_named(&self, id: ContainerId) -> bool {
        self.containers.get(&id).is_some_and(|known| {
            let name = &known.about.subject.names.container;
            known.facts.pod.as_ref().is_some_and(|pod| pod.containers.iter().any(|container| container.name == *name))
        })
    }
}
