//! The few requests of rtnetlink that tell whose an interface is (`rtnetlink(7)`, `include/uapi/linux/rtnetlink.h`,
//! `if_link.h`, `net_namespace.h`). Three kinds of messages are no reason for a library with all of them.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;

/// `ifi_type` of `lo` (`include/uapi/linux/if_arp.h`).
const ARPHRD_LOOPBACK: u16 = 772;

/// Without statistics: adding them up over all CPUs is most of a link's cost.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// The kernel is to choose an id.
const ANY_ID: i32 = -1;

/// Bytes of a message's header.
const HEADER: usize = 16;
/// Bytes of `struct ifinfomsg`.
const IFINFO: usize = 16;
/// More than the kernel puts into one answer (32 KiB).
const ANSWER: usize = 64 << 10;
/// How often a list is asked for that changes meanwhile.
const ATTEMPTS: usize = 5;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// A network namespace by the number that this process's own has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Netns(i32);

#[cfg(test)]
impl Netns {
    /// The one with this number.
    pub fn numbered(number: i32) -> Self {
        Self(number)
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index; no other interface of its namespace gets the same again.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// What it is, as `ip link add` calls it: `veth`. `None`: a device of the machine's, or `lo`.
    pub kind: Option<String>,
    /// Whether it is `lo`.
    pub loopback: bool,
    /// The index of its other end, or of what it sends by.
    pub lower: i32,
    /// Where that is, if it is in another network namespace, as seen from the interface's.
    pub peer: Option<Netns>,
}

/// A socket of rtnetlink.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The network namespace of a process. `None`: it has no number yet. Takes no right to trace the process; `ESRCH` if there is
    /// none.
    pub(super) fn netns(&mut self, pid: u32) -> io::Result<Option<Netns>> {
        let mut id = None;
        self.ask(RTM_GETNSID, 0, &attribute(&[0; 4], NETNSA_PID, pid.to_ne_bytes()), |kind, body| {
            if kind == RTM_NEWNSID {
                id = attributes(body, 4).find(|(kind, _)| *kind == NETNSA_NSID).and_then(|(_, value)| number(value));
            }
        })?;
        Ok(id.filter(|id| *id >= 0).map(Netns))
    }

    /// The same, and gives it a number if it has none. Takes `CAP_NET_ADMIN`.
    pub(super) fn number(&mut self, pid: u32) -> io::Result<Option<Netns>> {
        if let Some(netns) = self.netns(pid)? {
            return Ok(Some(netns));
        }
        let request = attribute(&[0; 4], NETNSA_PID, pid.to_ne_bytes());
        self.ask(RTM_NEWNSID, NLM_F_ACK, &attribute(&request, NETNSA_NSID, ANY_ID.to_ne_bytes()), |_, _| {})?;
        self.netns(pid)
    }

    /// The interfaces of a namespace. Takes `CAP_NET_ADMIN` there (kernel 4.20).
    /// `EINVAL`: there is no namespace of this number any more.
    pub(super) fn links(&mut self, of: Netns) -> io::Result<Vec<Link>> {
        let request = attribute(&[0; IFINFO], IFLA_TARGET_NETNSID, of.0.to_ne_bytes());
        let request = attribute(&request, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        let mut attempts = 0;
        loop {
            let mut links = BTreeMap::new();
            let listed = self.ask(RTM_GETLINK, NLM_F_DUMP, &request, |kind, body| {
                let link = Some(body).filter(|_| kind == RTM_NEWLINK).and_then(link);
                links.extend(link.map(|link| (link.index, link)));
            });
            attempts += 1;
            match listed {
                Ok(()) => return Ok(links.into_values().collect()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request and takes what is answered, message by message. `Interrupted`: what is listed changed meanwhile, so
    /// something may be missing, or be there twice.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let (mut answer, mut interrupted) = (vec![0; ANSWER], false);
        loop {
            let (_, length) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::TRUNC)?;
            let mut rest = answer.get(..length).ok_or_else(|| io::Error::other("an answer of netlink is too long"))?;
            while let Some(Message { kind, flags: said, sequence, body, next }) = message_of(rest) {
                rest = next;
                // What is left of a request that was given up is not for this one.
                if sequence != self.sequence {
                    continue;
                }
                interrupted |= said & NLM_F_DUMP_INTR != 0;
                match kind {
                    // A list may end with an error as well.
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match body.get(..4).and_then(number) {
                            Some(error) if error < 0 => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                            Some(_) if interrupted => Err(io::ErrorKind::Interrupted.into()),
                            Some(_) => Ok(()),
                            None => Err(io::Error::other("an answer of netlink is cut off")),
                        };
                    }
                    kind => take(kind, body),
                }
                if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// A message, and what comes after it.
#[derive(Debug, PartialEq)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
    next: &'a [u8],
}

/// The first message.
fn message_of(bytes: &[u8]) -> Option<Message<'_>> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some(Message { kind, flags, sequence, body, next: bytes.get(length.next_multiple_of(4)..).unwrap_or_default() })
}

/// The attributes behind a header of so many bytes: kind and value of each.
fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(header..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits are flags.
        Some((kind & 0x3fff, value))
    })
}

fn number(value: &[u8]) -> Option<i32> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// A request with one more attribute, of four bytes.
fn attribute(request: &[u8], kind: u16, value: [u8; 4]) -> Vec<u8> {
    let mut request = request.to_vec();
    request.extend(8_u16.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request
}

fn text(value: &[u8]) -> Option<String> {
    str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0').to_owned())
}

fn link(body: &[u8]) -> Option<Link> {
    let loopback = body.get(2..)?.first_chunk().map(|kind| u16::from_ne_bytes(*kind))? == ARPHRD_LOOPBACK;
    let index = number(body.get(4..)?)?;
    let (mut name, mut info_kind, mut lower, mut peer) = (None, None, 0, None);
    for (kind, value) in attributes(body, IFINFO) {
        match kind {
            IFLA_IFNAME => name = text(value),
            IFLA_LINK => lower = number(value)?,
            IFLA_LINKINFO => {
                let kind = attributes(value, 0).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                info_kind = kind.and_then(|(_, value)| text(value));
            }
            IFLA_LINK_NETNSID => peer = number(value).map(Netns),
            _ => {}
        }
    }
    Some(Link { index, name: name?, kind: info_kind, loopback, lower, peer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(7_u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    #[test]
    fn a_link_is_read_whatever_else_is_said_of_it() {
        let mut body = vec![0; IFINFO];
        body[4..8].copy_from_slice(&12_i32.to_ne_bytes());
        body.extend(9_u16.to_ne_bytes());
        body.extend(IFLA_IFNAME.to_ne_bytes());
        body.extend(b"veth\0\0\0\0");
        let alone = Link { index: 12, name: "veth".into(), kind: None, loopback: false, lower: 0, peer: None };
        assert_eq!(link(&body), Some(alone.clone()));
        let body = attribute(&body, 0x8000 | 0x3d, [0; 4]);
        let body = attribute(&body, IFLA_LINK_NETNSID, 3_i32.to_ne_bytes());
        let mut body = attribute(&body, IFLA_LINK, 7_i32.to_ne_bytes());
        body.extend(16_u16.to_ne_bytes());
        body.extend(IFLA_LINKINFO.to_ne_bytes());
        body.extend(9_u16.to_ne_bytes());
        body.extend(IFLA_INFO_KIND.to_ne_bytes());
        body.extend(b"veth\0\0\0\0");
        let pair = Link { kind: Some("veth".into()), lower: 7, peer: Some(Netns(3)), ..alone.clone() };
        assert_eq!(link(&body), Some(pair));
        let mut lo = vec![0; IFINFO];
        lo[2..4].copy_from_slice(&ARPHRD_LOOPBACK.to_ne_bytes());
        let lo = link(&attribute(&lo, IFLA_IFNAME, *b"lo\0\0")).expect("a link");
        assert!(lo.loopback && lo.name == "lo" && lo.index == 0, "{lo:?}");
    }

    #[test]
    fn no_cut_is_read_beyond() {
        let whole = attribute(&attribute(&[0; IFINFO], IFLA_IFNAME, *b"eth0"), IFLA_LINK_NETNSID, [1, 0, 0, 0]);
        let whole = [message(RTM_NEWLINK, &whole), message(NLMSG_DONE, &[0; 4])].concat();
        for end in 0..whole.len() {
            let mut rest = &whole[..end];
            while let Some(Message { sequence, body, next, .. }) = message_of(rest) {
                assert_eq!(sequence, 7);
                let _link = link(body);
                rest = next;
            }
        }
        // A length of nothing is no message, and no endless loop.
        assert_eq!(message_of(&[0; 64]), None);
        assert_eq!(attributes(&[0; 64], 0).count(), 0);
    }

    #[test]
    fn what_cannot_be_listed_is_no_empty_list() {
        let mut netlink = Netlink::open().expect("a socket");
        let error = netlink.links(Netns(i32::MAX)).expect_err("there is no such namespace");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    }

    #[test]
    fn a_process_has_a_network_namespace_and_one_that_is_not_there_has_none() {
        let mut netlink = Netlink::open().expect("a socket");
        let error = netlink.netns(u32::MAX >> 1).expect_err("there is no such process");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{error}");
        let own = netlink.netns(std::process::id()).expect("an answer");
        assert_eq!(netlink.netns(std::process::id()).expect("an answer"), own);
    }
}
