//! What an agent holds, and that it does not grow.

use std::time::Duration;

/// One life of the agent: between its start and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Its process id.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot: process ids are used again.
    pub started: u64,
}

/// What it holds at an instant at which nothing moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Memory that is resident, in KiB (`Rss` of `/proc/PID/smaps_rollup`).
    pub rss: u64,
    /// What of that is no file's: heap and stacks.
    pub anon: u64,
    /// Open files that are neither programs nor links.
    pub fds: u64,
    /// Kernel programs, each of which is an open file too.
    pub programs: u64,
    /// Pins of links.
    pub links: u64,
    /// All pins: links, maps, programs, folders.
    pub pins: u64,
    /// Slots in use, as the agent says.
    pub slots: u64,
    /// Containers' cgroups beneath the pods' root, as the tree says.
    pub containers: u64,
    /// How many there were when it was at rest last before [`KEPT`], and have begun since, at most: the slots of those
    /// among them that have ended may not be free yet.
    pub recent: u64,
}

/// A slot is free for another container five minutes after its owner's end; and some time until that is looked at.
pub const KEPT: Duration = Duration::from_mins(7);

/// What may change, and what not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// So long an agent warms up: it has found a breach by then, and its API server away.
    pub warm_up: Duration,
    /// KiB that it may grow by afterwards.
    pub growth: u64,
    /// Files that it may have open more than it had.
    pub files: u64,
    /// Slots whose programs it may have loaded besides those in use: what it loads ahead, and the node's.
    pub ahead: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { warm_up: Duration::from_mins(3), growth: 1024, files: 8, ahead: 18 }
    }
}

/// What is held and should not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Leak {
    /// Memory.
    #[error(
        "the agent's RSS is {now} KiB, and was {warm} KiB at most while it warmed up: it may grow by {allowed} KiB"
    )]
    Memory {
        /// Now.
        now: u64,
        /// Once warm.
        warm: u64,
        /// The bound.
        allowed: u64,
    },
    /// Files.
    #[error("the agent has {now} files open, and had {warm} once it was warm: at most {allowed} are accounted for")]
    Files {
        /// Now.
        now: u64,
        /// Once warm.
        warm: u64,
        /// The bound.
        allowed: u64,
    },
    /// Kernel programs.
    #[error(
        "the agent has {now} kernel programs, and no more than {slots} slots were in use since it started: two for each, and for those that \
         it loads ahead, are {allowed}"
    )]
    Programs {
        /// Now.
        now: u64,
        /// For so many at once.
        slots: u64,
        /// The bound.
        allowed: u64,
    },
    /// Slots.
    #[error("{slots} slots are in use for {containers} containers, although nothing comes or goes")]
    Slots {
        /// How many.
        slots: u64,
        /// For so many.
        containers: u64,
    },
    /// Links.
    #[error("{links} links are pinned for {slots} meters and the node's: two each are {expected}")]
    Links {
        /// How many.
        links: u64,
        /// For so many, and the node's.
        slots: u64,
        /// Instead of.
        expected: u64,
    },
    /// Pins that are no links.
    #[error("{now} pins beside those of links, and there were {before}")]
    Pins {
        /// Now.
        now: u64,
        /// Before.
        before: u64,
    },
}

/// Remembers what each life held once it was warm.
#[derive(Clone, Debug, Default)]
pub struct Leaks {
    bounds: Bounds,
    life: Option<(Life, Duration)>,
    /// The most while it warmed up.
    warm: Option<Held>,
    /// The most slots that were in use at once during that life: the lowest are used again first.
    used: u64,
    /// Pins that are no links.
    others: Option<u64>,
}

impl Leaks {
    /// With other bounds than the usual ones.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Whether the agent of the last look had been warm before.
    #[must_use]
    pub fn was_warm(&self, at: Duration) -> bool {
        self.life.is_some_and(|(_, since)| at > since + self.bounds.warm_up)
    }

    /// Looks at what is held, when nothing comes or goes.
    pub fn look(&mut self, at: Duration, life: Life, held: Held) -> Vec<Leak> {
        let mut leaks = vec![];
        let Held { links, pins, slots, containers, .. } = held;
        if slots != containers {
            leaks.push(Leak::Slots { slots, containers });
        }
        let expected = 2 * (slots + 1);
        if links != expected {
            leaks.push(Leak::Links { links, slots, expected });
        }
        let others = pins.saturating_sub(links);
        match self.others {
            Some(before) if others > before => leaks.push(Leak::Pins { now: others, before }),
            _ => self.others = Some(others),
        }
        leaks.extend(self.grown(at, life, held));
        leaks
    }

    fn grown(&mut self, at: Duration, life: Life, held: Held) -> Vec<Leak> {
        let since = match self.life {
            Some((known, since)) if known == life => since,
            _ => {
                (self.life, self.warm, self.used) = (Some((life, at)), None, 0);
                at
            }
        };
        let mut leaks = vec![];
        self.used = self.used.max(held.containers).max(held.recent);
        let (slots, allowed) = (self.used, 2 * (self.used + self.bounds.ahead));
        if held.programs > allowed {
            leaks.push(Leak::Programs { now: held.programs, slots, allowed });
        }
        let Some(warm) = self.warm.filter(|_| at > since + self.bounds.warm_up) else {
            let before = self.warm.unwrap_or_default();
            self.warm = Some(Held { rss: before.rss.max(held.rss), fds: before.fds.max(held.fds), ..held });
            return leaks;
        };
        let allowed = self.bounds.growth;
        if held.rss > warm.rss + allowed {
            leaks.push(Leak::Memory { now: held.rss, warm: warm.rss, allowed });
        }
        let allowed = warm.fds + self.bounds.files;
        if held.fds > allowed {
            leaks.push(Leak::Files { now: held.fds, warm: warm.fds, allowed });
        }
        leaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { pid: 7, started: 1000 };
    const HELD: Held = Held {
        rss: 14_000,
        anon: 6_000,
        fds: 60,
        programs: 40,
        links: 12,
        pins: 20,
        slots: 5,
        containers: 5,
        recent: 5,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn warm() -> Leaks {
        let mut leaks = Leaks::default();
        assert_eq!(leaks.look(at(10), LIFE, HELD), []);
        assert_eq!(leaks.look(at(100), LIFE, Held { rss: 15_000, ..HELD }), []);
        leaks
    }

    #[test]
    fn memory_may_grow_by_a_mebibyte_once_warm() {
        let mut leaks = warm();
        assert_eq!(leaks.look(at(280), LIFE, Held { rss: 16_024, ..HELD }), []);
        let expected = Leak::Memory { now: 16_025, warm: 15_000, allowed: 1024 };
        assert_eq!(leaks.look(at(300), LIFE, Held { rss: 16_025, ..HELD }), [expected]);
    }

    #[test]
    fn an_agent_that_starts_warms_up_anew() {
        let mut leaks = warm();
        let next = Life { started: 2000, ..LIFE };
        assert_eq!(leaks.look(at(200), next, Held { rss: 20_000, fds: 100, ..HELD }), []);
        assert!(!leaks.was_warm(at(380)) && leaks.was_warm(at(381)));
        assert_eq!(leaks.look(at(381), next, Held { rss: 21_025, fds: 100, ..HELD }).len(), 1);
    }

    #[test]
    fn files_are_accounted_for() {
        let mut leaks = warm();
        assert_eq!(leaks.look(at(280), LIFE, Held { fds: 68, ..HELD }), []);
        assert_eq!(
            leaks.look(at(281), LIFE, Held { fds: 69, ..HELD }),
            [Leak::Files { now: 69, warm: 60, allowed: 68 }]
        );
    }

    #[test]
    fn programs_are_those_of_the_slots_that_were_in_use() {
        let mut leaks = warm();
        // Five containers, what is loaded ahead, and the node's.
        assert_eq!(leaks.look(at(200), LIFE, Held { programs: 46, ..HELD }), []);
        let expected = Leak::Programs { now: 47, slots: 5, allowed: 46 };
        assert_eq!(leaks.look(at(201), LIFE, Held { programs: 47, ..HELD }), [expected]);
        // Three more that came and went: their programs are kept, and used by those that come later.
        assert_eq!(leaks.look(at(202), LIFE, Held { programs: 52, recent: 8, ..HELD }), []);
        assert_eq!(leaks.look(at(900), LIFE, Held { programs: 52, ..HELD }), []);
        assert_eq!(leaks.look(at(901), LIFE, Held { programs: 53, ..HELD }).len(), 1);
    }

    #[test]
    fn slots_and_links_are_those_of_the_containers() {
        let mut leaks = warm();
        let slots = Held { slots: 6, links: 14, pins: 22, ..HELD };
        assert_eq!(leaks.look(at(110), LIFE, slots), [Leak::Slots { slots: 6, containers: 5 }]);
        let links = Held { links: 14, pins: 22, ..HELD };
        assert_eq!(leaks.look(at(111), LIFE, links), [Leak::Links { links: 14, slots: 5, expected: 12 }]);
        let pins = Held { pins: 21, ..HELD };
        assert_eq!(leaks.look(at(112), LIFE, pins), [Leak::Pins { now: 9, before: 8 }]);
        // Also when another agent has taken over.
        let next = Life { pid: 8, ..LIFE };
        assert_eq!(leaks.look(at(113), next, pins), [Leak::Pins { now: 9, before: 8 }]);
    }
}
