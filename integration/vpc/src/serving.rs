//! A server of the fabric: a thread that answers inside of it until it is dropped, and how IPv6 is
//! heard and told at one port.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use nix::libc::{in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg,
};

use crate::Netns;
use crate::fabric::ROUTER_V6;

/// The thread of a server; dropping it ends it.
pub(crate) struct Serving {
    stop: Arc<AtomicBool>,
    wake: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Serves until the flag is set; `wake` lets it look at the flag. The names of ports are asked
    /// for inside; a server that is not there is one that does not answer.
    pub(crate) fn start(
        name: &str,
        fabric: &Netns,
        serve: impl FnOnce(&AtomicBool) + Send + 'static,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> anyhow::Result<Serving> {
        let stop: Arc<AtomicBool> = Arc::default();
        let (stopped, fabric) = (Arc::clone(&stop), fabric.clone());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if fabric.enter().is_ok() {
                    serve(&stopped);
                }
            })
            .with_context(|| format!("cannot start the thread of {name}"))?;
        Ok(Serving { stop, wake: Box::new(wake), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (self.wake)();
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

/// Where a packet came from, and how long it is.
pub(crate) struct Came {
    /// The port's index.
    pub(crate) at: u32,
    pub(crate) from: SockaddrIn6,
    pub(crate) length: usize,
}

/// The next packet of IPv6; none where the kernel does not tell the port.
pub(crate) fn hear(socket: &UdpSocket, bytes: &mut [u8]) -> nix::Result<Option<Came>> {
    let mut parts = [IoSliceMut::new(bytes)];
    let mut space = nix::cmsg_space!(in6_pktinfo);
    let fd = socket.as_raw_fd();
    let received = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
    let info = received.cmsgs()?.find_map(|message| {
        if let ControlMessageOwned::Ipv6PacketInfo(info) = message { Some(info) } else { None }
    });
    let length = received.bytes;
    Ok(info.zip(received.address).map(|(info, from)| Came { at: info.ipi6_ifindex, from, length }))
}

/// Sends from the router's address out of a port; one that is gone or down by now leads to nobody.
pub(crate) fn tell(socket: &UdpSocket, wire: &[u8], to: &SockaddrIn6, at: u32) {
    let source = in6_addr { s6_addr: ROUTER_V6.octets() };
    let info = in6_pktinfo { ipi6_addr: source, ipi6_ifindex: at };
    let _ = sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(wire)],
        &[ControlMessage::Ipv6PacketInfo(&info)],
        MsgFlags::empty(),
        Some(to),
    );
}
