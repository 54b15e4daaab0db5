//! The VPC's DHCP server: it hears every port, leases each ENI its primary address, remembers who
//! asked, and falls silent on demand.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dhcproto::v4::Message;
pub use dhcproto::v4::MessageType;
use dhcproto::{Decodable as _, Encodable as _};
use imds::{EniId, Model};
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Mark};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
};

use crate::audience::Audience;
use crate::lease::{self, Terms};
use crate::serving::Serving;
use crate::{Netns, fabric, lock};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Relays and old clients drop messages that are shorter.
const SHORTEST: usize = 300;

/// A real server is not nearer than this. udhcpc asks for more time with a socket of its own and
/// loses an answer that comes before it has closed it.
const DISTANCE: Duration = Duration::from_millis(10);

/// A client's message and what it was answered.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// When the message arrived.
    pub at: Instant,
    /// At which ENI's port.
    pub eni: EniId,
    /// What the client asked.
    pub asked: MessageType,
    /// Where to: to all, or to the server alone, as a client does that renews its lease.
    pub to: Ipv4Addr,
    /// The answer, if there was one.
    pub answer: Option<MessageType>,
}

/// The DHCP server of a VPC.
pub struct Dhcp {
    shared: Arc<Shared>,
    _serving: Serving,
}

struct Shared {
    socket: UdpSocket,
    model: Model,
    terms: Terms,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    audience: Audience,
    log: Vec<Exchange>,
}

impl Dhcp {
    pub(crate) fn start(fabric: &Netns, model: Model, terms: Terms) -> anyhow::Result<Dhcp> {
        let socket = fabric
            .within(|| -> anyhow::Result<UdpSocket> {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT))?;
                socket.set_broadcast(true)?;
                // Only for the thread to see that it shall stop, should it not be told.
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                setsockopt(&socket, Ipv4PacketInfo, &true)?;
                setsockopt(&socket, Mark, &fabric::MARK_DHCP)?;
                Ok(socket)
            })?
            .context("cannot listen for DHCP clients")?;
        let shared = Arc::new(Shared { socket, model, terms, inner: Mutex::default() });
        let (server, waker) = (Arc::clone(&shared), Arc::clone(&shared));
        let wake = move || {
            // Where it fails, there is no thread to wake.
            let _ = waker.socket.send_to(&[], (Ipv4Addr::LOCALHOST, SERVER_PORT));
        };
        let _serving = Serving::start("dhcp", fabric, move |stop| server.serve(stop), wake)?;
        Ok(Dhcp { shared, _serving })
    }

    /// From now on, who asks at this port asks for this ENI.
    pub(crate) fn listen_at(&self, port: String, eni: EniId) {
        lock(&self.shared.inner).audience.add(port, eni);
    }

    /// How many leases an ENI got so far, renewed ones included.
    #[must_use]
    pub fn leases(&self, eni: &EniId) -> usize {
        let mut all = self.exchanges(eni);
        all.retain(|one| one.asked == MessageType::Request && one.answer == Some(MessageType::Ack));
        all.len()
    }

    /// What was asked at an ENI so far, in the order in which it arrived.
    #[must_use]
    pub fn exchanges(&self, eni: &EniId) -> Vec<Exchange> {
        lock(&self.shared.inner).log.iter().filter(|one| one.eni == *eni).cloned().collect()
    }

    /// Answers nobody until [`Dhcp::speak`].
    pub fn silence(&self) {
        lock(&self.shared.inner).audience.silence();
    }

    /// Does not answer at an ENI until [`Dhcp::speak`].
    pub fn silence_at(&self, eni: &EniId) {
        lock(&self.shared.inner).audience.silence_at(eni);
    }

    /// Answers everybody again.
    pub fn speak(&self) {
        lock(&self.shared.inner).audience.speak();
    }
}

/// A message as it came in.
struct Heard {
    /// The port's index.
    at: i32,
    to: Ipv4Addr,
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

    /// The next datagram, if it is a DHCP message.
    fn hear(&self) -> nix::Result<Option<Heard>> {
        let mut bytes = [0; 1500];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!(in_pktinfo);
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let came = received.cmsgs()?.find_map(|message| {
            if let ControlMessageOwned::Ipv4PacketInfo(info) = message { Some(info) } else { None }
        });
        let length = received.bytes;
        let asked = Message::from_bytes(&bytes[..length]).ok();
        Ok(came.zip(asked).map(|(info, asked)| {
            let to = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
            Heard { at: info.ipi_ifindex, to, asked }
        }))
    }

    fn answer(&self, heard: &Heard) {
        let at = Instant::now();
        let Some(asked) = heard.asked.opts().msg_type() else { return };
        let Ok(index) = u32::try_from(heard.at) else { return };
        let (id, answered) = {
            let audience = &lock(&self.inner).audience;
            let Some(id) = audience.at(index) else { return };
            let answered = audience.is_answered(&id);
            (id, answered)
        };
        let eni = self.model.read(|state| state.enis.get(&id).cloned());
        let answer = eni
            .filter(|_| answered)
            .and_then(|eni| lease::answer(&heard.asked, &eni, self.terms).zip(lease::server(&eni)));
        let told = answer.as_ref().and_then(|(answer, _)| answer.opts().msg_type());
        // Logged before it is sent: whoever has the answer finds it in the log.
        let exchange = Exchange { at, eni: id, asked, to: heard.to, answer: told };
        lock(&self.inner).log.push(exchange);
        if let Some((answer, from)) = answer {
            let to = lease::destination(&heard.asked, &answer);
            std::thread::sleep(DISTANCE);
            // A port that is gone by now has no client.
            let _ = self.tell(&answer, from, to, heard.at);
        }
    }

    /// Sends an answer out of the port where the client is.
    fn tell(&self, answer: &Message, from: Ipv4Addr, to: Ipv4Addr, at: i32) -> anyhow::Result<()> {
        let mut wire = answer.to_vec()?;
        wire.resize(wire.len().max(SHORTEST), 0);
        let address = |address: Ipv4Addr| in_addr { s_addr: u32::from(address).to_be() };
        let info = in_pktinfo {
            ipi_ifindex: at,
            ipi_spec_dst: address(from),
            ipi_addr: address(Ipv4Addr::UNSPECIFIED),
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&wire)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&SockaddrIn::from(SocketAddrV4::new(to, CLIENT_PORT))),
        )?;
        Ok(())
    }
}
