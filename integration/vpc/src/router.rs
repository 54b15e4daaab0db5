//! The VPC's IPv6 router as hosts know it: it advertises itself at every port, and says that every
//! address of the subnet is reached through it, so that no host ever answers for another.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use imds::{EniId, Model};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{Ipv6MulticastHops, Ipv6RecvPacketInfo, Ipv6Ttl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6, setsockopt, socket,
};

use crate::audience::Audience;
use crate::ndp::{self, Advertised, Question};
use crate::serving::{self, Came, Serving};
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
    _serving: Serving,
}

struct Shared {
    socket: UdpSocket,
    model: Model,
    advertised: Advertised,
    audience: Mutex<Audience>,
}

impl Router {
    pub(crate) fn start(
        fabric: &Netns,
        model: Model,
        advertised: Advertised,
    ) -> anyhow::Result<Router> {
        let socket = fabric.within(open)?.context("cannot be a router")?;
        let shared = Arc::new(Shared { socket, model, advertised, audience: Mutex::default() });
        let (server, waker) = (Arc::clone(&shared), Arc::clone(&shared));
        let wake = move || {
            // It hears all ICMPv6. Where it fails, there is no thread to wake.
            let _ = waker.socket.send_to(&[0; 8], (Ipv6Addr::LOCALHOST, 0));
        };
        let _serving = Serving::start("router", fabric, move |stop| server.serve(stop), wake)?;
        Ok(Router { shared, fabric: fabric.clone(), _serving })
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
    fn serve(&self, stop: &AtomicBool) {
        let mut next = Instant::now() + INTERVAL;
        while !stop.load(Ordering::Relaxed) {
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
        let came = serving::hear(&self.socket, &mut bytes)?;
        Ok(came.and_then(|Came { at, from, length }| {
            let question = ndp::question(&bytes[..length])?;
            Some(Heard { at, from: from.ip(), question })
        }))
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

    fn send(&self, message: &[u8], to: Ipv6Addr, at: u32) {
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, at));
        serving::tell(&self.socket, message, &to, at);
    }
}
