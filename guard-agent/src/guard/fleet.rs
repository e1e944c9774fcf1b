//! What the cluster's operator says for all nodes.

use std::borrow::Cow;

use super::Guard;
use crate::{
    clock,
    kernel::kill_switch::{Engaged, KillSwitchError, Source},
};

impl Guard {
    /// The cluster's engagement of the kill switch.
    pub fn kill_switch_of_cluster(&self) -> Result<Option<Engaged>, KillSwitchError> {
        self.kill_switch.engaged_by(Source::Cluster)
    }

    /// Takes over what the cluster says of the kill switch: who engages it, if anybody does.
    pub fn kill_switch_in_cluster(&mut self, who: Option<&str>) -> Result<(), KillSwitchError> {
        self.kill_switch.set_cluster(who)?;
        self.look_at_kill_switch();
        Ok(())
    }

    /// Nothing is to be evicted, for this reason, or it may be: the cluster's part in that.
    pub fn protect(&mut self, nothing: Option<Cow<'static, str>>) {
        if nothing == self.protected {
            return;
        }
        self.protected.clone_from(&nothing);
        self.hammer.halt(nothing.is_some());
        // Without an orchestrator there is a better reason.
        let nothing = self.hammer.means().nothing.or(nothing);
        let effects = self.judge.protect(clock::boottime(), nothing);
        self.carry_out(effects);
        self.order_all();
    }
}
