//! Hears that a table of ours has changed. nftables tells of all tables at once, so the names are
//! read; a busy packet filter of somebody else is no change.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use tokio::time::Instant;

use super::numbers::{NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES};
use super::rules::{FAMILY, table_of};
use crate::error::Error;
use crate::watch::Change;
use crate::wire::nested;
use crate::wire::read::text;

/// So many datagrams are read in one go; after that others have their turn.
const GULP: usize = 64;
/// Between two gulps.
const PAUSE: Duration = Duration::from_millis(2);
/// How long to wait before a socket is asked for again that could not be had.
const RETRY: Duration = Duration::from_secs(1);

/// The socket that listens to nftables.
pub(super) struct Watch {
    /// None while it cannot be had.
    socket: Option<TokioSocket>,
    buffer: Vec<u8>,
    rest_until: Option<Instant>,
}

impl Watch {
    pub(super) fn open() -> Result<Self, Error> {
        let socket = Some(open().map_err(|source| Error::Open { source })?);
        Ok(Self { socket, buffer: Vec::with_capacity(1 << 15), rest_until: None })
    }

    /// Waits for a change. Cancel-safe: a notification is taken from the socket only in the poll
    /// that also answers, or it does not matter.
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            if let Some(until) = self.rest_until {
                tokio::time::sleep_until(until).await;
                self.rest_until = None;
            }
            let drained = match &self.socket {
                Some(_) => poll_fn(|context| self.drain(context)).await,
                None => Err(io::Error::from(Errno::ENOTCONN)),
            };
            self.rest_until = Some(Instant::now() + PAUSE);
            match drained {
                Ok(false) => {}
                Ok(true) => return Change::Event,
                Err(error) => return self.listen_again(&error),
            }
        }
    }

    /// Takes what is queued, but no more than a gulp: whether some of it matters. Pending when
    /// nothing is left and nothing mattered.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(socket) = &self.socket else {
            return Poll::Ready(Ok(false));
        };
        let mut relevant = false;
        for _ in 0..GULP {
            self.buffer.clear();
            match socket.poll_recv(context, &mut self.buffer) {
                Poll::Ready(Ok(())) => relevant |= matters(&self.buffer),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if relevant => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(relevant))
    }

    /// Listens on a new socket: what was lost is seen by the look that the answer asks for.
    fn listen_again(&mut self, lost: &io::Error) -> Change {
        if lost.raw_os_error() != Some(Errno::ENOBUFS as i32) {
            tracing::warn!(%lost, "the socket that listens to nftables is broken");
        }
        self.socket = open().ok();
        if self.socket.is_none() {
            self.rest_until = Some(Instant::now() + RETRY);
        }
        Change::Lost
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

fn open() -> io::Result<TokioSocket> {
    let mut listener = TokioSocket::new(NETLINK_NETFILTER)?;
    let socket = listener.socket_mut();
    socket.bind_auto()?;
    socket.add_membership(NFNLGRP_NFTABLES)?;
    Ok(listener)
}

/// Whether a datagram, which may hold many messages, tells of a table of ours.
pub(crate) fn matters(mut datagram: &[u8]) -> bool {
    const HEADER: usize = 16;
    while let Some(length) = datagram.first_chunk() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(message) = datagram.get(..length).filter(|_| length >= HEADER) else {
            // What cannot be read may matter.
            return true;
        };
        if is_ours(message) {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Whatever a message is about, its first attribute is the name of the table.
fn is_ours(message: &[u8]) -> bool {
    const TABLE: u16 = 1;
    let subsystem = message.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let name = message.get(20..).and_then(|attributes| nested(attributes, TABLE)).map(text);
    subsystem.is_some_and(|kind| kind >> 8 == NFNL_SUBSYS_NFTABLES)
        && message.get(16) == Some(&FAMILY)
        && name.is_some_and(|name| table_of(&name).is_some())
}
