//! The VPC's DHCPv6 server: it hears every port, leases each ENI the first of its IPv6 addresses,
//! remembers who asked, and falls silent on demand.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dhcproto::v6::Message;
pub use dhcproto::v6::MessageType as MessageTypeV6;
use dhcproto::{Decodable as _, Encodable as _};
use imds::{EniId, Model};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6RecvPacketInfo, Ipv6V6Only};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket};

use crate::audience::Audience;
use crate::config::Lifetimes;
use crate::serving::{self, Came, Serving};
use crate::{Netns, lease_v6, lock};

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;

/// A client's message and what it was answered.
#[derive(Clone, Debug)]
pub struct ExchangeV6 {
    /// When the message arrived.
    pub at: Instant,
    /// At which ENI's port.
    pub eni: EniId,
    /// What the client asked.
    pub asked: MessageTypeV6,
    /// The answer, if there was one.
    pub answer: Option<MessageTypeV6>,
}

/// The DHCPv6 server of a VPC.
pub struct DhcpV6 {
    shared: Arc<Shared>,
    _serving: Serving,
}

struct Shared {
    socket: UdpSocket,
    model: Model,
    lease: Lifetimes,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    audience: Audience,
    log: Vec<ExchangeV6>,
}

impl DhcpV6 {
    pub(crate) fn start(fabric: &Netns, model: Model, lease: Lifetimes) -> anyhow::Result<DhcpV6> {
        let socket = fabric.within(open)?.context("cannot listen for DHCPv6 clients")?;
        let shared = Arc::new(Shared { socket, model, lease, inner: Mutex::default() });
        let (server, waker) = (Arc::clone(&shared), Arc::clone(&shared));
        let wake = move || {
            // Where it fails, there is no thread to wake.
            let _ = waker.socket.send_to(&[], (Ipv6Addr::LOCALHOST, SERVER_PORT));
        };
        let _serving = Serving::start("dhcpv6", fabric, move |stop| server.serve(stop), wake)?;
        Ok(DhcpV6 { shared, _serving })
    }

    pub(crate) fn listen_at(&self, port: String, eni: EniId) {
        lock(&self.shared.inner).audience.add(port, eni);
    }

    /// How many leases an ENI got so far, renewed ones included.
    #[must_use]
    pub fn leases(&self, eni: &EniId) -> usize {
        use MessageTypeV6::{Rebind, Renew, Reply, Request};
        let mut all = self.exchanges(eni);
        all.retain(|one| {
            matches!(one.asked, Request | Renew | Rebind) && one.answer == Some(Reply)
        });
        all.len()
    }

    /// What was asked at an ENI so far, in the order in which it arrived.
    #[must_use]
    pub fn exchanges(&self, eni: &EniId) -> Vec<ExchangeV6> {
        lock(&self.shared.inner).log.iter().filter(|one| one.eni == *eni).cloned().collect()
    }

    /// Answers nobody until [`DhcpV6::speak`].
    pub fn silence(&self) {
        lock(&self.shared.inner).audience.silence();
    }

    /// Does not answer at an ENI until [`DhcpV6::speak`].
    pub fn silence_at(&self, eni: &EniId) {
        lock(&self.shared.inner).audience.silence_at(eni);
    }

    /// Answers everybody again.
    pub fn speak(&self) {
        lock(&self.shared.inner).audience.speak();
    }
}

fn open() -> anyhow::Result<UdpSocket> {
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, Ipv6V6Only, &true)?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, SERVER_PORT, 0, 0));
    bind(socket.as_raw_fd(), &any)?;
    let socket = UdpSocket::from(socket);
    // Only for the thread to see that it shall stop, should it not be told.
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// A message as it came in.
struct Heard {
    /// The port's index.
    at: u32,
    from: SockaddrIn6,
    asked: Message,
}

impl Shared {
    fn serve(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.hear() {
                Ok(Some(heard)) => self.answer(&heard),
                Ok(None) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) => return,
            }
        }
    }

    /// The next datagram, if it is a DHCPv6 message of a client.
    fn hear(&self) -> nix::Result<Option<Heard>> {
        let mut bytes = [0; 1500];
        let came = serving::hear(&self.socket, &mut bytes)?;
        Ok(came.and_then(|Came { at, from, length }| {
            let asked = Message::from_bytes(&bytes[..length]).ok()?;
            let is_client = from.ip().is_unicast_link_local() && from.port() == CLIENT_PORT;
            is_client.then_some(Heard { at, from, asked })
        }))
    }

    fn answer(&self, heard: &Heard) {
        let at = Instant::now();
        let (id, answered) = {
            let audience = &lock(&self.inner).audience;
            let Some(id) = audience.at(heard.at) else { return };
            let answered = audience.is_answered(&id);
            (id, answered)
        };
        let eni = self.model.read(|state| state.enis.get(&id).cloned());
        let answer = eni
            .filter(|_| answered)
            .and_then(|eni| lease_v6::answer(&heard.asked, &eni, self.lease));
        let told = answer.as_ref().map(Message::msg_type);
        // Logged before it is sent: whoever has the answer finds it in the log.
        let exchange = ExchangeV6 { at, eni: id, asked: heard.asked.msg_type(), answer: told };
        lock(&self.inner).log.push(exchange);
        if let Some(wire) = answer.and_then(|answer| answer.to_vec().ok()) {
            serving::tell(&self.socket, &wire, &heard.from, heard.at);
        }
    }
}
