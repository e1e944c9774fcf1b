//! What the guest prints when it is looked at, read.

use std::collections::BTreeMap;

use crate::{
    books::{BadMetrics, Books, Count},
    leaks::{Held, Life},
    wire::{Stack, Wire},
};

/// The script that looks; what it wants to be told stands in it.
pub const SCRIPT: &str = include_str!("guest.sh");

/// The name of the wire to the world.
pub const WORLD: &str = "world";

const ETHERNET_HEADER: u64 = 14;

/// One look at the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Whether nothing moved while it was read.
    pub rested: bool,
    /// Wires that moved although they were to rest.
    pub moved: Vec<String>,
    /// The agent, and what it holds.
    pub life: Life,
    /// See [`Self::life`].
    pub held: Held,
    /// Its metrics.
    pub books: Books,
    /// Each pod's wire, as the pod sees it; that of [`WORLD`], as the node sees it.
    pub wires: BTreeMap<String, Wire>,
}

/// What is not as the script prints it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReading {
    /// A line.
    #[error("the guest says what is not understood: {0:?}")]
    Line(String),
    /// No agent, or none that answers.
    #[error("no agent answered in the guest")]
    NoAgent,
    /// Its metrics.
    #[error(transparent)]
    Metrics(#[from] BadMetrics),
}

impl Reading {
    /// Reads what [`SCRIPT`] prints.
    pub fn parse(text: &str) -> Result<Self, BadReading> {
        let (head, metrics) = text.split_once("\nmetrics\n").ok_or_else(|| BadReading::Line(text.to_owned()))?;
        let mut reading = Self::default();
        let (mut lost, mut agent) = (0, false);
        let mut wire: Option<(String, Wire)> = None;
        // Names of the figures that the next line has.
        let mut names: Option<(&str, Vec<&str>)> = None;
        for line in head.lines() {
            let bad = || BadReading::Line(line.to_owned());
            let (word, rest) = line.split_once(' ').ok_or_else(bad)?;
            let numbers = || -> Result<Vec<u64>, BadReading> {
                rest.split_whitespace().map(|number| number.parse().map_err(|_| bad())).collect()
            };
            match word {
                "rested" => reading.rested = rest == "yes",
                "moved" => reading.moved.push(rest.to_owned()),
                "containers" => [reading.held.containers] = exactly(&numbers()?).ok_or_else(bad)?,
                "agent" => {
                    let [pid, started, rss, anon, files, programs] = exactly(&numbers()?).ok_or_else(bad)?;
                    reading.life = Life { pid: u32::try_from(pid).map_err(|_| bad())?, started };
                    let found = &mut reading.held;
                    (found.rss, found.anon, agent) = (rss, anon, true);
                    (found.fds, found.programs) = (files.saturating_sub(programs), programs);
                }
                "pins" => [reading.held.links, reading.held.pins] = exactly(&numbers()?).ok_or_else(bad)?,
                "lost" => [lost] = exactly(&numbers()?).ok_or_else(bad)?,
                "wire" => {
                    reading.wires.extend(wire.take());
                    let (name, counters) = rest.split_once(' ').ok_or_else(bad)?;
                    wire = Some((name.to_owned(), interface(name, counters, lost).ok_or_else(bad)?));
                }
                "Tcp:" | "Icmp:" => match names.take() {
                    None => names = Some((word, rest.split(' ').collect())),
                    Some((protocol, names)) if protocol == word => {
                        let values = names.iter().copied().zip(rest.split(' ')).collect();
                        let (_, wire) = wire.as_mut().ok_or_else(bad)?;
                        stack(&mut wire.stack, word, &values).ok_or_else(bad)?;
                    }
                    Some(_) => return Err(bad()),
                },
                _ => return Err(bad()),
            }
        }
        reading.wires.extend(wire);
        if !agent {
            return Err(BadReading::NoAgent);
        }
        reading.books = Books::parse(metrics)?;
        reading.held.slots = reading.books.meters;
        Ok(reading)
    }
}

fn exactly<const N: usize>(numbers: &[u64]) -> Option<[u64; N]> {
    numbers.try_into().ok()
}

/// The figures are those of the node's end: what it received the pod has sent.
fn interface(name: &str, counters: &str, lost: u64) -> Option<Wire> {
    let numbers: Vec<u64> = counters.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [rx_bytes, rx_packets, tx_bytes, tx_packets] = exactly(&numbers)?;
    let count =
        |bytes: u64, packets: u64| Some(Count { bytes: bytes.checked_sub(ETHERNET_HEADER * packets)?, packets });
    let (rx, tx) = (count(rx_bytes, rx_packets)?, count(tx_bytes, tx_packets)?);
    let (sent, received) = if name == WORLD { (tx, rx) } else { (rx, tx) };
    Some(Wire { sent, received, lost, stack: Stack::default() })
}

fn stack(stack: &mut Stack, protocol: &str, values: &BTreeMap<&str, &str>) -> Option<()> {
    let value = |name: &str| values.get(name)?.parse::<u64>().ok();
    if protocol == "Icmp:" {
        stack.icmp = value("OutMsgs")?;
    } else {
        stack.connections = value("ActiveOpens")? + value("PassiveOpens")?;
        // Those that the peer has reset are among the world's: what a pod's stack reset.
        stack.resets = value("OutRsts")? + value("EstabResets")?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "rested yes
containers 4
agent 812 4711 14336 6144 57 26
pins 10 19
lost 3
wire web0-5d4f-aaaaa 1042 1 74 1
Icmp: InMsgs InErrors OutMsgs
Icmp: 9 8 2
Tcp: RtoMax ActiveOpens PassiveOpens EstabResets OutSegs OutRsts
Tcp: -1 4 5 1 100 2
wire world 66 1 2084 2
Tcp: ActiveOpens PassiveOpens EstabResets OutRsts
Tcp: 0 7 0 0
metrics
egress_guard_node_egress_bytes_total{class=\"external\"} 5
egress_guard_unattributed_egress_bytes_total{class=\"external\"} 0
egress_guard_sample_seconds_count 9
egress_guard_meters 4
";

    #[test]
    fn all_that_the_script_prints_is_read() {
        let reading = Reading::parse(TEXT).expect("a reading");
        assert!(reading.rested);
        assert_eq!(reading.life, Life { pid: 812, started: 4711 });
        let held = Held {
            rss: 14336,
            anon: 6144,
            fds: 31,
            programs: 26,
            links: 10,
            pins: 19,
            slots: 4,
            containers: 4,
            recent: 0,
        };
        assert_eq!(reading.held, held);
        let pod = reading.wires["web0-5d4f-aaaaa"];
        assert_eq!((pod.sent, pod.received), (Count { bytes: 1028, packets: 1 }, Count { bytes: 60, packets: 1 }));
        assert_eq!((pod.stack, pod.lost), (Stack { connections: 9, resets: 3, icmp: 2 }, 3));
        let world = reading.wires[WORLD];
        assert_eq!((world.sent.bytes, world.received.bytes), (2084 - 28, 52));
        assert_eq!(world.stack, Stack { connections: 7, resets: 0, icmp: 0 });
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        let without = TEXT.replace("agent 812 4711 14336 6144 57 26\n", "");
        assert_eq!(Reading::parse(&without), Err(BadReading::NoAgent));
        let restless = TEXT.replace("rested yes", "rested no\nmoved web0-5d4f-aaaaa\nmoved world");
        let restless = Reading::parse(&restless).expect("a reading");
        assert!(!restless.rested && restless.moved == ["web0-5d4f-aaaaa", "world"]);
        let other = TEXT.replace("lost 3", "lost x");
        assert_eq!(Reading::parse(&other), Err(BadReading::Line("lost x".into())));
        let other = TEXT.replace("Icmp: 9 8 2\n", "");
        assert!(matches!(Reading::parse(&other), Err(BadReading::Line(_))));
        let early = TEXT.replace("egress_guard_sample_seconds_count 9\n", "");
        assert!(matches!(Reading::parse(&early), Err(BadReading::Metrics(_))));
    }
}
