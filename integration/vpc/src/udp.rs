//! UDP from inside a namespace: a service that tells whom it sees, and who asks it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};

use crate::Netns;
use crate::tcp::{Bound, bind};

/// Asks a [`UdpEcho`] service which address it sees this client come from. An answer from anywhere
/// else does not count.
///
/// # Errors
/// When the service does not answer within a second.
pub fn whoami_udp(from: &Netns, to: SocketAddr, bound: &Bound) -> anyhow::Result<IpAddr> {
    let opened = from.within(|| -> anyhow::Result<UdpSocket> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        bind(&socket, bound)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send(b"who")?;
        Ok(socket)
    })?;
    let asked = || format!("from {} {bound:?}, asked {to} over UDP", from.name());
    let socket = opened.with_context(asked)?;
    let mut bytes = [0; 64];
    let length = socket.recv(&mut bytes).with_context(asked)?;
    let text = String::from_utf8_lossy(&bytes[..length]);
    text.parse().with_context(|| format!("{to} says {text:?}"))
}

/// A UDP service that answers every datagram with the address it came from. As most services do,
/// it lets the kernel choose the source of its answers.
#[derive(Debug)]
pub struct UdpEcho {
    netns: Netns,
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Serves on all addresses of a namespace.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns, port: u16) -> anyhow::Result<UdpEcho> {
        // A socket on :: takes IPv4 as well, mapped.
        let socket = netns
            .within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on UDP port {port} in {}", netns.name()))?;
        let stop: Arc<AtomicBool> = Arc::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("udp echo".to_owned())
            .spawn(move || serve(&socket, &stopped))
            .context("cannot start the thread of a UDP service")?;
        Ok(UdpEcho { netns: netns.clone(), port, stop, thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread; its answer is of no interest.
        let _ = whoami_udp(&self.netns, (Ipv4Addr::LOCALHOST, self.port).into(), &Bound::No);
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) {
    let mut bytes = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        // Errors are those of earlier answers that reached nobody.
        let Ok((_, peer)) = socket.recv_from(&mut bytes) else { continue };
        let seen = peer.ip().to_canonical().to_string();
        let _ = socket.send_to(seen.as_bytes(), peer);
    }
}
