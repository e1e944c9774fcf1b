//! What the operator, the API server and whoever evicts do, and the agent's restarts.

use guard_core::{
    breach::ContainerId,
    budget::Allowance,
    judge::{Effect, Evicted, Judge, Settings},
};

use crate::{
    node::{Call, Cell, WALL, World},
    pods::KINDS,
    setup::{MODES, S, allowance, policy},
    witness::must,
};

impl World {
    /// Something that the operator does.
    pub(crate) fn operator(&mut self, what: u8, who: u8, how: u8, more: u8) -> Result<(), String> {
        match what {
            0 => {
                self.node.kill_switch = how < 0x60;
                let effects = self.judge.kill_switch(self.node.now, self.node.kill_switch);
                self.tell(Call::Decides, effects)
            }
            1 => self.reload(|settings| {
                settings.policies.mode = MODES[usize::from(how & 7)];
                let new = allowance(u16::from_le_bytes([who, how]));
                settings.allowance = Allowance { storm: settings.allowance.storm, ..new };
            }),
            2 => self.reload(|settings| {
                let changed = usize::from(how) % 3;
                settings.policies.policies[changed] = policy(changed, u16::from_le_bytes([who, how]));
            }),
            3 => self.reload(|settings| settings.dry_run = how < 0x60),
            4 if more < 0x40 => {
                self.node.nothing = (how < 0x60).then_some("nobody could");
                let effects = self.judge.protect(self.node.now, self.node.means().nothing);
                self.tell(Call::Decides, effects)
            }
            _ => {
                let was = self.witness.is_storm();
                match self.judge.resume(self.node.now) {
                    Some(effects) if was => self.tell(Call::Resumes, effects),
                    None if !was => Ok(()),
                    other => Err(format!("resumed with {other:?}, and a storm was {was}")),
                }
            }
        }
    }

    fn reload(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), String> {
        change(&mut self.node.settings);
        self.witness.reloaded(&self.node);
        let effects = self.judge.reload(self.node.now, self.node.settings.clone());
        self.tell(Call::Decides, effects)
    }

    /// The API server says something else of a container's pod.
    pub(crate) fn changed(&mut self, index: usize, how: u8) -> Result<(), String> {
        let Some(uid) = self.node.cells[index].pod else { return Ok(()) };
        if let Some(facts) = self.node.pods.get_mut(&uid) {
            (facts.kind, facts.told) = (KINDS[usize::from(how & 7)], how >> 3 != 0);
        }
        let all = self.node.cells.iter().filter(|cell| cell.pod == Some(uid)).map(|cell| cell.id);
        let all: Vec<_> = all.collect();
        all.into_iter().try_for_each(|id| self.appear(id))
    }

    /// Another agent goes on from what this one saved; the kernel goes on meanwhile, and lets go if it takes too long.
    pub(crate) fn restart(&mut self, who: u8, how: u8) -> Result<(), String> {
        let mut saved = serde_json::to_string(&self.judge.save()).map_err(|error| error.to_string())?;
        self.node.now += u64::from(how % 16) * S;
        self.node.kernel();
        if how & 0x30 == 0 && !self.node.cells.is_empty() {
            let gone = self.node.cells.swap_remove(usize::from(who) % self.node.cells.len()).id;
            self.witness.known.remove(&gone);
        }
        if how & 0x40 != 0 {
            self.node.settings.policies.mode = MODES[usize::from(who & 7)];
            self.node.settings.dry_run = who & 0x30 == 0;
        }
        // Some do not live until all have appeared.
        let lives = if how & 0x80 != 0 { vec![self.node.cells.len() / 2, usize::MAX] } else { vec![usize::MAX] };
        for count in lives {
            let mut judge = Judge::new(self.node.settings.clone(), self.node.means());
            judge.wall_clock(WALL);
            let state = serde_json::from_str(&saved).map_err(|error| error.to_string())?;
            let lost = judge.restore(self.node.now, state, true);
            assert_eq!(lost, [""; 0], "lost by a restart");
            self.judge = judge;
            self.witness.restarted(&self.node);
            let effects = self.judge.kill_switch(self.node.now, self.node.kill_switch);
            self.tell(Call::Decides, effects)?;
            for id in self.node.ids().into_iter().take(count) {
                self.node.now += 1;
                self.appear(id)?;
                let held = self.node.find(id)?.held.map(|(contained, _)| contained);
                let effects = self.judge.contained(self.node.now, id, held);
                self.tell(Call::Contained(id), effects)?;
            }
            saved = serde_json::to_string(&self.judge.save()).map_err(|error| error.to_string())?;
        }
        self.witness.settling = false;
        let effects = self.judge.settled(self.node.now);
        self.tell(Call::Quiet, effects)?;
        self.node.ids().into_iter().try_for_each(|id| self.packets(id))
    }

    /// An eviction that is underway ends; or else it hangs.
    pub(crate) fn evicted(&mut self, who: usize, how: u8) -> Result<(), String> {
        let underway = self.witness.evictions.underway();
        let Some(&id) = underway.get(who % underway.len().max(1)) else { return Ok(()) };
        let retry_at = self.node.now + u64::from(how) * S / 4;
        let outcome = match how & 7 {
            0..=3 => Evicted::Done,
            4 | 5 => Evicted::Untouched { retry_at },
            6 => Evicted::Broken { retry_at },
            _ if how & 0b1000 == 0 => Evicted::Broken { retry_at },
            _ => Evicted::NotCured,
        };
        // Most are gone soon, and some before that is told.
        let goes = outcome == Evicted::Done && how & 0b1_1000 != 0;
        let gone = if goes { self.replaced(id, how)? } else { vec![] };
        let before = how & 0b10_0000 != 0;
        if before {
            gone.iter().try_for_each(|id| self.go(*id))?;
        }
        let alarm = self.witness.evicted(&self.node, id, outcome);
        let said = self.judge.evicted(self.node.now, id, outcome);
        let alarm: Vec<Effect> = alarm.into_iter().map(Effect::Alarm).collect();
        must(said == alarm, || format!("said {said:?} of {outcome:?} instead of {alarm:?}"))?;
        if !before {
            gone.iter().try_for_each(|id| self.go(*id))?;
        }
        // So that what breaches again does so soon.
        if gone.is_empty() { Ok(()) } else { self.time_passes(0x80 | how & 7) }
    }

    /// What there is in the place of what was evicted, and breaches as well. Returns what goes.
    fn replaced(&mut self, id: ContainerId, how: u8) -> Result<Vec<ContainerId>, String> {
        let Ok(cell) = self.node.find(id) else { return Ok(vec![]) };
        let (pod, policy, over) = (cell.pod, cell.policy, cell.over);
        let with_it = |cell: &&Cell| cell.id == id || pod.is_some() && cell.pod == pod;
        let gone = self.node.cells.iter().filter(with_it).map(|cell| cell.id).collect();
        if let Some(pod) = pod.filter(|_| how & 0b110_0000 != 0) {
            self.replace(pod, policy, over)?;
        }
        // Some containers of a pod live on for a while.
        Ok(if how & 0b1000_0000 != 0 { vec![id] } else { gone })
    }
}
