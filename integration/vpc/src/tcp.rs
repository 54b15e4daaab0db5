//! TCP from inside a namespace: a service that tells whom it sees, clients with a chosen source,
//! and connections that stay.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::socket::sockopt::{BindToDevice, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::{Netns, lock};

/// What a socket is bound to before it sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Nothing: the kernel chooses.
    #[default]
    No,
    /// A source address.
    Address(IpAddr),
    /// A device, as `ping -I` and `curl --interface` do.
    Device(String),
}

pub(crate) fn bind(socket: &OwnedFd, bound: &Bound) -> anyhow::Result<()> {
    match bound {
        Bound::No => Ok(()),
        Bound::Address(address) => {
            let address = SockaddrStorage::from(SocketAddr::new(*address, 0));
            nix::sys::socket::bind(socket.as_raw_fd(), &address)
        }
        Bound::Device(name) => setsockopt(socket, BindToDevice, &name.into()),
    }
    .with_context(|| format!("cannot bind to {bound:?}"))
}

/// Opens a TCP connection from inside a namespace.
///
/// # Errors
/// When it cannot be bound as asked, is refused, or takes longer than `timeout`.
pub fn connect(
    from: &Netns,
    to: SocketAddr,
    bound: &Bound,
    timeout: Duration,
) -> anyhow::Result<TcpStream> {
    let opened = from.within(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(&socket, bound)?;
        // It limits a blocking connect, too.
        let limit = TimeVal::milliseconds(i64::try_from(timeout.as_millis())?);
        setsockopt(&socket, SendTimeout, &limit)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        anyhow::Ok(stream)
    })?;
    opened.with_context(|| format!("cannot connect from {} {bound:?} to {to}", from.name()))
}

/// Asks an [`Echo`] service which address it sees this client come from.
///
/// # Errors
/// When the service does not answer within two seconds.
pub fn whoami(from: &Netns, to: SocketAddr, bound: &Bound) -> anyhow::Result<IpAddr> {
    let conversation = Conversation::open(from, to, bound)?;
    Ok(conversation.seen)
}

/// A TCP connection that stays open.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    said: u64,
    /// The address that the service sees.
    pub seen: IpAddr,
}

impl Conversation {
    /// Connects to an [`Echo`] service and keeps the connection.
    ///
    /// # Errors
    /// When the service does not answer within two seconds.
    pub fn open(from: &Netns, to: SocketAddr, bound: &Bound) -> anyhow::Result<Conversation> {
        let stream = connect(from, to, bound, Duration::from_secs(2))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).with_context(|| format!("{to} does not say whom it sees"))?;
        let seen: SocketAddr =
            line.trim().parse().with_context(|| format!("{to} says {line:?}"))?;
        Ok(Conversation { stream, said: 0, seen: seen.ip() })
    }

    /// Says something and waits for the echo, so the connection is alive in both directions.
    ///
    /// # Errors
    /// When the right echo does not come within `timeout`.
    pub fn check(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.said += 1;
        let said = format!("line {}\n", self.said);
        self.stream.get_ref().set_read_timeout(Some(timeout))?;
        self.stream.get_mut().write_all(said.as_bytes()).context("the connection broke")?;
        let mut heard = String::new();
        loop {
            heard.clear();
            self.stream.read_line(&mut heard).context("the connection does not answer")?;
            // The echo of a line whose wait had timed out may come first.
            if heard == said {
                return Ok(());
            }
            if !heard.starts_with("line ") {
                bail!("said {said:?}, heard {heard:?}");
            }
        }
    }
}

/// A TCP service that first tells the client's address, as one line, and then echoes.
#[derive(Debug)]
pub struct Echo {
    netns: Netns,
    port: u16,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves on all addresses of a namespace.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns, port: u16) -> anyhow::Result<Echo> {
        let mut echo = Echo {
            netns: netns.clone(),
            port,
            stop: Arc::default(),
            streams: Arc::default(),
            threads: Vec::new(),
        };
        // A listener on :: takes IPv4 as well, mapped.
        let listener = netns
            .within(|| TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))))?
            .with_context(|| format!("cannot listen on port {port} in {}", netns.name()))?;
        let stop = Arc::clone(&echo.stop);
        let streams = Arc::clone(&echo.streams);
        let thread = std::thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || accept(&listener, &stop, &streams))
            .context("cannot start the thread of a TCP service")?;
        echo.threads.push(thread);
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts; where it fails, the listener is gone already.
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let _ = connect(&self.netns, to, &Bound::No, Duration::from_secs(1));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for stream in lock(&self.streams).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, streams: &Mutex<Vec<TcpStream>>) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if let Ok(clone) = stream.try_clone() {
            lock(streams).push(clone);
        }
        // Ends with the connection, which the service closes when it is dropped.
        std::thread::spawn(move || serve(stream));
    }
}

/// Errors end the conversation; the client notices.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let peer = stream.peer_addr()?;
    let seen = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    stream.write_all(format!("{seen}\n").as_bytes())?;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(&bytes[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
