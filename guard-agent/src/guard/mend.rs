//! What somebody else on the node has undone: who may use `bpf(2)` there may detach any link and write any map.

use tracing::error;

use super::{Guard, GuardError, State};
use crate::{
    core::ledger::{NODE, Slot},
    kernel::meters::Links,
};

/// What an operator has to know of it.
const WHO: &str =
    "Nobody does that but who has CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, on this node: find out who does";

impl Guard {
    /// Puts right what is not as the agent has made it: programs that are detached, or replaced by others.
    pub(super) fn mend(&mut self) -> Result<(), GuardError> {
        if self.kernel.mend_police()? {
            self.metrics.mended.inc();
            error!(
                "somebody had taken the limits' programs out of their places, so that no limit held for 30 s at most; they are \
                 back. {WHO}"
            );
        }
        if let (Some((path, id)), Some(mut links)) = (self.pods_root.clone(), self.node.take()) {
            let mended = self.mend_meter(NODE, &path, id, &mut links);
            self.node = Some(links);
            mended?;
        }
        for slot in self.attached().map(|(slot, _)| slot).collect::<Vec<_>>() {
            let Some(mut meter) = self.meters.remove(&slot) else { continue };
            let mended = match &mut meter.state {
                State::Attached(links) => self.mend_meter(slot, &meter.path, meter.cgroup_id, links),
                State::Draining(..) | State::Closing(_) => Ok(()),
            };
            self.meters.insert(slot, meter);
            mended?;
        }
        Ok(())
    }

    fn mend_meter(&mut self, slot: Slot, path: &str, id: u64, links: &mut Links) -> Result<(), GuardError> {
        // Of a cgroup that is removed meanwhile the kernel itself detaches the links.
        let Some((dir, _)) = self.watched.open(path)?.filter(|(_, found)| *found == id) else { return Ok(()) };
        match self.kernel.mend(slot, links, &dir) {
            Ok(false) => {}
            Ok(true) => {
                self.metrics.mended.inc();
                error!(
                    cgroup = path,
                    "somebody had detached this meter or put another program in its place; it counts again. What it missed, of \
                     30 s at most, is in no figure, and was not held. {WHO}"
                );
            }
            Err(error) if error.cgroup_gone() => {}
            Err(error) => self.attach_failed(path, error),
        }
        Ok(())
    }
}
