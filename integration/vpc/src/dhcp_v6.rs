//! The VPC's DHCPv6 server: it hears every port, leases each ENI the first of its IPv6 addresses,
//! remembers who asked, and falls silent on demand.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dhcproto::v6::Message;
pub use dhcproto::v6::MessageType as MessageTypeV6;
use dhcproto::{Decodable as _, Encodable as _};
use imds::{EniId, Model};
use nix::errno::Errno;
use nix::libc::{in6_addr, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv6RecvPacketInfo, Ipv6V6Only};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn6,
    bind, recvmsg, sendmsg, setsockopt, socket,
};

use crate::audience::Audience;
use crate::config::Lifetimes;
use crate::fabric::ROUTER_V6;
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
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: UdpSocket,
    model: Model,
    lease: Lifetimes,
    stop: AtomicBool,
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
        let stop = AtomicBool::new(false);
        let shared = Arc::new(Shared { socket, model, lease, stop, inner: Mutex::default() });
        let (serving, fabric) = (Arc::clone(&shared), fabric.clone());
        let thread = std::thread::Builder::new()
            .name("dhcpv6".to_owned())
            .spawn(move || {
                // The names of ports are asked for inside; a server that is not there is one that
                // does not answer.
                if fabric.enter().is_ok() {
                    serving.serve();
                }
            })
            .context("cannot start the thread of the DHCPv6 server")?;
        Ok(DhcpV6 { shared, thread: Some(thread) })
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

impl Drop for DhcpV6 {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread. Where it fails, there is no thread to wake.
        let _ = self.shared.socket.send_to(&[], (Ipv6Addr::LOCALHOST, SERVER_PORT));
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
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
    fn serve(&self) {
        while !self.stop.load(Ordering::Relaxed) {
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
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!(in6_pktinfo);
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let came = received.cmsgs()?.find_map(|message| {
            if let ControlMessageOwned::Ipv6PacketInfo(info) = message { Some(info) } else { None }
        });
        let (length, from) = (received.bytes, received.address);
        let asked = Message::from_bytes(&bytes[..length]).ok();
        Ok(came.zip(from).zip(asked).and_then(|((info, from), asked)| {
            let is_client = from.ip().is_unicast_link_local() && from.port() == CLIENT_PORT;
            is_client.then_some(Heard { at: info.ipi6_ifindex, from, asked })
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
        if let Some(answer) = answer {
            // A port that is gone by now has no client.
            let _ = self.tell(&answer, heard);
        }
    }

    /// Sends an answer out of the port where the client is.
    fn tell(&self, answer: &Message, heard: &Heard) -> anyhow::Result<()> {
        let wire = answer.to_vec()?;
        let source = in6_addr { s6_addr: ROUTER_V6.octets() };
        let info = in6_pktinfo { ipi6_addr: source, ipi6_ifindex: heard.at };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&wire)],
            &[ControlMessage::Ipv6PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&heard.from),
        )?;
        Ok(())
    }
}
