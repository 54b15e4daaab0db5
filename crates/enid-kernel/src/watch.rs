//! Hears that something has changed. Events carry no data, so they are counted, not read.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::Ipv6Addr;
use std::task::{Context, Poll};
use std::time::Duration;

use enid_core::object::LinkIndex;
use enid_core::plan::Step;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use socket2::{SockFilter, SockRef};
use tokio::time::Instant;

use crate::culprit::Culprits;
use crate::error::Error;
use crate::wire::numbers::{
    AF_INET6, NTF_ROUTER, RTM_DELNEIGH, RTM_DELROUTE, RTM_F_CLONED, RTM_NEWNEIGH, RTM_NEWROUTE,
};
use crate::wire::read::router;

/// What can change that matters (`RTNLGRP_…`).
const GROUPS: [(&str, u32); 9] = [
    ("links", 1),
    ("neighbours", 3),
    ("IPv4 addresses", 5),
    ("IPv4 routes", 7),
    ("IPv4 rules", 8),
    ("IPv6 addresses", 9),
    ("IPv6 routes", 11),
    ("IPv6 rules", 19),
    ("namespace identifiers", 28),
];
/// Bytes of notifications that the kernel shall keep: some ten thousand.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Between two answers, so that a burst is heard in gulps.
const PAUSE: Duration = Duration::from_millis(2);
/// A longer queue is thrown away unread: a new socket is cheaper than so many reads.
const QUEUE: usize = 64;
/// Two such queues within this time are a flood.
const FLOOD: Duration = Duration::from_millis(100);
/// How long not to listen in a flood: each notification would wake us, whether read or not.
const DEAF: Duration = Duration::from_millis(20);
/// How long to wait before a socket is asked for again that could not be had.
const RETRY: Duration = Duration::from_secs(1);

/// Why to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Something has changed.
    Event,
    /// Events were lost: the kernel's buffer overran, or the socket broke.
    Lost,
}

pub(crate) type Routers = BTreeMap<LinkIndex, BTreeSet<Ipv6Addr>>;

/// The socket that listens, apart from the one that asks.
pub(crate) struct Watch {
    /// None while we do not listen; whatever happens then is one change, told afterwards.
    socket: Option<TokioSocket>,
    buffer: Vec<u8>,
    receive_buffer: usize,
    /// Those of the last look.
    routers: Routers,
    rest_until: Option<Instant>,
    thrown_away: Option<Instant>,
    /// Asked not to listen.
    deaf: bool,
    brief: bool,
    culprits: Culprits,
}

/// What the queue had.
enum Drained {
    Nothing,
    Events,
    More,
    Overrun,
    Broken(io::Error),
}

impl Watch {
    pub(crate) fn open() -> Result<Self, Error> {
        let (socket, receive_buffer) = open().map_err(|source| Error::Open { source })?;
        Ok(Self {
            socket: Some(socket),
            buffer: Vec::with_capacity(1 << 15),
            receive_buffer,
            routers: Routers::new(),
            rest_until: None,
            thrown_away: None,
            deaf: false,
            brief: false,
            culprits: Culprits::default(),
        })
    }

    pub(crate) fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Takes in which routers a look has shown, because a neighbour's state changes all the time
    /// and only a router that comes or goes is a change.
    pub(crate) fn knows(&mut self, routers: &Routers) {
        self.routers.clone_from(routers);
    }

    /// Hears nothing until [`Self::listen`].
    pub(crate) fn listen_no_more(&mut self) {
        (self.socket, self.rest_until, self.deaf) = (None, None, true);
    }

    /// Hears again, from now on.
    pub(crate) fn listen(&mut self) {
        if self.deaf {
            self.deaf = false;
            // If it cannot, that is tried again and told then.
            let _ = self.listen_again(Change::Event);
        }
    }

    /// Who last deleted what a step makes.
    pub(crate) fn culprit(&self, step: &Step) -> Option<(u32, Option<String>)> {
        self.culprits.of(step)
    }

    /// Whether one change is as good as many, because nobody is going to look soon.
    pub(crate) fn be_brief(&mut self, brief: bool) {
        self.brief = brief;
    }

    /// Waits for a change. Cancel-safe: a notification is taken from the socket only in the poll
    /// that also answers.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            if self.deaf {
                return std::future::pending().await;
            }
            if let Some(until) = self.rest_until {
                tokio::time::sleep_until(until).await;
                self.rest_until = None;
            }
            if self.socket.is_none() {
                return self.listen_again(Change::Event);
            }
            let drained = poll_fn(|context| self.drain(context)).await;
            self.rest_until = Some(Instant::now() + PAUSE);
            match drained {
                Drained::Nothing => {}
                Drained::Events => return Change::Event,
                Drained::More => return self.throw_away(),
                Drained::Overrun => return self.listen_again(Change::Lost),
                Drained::Broken(error) => {
                    tracing::warn!(%error, "the socket that listens to the kernel is broken");
                    return self.listen_again(Change::Lost);
                }
            }
        }
    }

    /// Takes what is queued; pending when nothing of it mattered.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<Drained> {
        let Some(socket) = &self.socket else {
            return Poll::Ready(Drained::Nothing);
        };
        let mut relevant = false;
        for _ in 0..QUEUE {
            self.buffer.clear();
            match socket.poll_recv(context, &mut self.buffer) {
                Poll::Ready(Ok(())) => {
                    relevant |= matters(&self.buffer, &self.routers);
                    self.culprits.hear(&self.buffer);
                    if relevant && self.brief {
                        return Poll::Ready(Drained::Events);
                    }
                }
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Poll::Ready(Drained::Overrun);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Drained::Broken(error)),
                Poll::Pending if relevant => return Poll::Ready(Drained::Events),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(if relevant { Drained::More } else { Drained::Nothing })
    }

    /// Forgets a long queue. One burst, such as our own steps make, costs a new socket; a flood
    /// that goes on is not listened to for a while.
    fn throw_away(&mut self) -> Change {
        let now = Instant::now();
        let before = self.thrown_away.replace(now);
        if before.is_some_and(|before| now - before < FLOOD) {
            self.socket = None;
            self.rest_until = Some(now + DEAF);
            return Change::Event;
        }
        self.listen_again(Change::Event)
    }

    /// Listens on a new socket. What the old one had queued, and what happened between the two, is
    /// seen by the look that the answer asks for.
    fn listen_again(&mut self, change: Change) -> Change {
        match open() {
            Ok((socket, receive_buffer)) => {
                (self.socket, self.receive_buffer) = (Some(socket), receive_buffer);
                change
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen to the kernel");
                self.socket = None;
                self.rest_until = Some(Instant::now() + RETRY);
                Change::Lost
            }
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("receive_buffer", &self.receive_buffer)
            .finish_non_exhaustive()
    }
}

fn open() -> io::Result<(TokioSocket, usize)> {
    let mut listener = TokioSocket::new(NETLINK_ROUTE)?;
    let socket = listener.socket_mut();
    socket.bind_auto()?;
    // Beyond the system's limit only with CAP_NET_ADMIN of the machine, not of a container.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    let receive_buffer = getsockopt(socket, sockopt::RcvBuf)?;
    SockRef::from(&*socket).attach_filter(&unheard())?;
    for (_, group) in GROUPS {
        socket.add_membership(group)?;
    }
    Ok((listener, receive_buffer))
}

/// What the kernel keeps from us: of the neighbours, all but IPv6's routers. A first router
/// advertisement changes nothing else that is told, but each neighbour in use is told of every half
/// minute, and to be woken for nothing costs 40 µs. One that stops being a router has no flag, and is
/// left to the next look.
fn unheard() -> [SockFilter; 9] {
    // The classic packet filter: what to load, or where to jump for yes and for no; it takes numbers
    // to be in the network's order.
    const BYTE: u16 = 0x30;
    const TWO_BYTES: u16 = 0x28;
    const IS: u16 = 0x15;
    const HAS: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const KIND: u32 = 4;
    const FAMILY: u32 = 16;
    const FLAGS: u32 = 26;
    let load = |code, place| SockFilter::new(code, 0, 0, place);
    let kind = |kind: u16| u32::from(kind.to_be());
    [
        load(TWO_BYTES, KIND),
        SockFilter::new(IS, 1, 0, kind(RTM_NEWNEIGH)),
        SockFilter::new(IS, 0, 4, kind(RTM_DELNEIGH)),
        load(BYTE, FAMILY),
        SockFilter::new(IS, 0, 3, u32::from(AF_INET6)),
        load(BYTE, FLAGS),
        SockFilter::new(HAS, 0, 1, u32::from(NTF_ROUTER)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Whether a notification is about more than IPv6's cache of routes in use, and about more than how
/// it stands with a neighbour.
pub(crate) fn matters(message: &[u8], routers: &Routers) -> bool {
    const HEADER: usize = 16;
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(RTM_NEWROUTE | RTM_DELROUTE) => {
            let flags = message.get(24..28).and_then(|bytes| bytes.try_into().ok());
            flags.is_none_or(|flags| u32::from_ne_bytes(flags) & RTM_F_CLONED == 0)
        }
        Some(kind @ (RTM_NEWNEIGH | RTM_DELNEIGH)) => {
            let router = router(message.get(HEADER..).unwrap_or_default());
            router.map_or(true, |router| {
                router.is_some_and(|router| {
                    let known = routers.get(&router.link);
                    let known = known.is_some_and(|known| known.contains(&router.address));
                    (kind == RTM_NEWNEIGH && router.usable) != known
                })
            })
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(kind: u16, flags: u32) -> Vec<u8> {
        let mut message = vec![0; 28];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[24..28].copy_from_slice(&flags.to_ne_bytes());
        message
    }

    #[test]
    fn the_route_cache_does_not_matter_and_all_else_does() {
        let matters = |message: &[u8]| matters(message, &Routers::new());
        assert!(!matters(&notification(RTM_NEWROUTE, RTM_F_CLONED)));
        assert!(!matters(&notification(RTM_DELROUTE, RTM_F_CLONED | 0x10)));
        assert!(matters(&notification(RTM_NEWROUTE, 0)));
        assert!(matters(&notification(16, RTM_F_CLONED)), "in a link, this is another field");
        assert!(matters(&notification(RTM_NEWNEIGH, 0)[..20]), "half a neighbour");
        assert!(matters(&[]), "what cannot be read may matter");
    }
}
