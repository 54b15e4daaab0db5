//! Hears that something has changed. Events carry no data, so they are counted, not read.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use tokio::time::Instant;

use crate::error::Error;
use crate::wire::numbers::{RTM_DELROUTE, RTM_F_CLONED, RTM_NEWROUTE};

/// What can change that matters (`RTNLGRP_…`).
const GROUPS: [(&str, u32); 8] = [
    ("links", 1),
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
/// Between two answers, so that a flood is heard in gulps.
const PAUSE: Duration = Duration::from_millis(2);
/// A longer queue is thrown away unread: a new socket is cheaper than so many reads.
const QUEUE: usize = 64;

/// Why to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Something has changed.
    Event,
    /// Events were lost: the kernel's buffer overran, or the socket broke.
    Lost,
}

/// The socket that listens, apart from the one that asks.
pub(crate) struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    receive_buffer: usize,
    rest_until: Option<Instant>,
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
        Ok(Self { socket, buffer: Vec::with_capacity(1 << 15), receive_buffer, rest_until: None })
    }

    pub(crate) fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Waits for a change. Cancel-safe: a notification is taken from the socket only in the poll
    /// that also answers.
    pub(crate) async fn changed(&mut self) -> Change {
        loop {
            if let Some(until) = self.rest_until {
                tokio::time::sleep_until(until).await;
                self.rest_until = None;
            }
            let change = match poll_fn(|context| self.drain(context)).await {
                Drained::Nothing => continue,
                Drained::Events => Change::Event,
                Drained::More => self.reopen(Change::Event),
                Drained::Overrun => self.reopen(Change::Lost),
                Drained::Broken(error) => {
                    tracing::warn!(%error, "the socket that listens to the kernel is broken");
                    self.reopen(Change::Lost)
                }
            };
            self.rest_until = Some(Instant::now() + PAUSE);
            return change;
        }
    }

    /// Takes what is queued; pending when nothing of it mattered.
    fn drain(&mut self, context: &mut std::task::Context<'_>) -> Poll<Drained> {
        let mut relevant = false;
        for _ in 0..QUEUE {
            self.buffer.clear();
            match self.socket.poll_recv(context, &mut self.buffer) {
                Poll::Ready(Ok(())) => relevant |= matters(&self.buffer),
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

    /// Listens on a new socket, and throws away what the old one has queued. What happens between
    /// the two is seen by the look that the answer asks for.
    fn reopen(&mut self, change: Change) -> Change {
        match open() {
            Ok((socket, receive_buffer)) => {
                (self.socket, self.receive_buffer) = (socket, receive_buffer);
                change
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen to the kernel on a new socket");
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
    for (_, group) in GROUPS {
        socket.add_membership(group)?;
    }
    Ok((listener, receive_buffer))
}

/// Whether a notification is about more than IPv6's cache of routes in use.
fn matters(message: &[u8]) -> bool {
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let flags = message.get(24..28).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    match (kind, flags) {
        (Some(RTM_NEWROUTE | RTM_DELROUTE), Some(flags)) => flags & RTM_F_CLONED == 0,
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
        assert!(!matters(&notification(RTM_NEWROUTE, RTM_F_CLONED)));
        assert!(!matters(&notification(RTM_DELROUTE, RTM_F_CLONED | 0x10)));
        assert!(matters(&notification(RTM_NEWROUTE, 0)));
        assert!(matters(&notification(16, RTM_F_CLONED)), "in a link, this is another field");
        assert!(matters(&[]), "what cannot be read may matter");
    }
}
