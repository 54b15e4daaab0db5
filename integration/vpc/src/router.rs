//! The VPC's IPv6 router as hosts know it: it advertises itself at every port, and says that every
//! address of the subnet is reached through it, so that no host ever answers for another.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use imds::{EniId, Model};
use nix::errno::Errno;
use nix::libc::{in6_addr, in6_pktinfo};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{Ipv6MulticastHops, Ipv6RecvPacketInfo, Ipv6Ttl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrIn6, recvmsg, sendmsg, setsockopt, socket,
};

use crate::audience::Audience;
use crate::fabric::ROUTER_V6;
use crate::ndp::{self, Advertised, Question};
use crate::{Netns, lock};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Hosts believe nothing that may have come through a router.
const HOPS: i32 = 255;

/// How often the router advertises itself without being asked.
const INTERVAL: Duration = Duration::from_secs(10);

/// The IPv6 router of a VPC.
pub struct Router {
    shared: Arc<Shared>,
    fabric: Netns,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: UdpSocket,
    model: Model,
    advertised: Advertised,
    stop: AtomicBool,
    audience: Mutex<Audience>,
}

impl Router {
    pub(crate) fn start(
        fabric: &Netns,
        model: Model,
        advertised: Advertised,
    ) -> anyhow::Result<Router> {
        let socket = fabric.within(open)?.context("cannot be a router")?;
        let (stop, audience) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { socket, model, advertised, stop, audience });
        let (serving, inside) = (Arc::clone(&shared), fabric.clone());
        let thread = std::thread::Builder::new()
            .name("router".to_owned())
            .spawn(move || {
                // The names of ports are asked for inside; a router that is not there is one that
                // says nothing.
                if inside.enter().is_ok() {
                    serving.serve();
                }
            })
            .context("cannot start the router's thread")?;
        Ok(Router { shared, fabric: fabric.clone(), thread: Some(thread) })
    }

    pub(crate) fn listen_at(&self, port: String, eni: EniId) {
        lock(&self.shared.audience).add(port, eni);
    }

    /// Advertises itself at an ENI now; without that, hosts hear of it when they ask, which they
    /// do up to a second after their link came up, and every ten seconds.
    ///
    /// # Errors
    /// When the fabric cannot be entered.
    pub fn advertise(&self, eni: &EniId) -> anyhow::Result<()> {
        self.fabric.within(|| self.shared.advertise(Some(eni)))
    }

    /// Advertises itself nowhere until [`Router::speak`]; that neighbours are reached through it
    /// is told nevertheless.
    pub fn silence(&self) {
        lock(&self.shared.audience).silence();
    }

    /// Does not advertise itself at an ENI until [`Router::speak`].
    pub fn silence_at(&self, eni: &EniId) {
        lock(&self.shared.audience).silence_at(eni);
    }

    /// Advertises itself everywhere again.
    pub fn speak(&self) {
        lock(&self.shared.audience).speak();
    }

    /// Whether it advertises itself at an ENI: not where it is silent or the subnet has no IPv6.
    #[must_use]
    pub fn speaks_at(&self, eni: &EniId) -> bool {
        let has_v6 = |eni: &imds::Eni| !eni.subnet_v6.is_empty();
        let has_v6 = self.shared.model.read(|state| state.enis.get(eni).is_some_and(has_v6));
        has_v6 && lock(&self.shared.audience).is_answered(eni)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which hears all ICMPv6. Where it fails, there is no thread to wake.
        let nothing = [0; 8];
        let _ = self.shared.socket.send_to(&nothing, (Ipv6Addr::LOCALHOST, 0));
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

fn open() -> anyhow::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    setsockopt(&socket, Ipv6MulticastHops, &HOPS)?;
    setsockopt(&socket, Ipv6Ttl, &HOPS)?;
    let socket = UdpSocket::from(socket);
    // Only for the thread to see what time it is.
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

/// A question as it came in.
struct Heard {
    /// The port's index.
    at: u32,
    from: Ipv6Addr,
    question: Question,
}

impl Shared {
    fn serve(&self) {
        let mut next = Instant::now() + INTERVAL;
        while !self.stop.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                self.advertise(None);
                next = Instant::now() + INTERVAL;
            }
            match self.hear() {
                Ok(Some(heard)) => self.answer(&heard),
                Ok(None) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) => return,
            }
        }
    }

    /// The next message, if it is a question.
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
        let question = ndp::question(&bytes[..length]);
        Ok((|| {
            let (at, from) = (came?.ipi6_ifindex, from?.ip());
            Some(Heard { at, from, question: question? })
        })())
    }

    fn answer(&self, heard: &Heard) {
        let Some(id) = lock(&self.audience).at(heard.at) else { return };
        match heard.question {
            Question::Routers => self.advertise(Some(&id)),
            Question::Neighbour(target) => {
                let elsewhere = self.model.read(|state| {
                    state.enis.get(&id).is_some_and(|eni| {
                        let in_subnet = eni.subnet_v6.iter().any(|net| net.contains(&target));
                        in_subnet && !eni.owns(IpAddr::V6(target))
                    })
                });
                // Who has no address yet only asks whether nobody else has the one it wants.
                if elsewhere && !heard.from.is_unspecified() {
                    self.send(&ndp::neighbour(target), heard.from, heard.at);
                }
            }
        }
    }

    /// Advertises the router at one ENI or at all; inside the fabric.
    fn advertise(&self, only: Option<&EniId>) {
        let places: Vec<(String, EniId)> = {
            let audience = lock(&self.audience);
            let wanted =
                |id: &EniId| only.is_none_or(|only| only == id) && audience.is_answered(id);
            let all = audience.all().filter(|(_, id)| wanted(id));
            all.map(|(port, id)| (port.to_owned(), id.clone())).collect()
        };
        for (port, id) in places {
            let subnets = self.model.read(|state| {
                state.enis.get(&id).map(|eni| eni.subnet_v6.clone()).unwrap_or_default()
            });
            // An ENI that is attached nowhere has no port.
            if let (false, Ok(at)) = (subnets.is_empty(), if_nametoindex(port.as_str())) {
                self.send(&ndp::router(self.advertised, &subnets), ALL_NODES, at);
            }
        }
    }

    /// Sends out of a port; one that is gone or down by now leads to nobody.
    fn send(&self, message: &[u8], to: Ipv6Addr, at: u32) {
        let source = in6_addr { s6_addr: ROUTER_V6.octets() };
        let info = in6_pktinfo { ipi6_addr: source, ipi6_ifindex: at };
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, at));
        let _ = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(message)],
            &[ControlMessage::Ipv6PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&to),
        );
    }
}
