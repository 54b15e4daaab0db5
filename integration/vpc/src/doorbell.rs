//! When the kernel announces a link inside a namespace.

use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Netns;

/// Tells when the next link event happens in a namespace. The event is not read: looking at the
/// kernel is the work of `ip`.
pub(crate) fn next(netns: &Netns) -> anyhow::Result<mpsc::Receiver<Instant>> {
    const LINK_EVENTS: u32 = 1;
    let socket = netns
        .within(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_EVENTS))?;
            // What makes the event takes seconds on a busy machine.
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(60))?;
            nix::Result::Ok(socket)
        })?
        .context("cannot listen for link events")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let rung = recv(socket.as_raw_fd(), &mut [0; 8], MsgFlags::empty());
        // More events than there is room for are events, too.
        if matches!(rung, Ok(_) | Err(Errno::ENOBUFS)) {
            // Nobody waits any more where the move has failed.
            let _ = tell.send(Instant::now());
        }
    });
    Ok(told)
}
