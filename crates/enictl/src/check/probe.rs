//! `--probe`: a TCP connection from every address, bound to it as `curl --interface` does.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use enid_control::check::Probe;
use enid_core::object::Family;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::scene::Scene;

/// How long a connection may take to open: its first request goes out three times meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many are tried at a time.
const AT_ONCE: usize = 64;

/// Tries every target from every address of its family.
pub(super) async fn all(scene: &Scene, targets: &[String]) -> anyhow::Result<Vec<Probe>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for to in targets {
        let targets = resolve(to).await?;
        let sources = || {
            scene.subjects.iter().flat_map(|subject| {
                subject.addresses.iter().map(|net| (net.addr(), &subject.link.name))
            })
        };
        let mut tried = 0;
        for target in targets {
            let fits = |(source, _): &(IpAddr, &String)| source.is_ipv4() == target.is_ipv4();
            for (source, link) in sources().filter(fits) {
                let (to, link, turns) = (to.clone(), link.clone(), Arc::clone(&turns));
                tried += 1;
                tasks.spawn(async move {
                    // The semaphore is never closed.
                    let _turn = turns.acquire().await;
                    let start = Instant::now();
                    let error = connect(source, target).await.err();
                    let duration_us =
                        u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                    Probe { to, target, source, link, duration_us, error }
                });
            }
        }
        anyhow::ensure!(tried > 0, "no ENI has an address of the family of {to}");
    }
    let mut probes = tasks.join_all().await;
    probes.sort_by(|a, b| (&a.to, a.target, a.source).cmp(&(&b.to, b.target, b.source)));
    Ok(probes)
}

/// The first address of each family.
async fn resolve(to: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(to)
        .await
        .with_context(|| format!("--probe {to}: not HOST:PORT, or there is no such host"))?
        .collect();
    let first = |family| found.iter().find(move |to| Family::of(to.ip()) == family).copied();
    Ok([Family::V4, Family::V6].into_iter().filter_map(first).collect())
}

async fn connect(source: IpAddr, target: SocketAddr) -> Result<(), String> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let connected = async {
        let socket = socket.map_err(|error| error.to_string())?;
        socket.bind((source, 0).into()).map_err(|error| format!("cannot be bound: {error}"))?;
        socket.connect(target).await.map(drop).map_err(|error| why(&error))
    };
    let after = PATIENCE.as_secs();
    timeout(PATIENCE, connected)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {after} s")))
}

/// What an error means here, and the kernel's word for it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "few kinds of errors end a connection's opening"
)]
fn why(error: &io::Error) -> String {
    let meaning = match error.kind() {
        io::ErrorKind::ConnectionRefused => "it was reached and refused: nobody listens there",
        io::ErrorKind::ConnectionReset => "it was reached and hung up",
        io::ErrorKind::NetworkUnreachable => "there is no route",
        io::ErrorKind::HostUnreachable => "the way ends: unreachable, or nobody has the address",
        io::ErrorKind::PermissionDenied => "a route or a firewall of this machine prohibits it",
        io::ErrorKind::AddrNotAvailable => "the source is not an address of this machine",
        _ => return error.to_string(),
    };
    format!("{meaning} ({error})")
}
