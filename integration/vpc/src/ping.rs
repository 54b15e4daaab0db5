//! Echo requests from inside a namespace, one or a steady stream, with exact times.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::tcp::{Bound, bind};
use crate::{Netns, lock};

/// Sends one echo request and waits up to a second. `false` also when it could not be sent.
///
/// # Errors
/// When the socket cannot be made or bound as asked.
pub fn ping_once(from: &Netns, to: IpAddr, bound: &Bound) -> anyhow::Result<bool> {
    let shared = Shared::open(from, to, bound)?;
    if shared.socket.send_to(&shared.request(0), SocketAddr::new(to, 0)).is_err() {
        return Ok(false);
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut packet = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        shared.socket.set_read_timeout(Some(left))?;
        if let Ok((length, peer)) = shared.socket.recv_from(&mut packet)
            && peer.ip() == to
            && shared.reply(&packet[..length]) == Some(0)
        {
            return Ok(true);
        }
    }
}

/// An answer that comes later than this is lost.
const LATE: Duration = Duration::from_secs(5);

/// A steady stream of echo requests.
#[derive(Debug)]
pub struct Pinger {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    to: IpAddr,
    stop: AtomicBool,
    probes: Mutex<Vec<Probe>>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    sent: Instant,
    /// The kernel did not take it: no route, link down.
    refused: bool,
    answered: Option<Instant>,
}

/// What became of the requests so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Requests, those that the kernel refused to send included.
    pub sent: usize,
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that were not answered; those of the last 100 ms do not count.
    pub lost: usize,
    /// Requests that the kernel refused to send.
    pub refused: usize,
    /// The longest time between two answers that came one after the other.
    pub longest_gap: Duration,
    /// When the first answer arrived.
    pub first_answer: Option<Instant>,
    /// When the last answer arrived.
    pub last_answer: Option<Instant>,
    /// When the answer arrived from which on every request was answered.
    pub steady_since: Option<Instant>,
}

impl Report {
    fn of(probes: &[Probe]) -> Report {
        let settled = Instant::now().checked_sub(Duration::from_millis(100));
        let mut report = Report { sent: probes.len(), ..Report::default() };
        let mut answers: Vec<Instant> = probes.iter().filter_map(|probe| probe.answered).collect();
        answers.sort_unstable();
        report.answered = answers.len();
        report.refused = probes.iter().filter(|probe| probe.refused).count();
        let is_lost =
            |probe: &Probe| probe.answered.is_none() && settled.is_some_and(|at| probe.sent < at);
        report.lost = probes.iter().filter(|probe| is_lost(probe)).count();
        let steady = probes.iter().rposition(is_lost).map_or(0, |last| last + 1);
        report.steady_since = probes[steady..].iter().find_map(|probe| probe.answered);
        report.longest_gap = answers
            .windows(2)
            .map(|pair| pair[1].duration_since(pair[0]))
            .max()
            .unwrap_or_default();
        report.first_answer = answers.first().copied();
        report.last_answer = answers.last().copied();
        report
    }
}

impl Pinger {
    /// Starts to send a request every `interval`, the first at once.
    ///
    /// # Errors
    /// When the socket cannot be made or bound as asked.
    pub fn start(
        from: &Netns,
        to: IpAddr,
        bound: &Bound,
        interval: Duration,
    ) -> anyhow::Result<Pinger> {
        let shared = Shared::open(from, to, bound)?;
        // Only for the receiver to see that it shall stop.
        shared.socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let shared = Arc::new(shared);
        let mut threads = Vec::new();
        for work in [Shared::receive as fn(&Shared, Duration), Shared::send] {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name("pinger".to_owned())
                .spawn(move || work(&shared, interval))
                .context("cannot start a thread that pings")?;
            threads.push(thread);
        }
        Ok(Pinger { shared, threads })
    }

    /// What became of the requests so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::of(&lock(&self.shared.probes))
    }

    /// What became of the requests that were sent from `start` on and before `end`.
    #[must_use]
    pub fn between(&self, start: Instant, end: Instant) -> Report {
        let probes = lock(&self.shared.probes);
        let first = probes.partition_point(|probe| probe.sent < start);
        let last = probes.partition_point(|probe| probe.sent < end);
        Report::of(probes.get(first..last).unwrap_or_default())
    }

    /// What becomes of the requests that were sent until now: answers that are under way are waited
    /// for, which take a while on a busy machine.
    #[must_use]
    pub fn until_now(&self) -> Report {
        let end = Instant::now();
        loop {
            let report = {
                let probes = lock(&self.shared.probes);
                let last = probes.partition_point(|probe| probe.sent < end);
                Report::of(probes.get(..last).unwrap_or_default())
            };
            if report.answered + report.refused == report.sent || end.elapsed() > LATE {
                return report;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// When those requests of a time were sent that are not answered yet.
    #[must_use]
    pub fn unanswered(&self, start: Instant, end: Instant) -> Vec<Instant> {
        let probes = lock(&self.shared.probes);
        let inside = probes.iter().filter(|probe| (start..end).contains(&probe.sent));
        inside.filter(|probe| probe.answered.is_none()).map(|probe| probe.sent).collect()
    }

    /// Stops and waits for answers that are under way.
    #[must_use]
    pub fn stop(self) -> Report {
        self.until_now()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn open(from: &Netns, to: IpAddr, bound: &Bound) -> anyhow::Result<Shared> {
        let socket = from
            .within(|| open(to, bound))?
            .with_context(|| format!("cannot ping {to} from {} {bound:?}", from.name()))?;
        Ok(Shared { socket, to, stop: AtomicBool::new(false), probes: Mutex::default() })
    }

    fn send(&self, interval: Duration) {
        let mut next = Instant::now();
        // The port has no meaning.
        let to = SocketAddr::new(self.to, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let sequence = {
                let mut probes = lock(&self.probes);
                probes.push(Probe { sent: Instant::now(), refused: false, answered: None });
                probes.len() - 1
            };
            if self.socket.send_to(&self.request(sequence), to).is_err()
                && let Some(probe) = lock(&self.probes).get_mut(sequence)
            {
                probe.refused = true;
            }
            next += interval;
            while !self.stop.load(Ordering::Relaxed) {
                let now = Instant::now();
                if now >= next {
                    break;
                }
                std::thread::park_timeout(next - now);
            }
        }
    }

    fn receive(&self, _interval: Duration) {
        let mut packet = [0; 2048];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, peer)) = self.socket.recv_from(&mut packet) else {
                continue;
            };
            let now = Instant::now();
            if peer.ip() != self.to {
                continue;
            }
            let Some(sequence) = self.reply(&packet[..length]) else {
                continue;
            };
            let mut probes = lock(&self.probes);
            // The number has 16 bits on the wire; the newest probe with it is meant.
            let newest =
                (0..probes.len()).rev().find(|index| index & 0xffff == usize::from(sequence));
            if let Some(probe) = newest.and_then(|index| probes.get_mut(index)) {
                probe.answered.get_or_insert(now);
            }
        }
    }

    /// The kernel fills in what tells our requests from those of others, and the checksum.
    fn request(&self, sequence: usize) -> [u8; 16] {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let sequence = (sequence & 0xffff) as u16;
        let [high, low] = sequence.to_be_bytes();
        [kind, 0, 0, 0, 0, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    /// The sequence number, where this is an answer.
    fn reply(&self, message: &[u8]) -> Option<u16> {
        let kind = if self.to.is_ipv4() { 0 } else { 129 };
        let sequence = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
        (*message.first()? == kind).then_some(sequence)
    }
}

/// Opens a socket that hears the answers to its own requests only. A raw one hears all that come to
/// the namespace: beside many others, what has come for it is lost as soon as it is late to read.
fn open(to: IpAddr, bound: &Bound) -> anyhow::Result<UdpSocket> {
    // Which groups may do so; it holds for IPv6, too.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        .context("cannot allow to ping")?;
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
        .context("cannot open a socket that pings")?;
    bind(&socket, bound)?;
    Ok(UdpSocket::from(socket))
}

impl From<Ipv4Addr> for Bound {
    fn from(address: Ipv4Addr) -> Bound {
        Bound::Address(address.into())
    }
}

impl From<Ipv6Addr> for Bound {
    fn from(address: Ipv6Addr) -> Bound {
        Bound::Address(address.into())
    }
}
