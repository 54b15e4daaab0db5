//! A machine in a VPC with the package installed, and who talks to it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::{Scene as _, eventually};
use vm::{Files, Image, Machine};
use vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, Pinger, Vpc, ping_once};

/// Long enough for an emulated machine beside which much else is done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub(crate) const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const SECOND_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A secondary address of the second ENI, once it is assigned.
pub(crate) const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 77);
/// A host in a third subnet.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 254, 4);
/// What tells a TCP client which address it sees.
pub(crate) const WHOAMI: u16 = 7;

/// A machine with one ENI, `ens5`, another one to plug in, and who talks to them.
pub(crate) struct Stage {
    pub(crate) vpc: Vpc,
    pub(crate) machine: Machine,
    pub(crate) second: EniId,
    pub(crate) host: Instance,
    _whoami: Echo,
}

impl Stage {
    /// A machine whose first ENI is configured by these files; enid is not installed.
    pub(crate) fn boot(image: &Image, files: &Files) -> anyhow::Result<Stage> {
        let config = ["10.0.1.0/24", "10.0.2.0/24", "10.0.254.0/24"]
            .into_iter()
            .fold(Config::default(), Config::subnet);
        let vpc = Vpc::new(config)?;
        let guest = vpc.guest("main", EniSpec::new([FIRST]).public(FIRST, FIRST_PUBLIC))?;
        let second = EniSpec::new([SECOND]).public(SECOND, SECOND_PUBLIC).device(1);
        let second = vpc.create_eni(second)?;
        let host = vpc.instance("host", EniSpec::new([HOST]))?;
        let whoami = Echo::start(vpc.internet(), WHOAMI)?;
        let machine = Machine::boot(&vpc, guest, image, files)?;
        let stage = Stage { vpc, machine, second, host, _whoami: whoami };
        eventually(PATIENCE, "the first ENI works", &stage.machine, || {
            stage.answers(FIRST_PUBLIC)
        })?;
        Ok(stage)
    }

    /// Installs the package, which starts the daemon, and waits until it is at rest.
    pub(crate) fn install(&self) -> anyhow::Result<()> {
        self.machine.run("dpkg -i /root/enid.deb")?;
        self.comes_to_rest()
    }

    pub(crate) fn comes_to_rest(&self) -> anyhow::Result<()> {
        eventually(PATIENCE, "enid has converged", &self.machine, || {
            let status = self.machine.json("enictl status --json")?;
            ensure!(status["verdict"] == "converged", "{status}");
            Ok(())
        })
    }

    /// An address answers the internet, or the host where it is a private one.
    pub(crate) fn answers(&self, to: Ipv4Addr) -> anyhow::Result<()> {
        let from = if to.is_private() { &*self.host } else { self.vpc.internet() };
        ensure!(ping_once(from, to.into(), &Bound::No)?, "{to} does not answer {}", from.name());
        Ok(())
    }

    /// A steady stream of requests to an address, from where [`Stage::answers`] asks.
    pub(crate) fn ping(&self, to: Ipv4Addr) -> anyhow::Result<Pinger> {
        let from = if to.is_private() { &*self.host } else { self.vpc.internet() };
        Pinger::start(from, to.into(), &Bound::No, Duration::from_millis(50))
    }

    /// Everything of enid's that the kernel has, in an order of its own.
    pub(crate) fn objects(&self) -> anyhow::Result<String> {
        self.machine.run(
            "{ ip -N -o rule; ip -N -o -6 rule; ip -N -o route show table all proto 233; \
             ip -N -o -6 route show table all proto 233; ip -o address | grep 'proto 0xe9'; \
             } | sort",
        )
    }

    /// No request of a stream was left without an answer; late ones count as answers.
    pub(crate) fn missed_nothing(&self, pinger: Pinger, what: &str) -> anyhow::Result<()> {
        std::thread::sleep(Duration::from_secs(2));
        let report = pinger.stop();
        ensure!(
            report.sent > 0 && report.lost == 0 && report.refused == 0,
            "{what} missed requests: {report:?}\n{}",
            self.machine.describe()
        );
        Ok(())
    }

    /// Which address the internet sees when a connection is made from one of the machine's.
    pub(crate) fn seen_from(&self, source: Ipv4Addr) -> anyhow::Result<Ipv4Addr> {
        let internet = self.vpc.internet_v4();
        let seen = self
            .machine
            .run(&format!("nc -N -w 10 -s {source} {internet} {WHOAMI} < /dev/null"))?;
        let seen: SocketAddrV4 =
            seen.trim().parse().with_context(|| format!("no address and port: {seen}"))?;
        Ok(*seen.ip())
    }

    /// Both ENIs work, in both directions.
    pub(crate) fn works(&self) -> anyhow::Result<()> {
        for to in [FIRST_PUBLIC, SECOND_PUBLIC, FIRST, SECOND] {
            self.answers(to)?;
        }
        for (source, public) in [(FIRST, FIRST_PUBLIC), (SECOND, SECOND_PUBLIC)] {
            let seen = self.seen_from(source)?;
            ensure!(seen == public, "bound to {source}, the internet sees {seen}");
        }
        Ok(())
    }

    pub(crate) fn comes_to_work(&self) -> anyhow::Result<()> {
        eventually(PATIENCE, "both ENIs work", &self.machine, || self.works())
    }

    /// Plugs the second ENI in and waits until it answers; how long that took.
    pub(crate) fn plug_second(&self) -> anyhow::Result<Duration> {
        let pinger = self.ping(SECOND_PUBLIC)?;
        let plugged = self.machine.plug(&self.vpc, &self.second)?;
        self.until_first_answer(&pinger, plugged)
    }

    /// Waits until a stream of requests has its first answer; how long that was after a moment.
    pub(crate) fn until_first_answer(
        &self,
        pinger: &Pinger,
        since: Instant,
    ) -> anyhow::Result<Duration> {
        let answered = eventually(PATIENCE, "somebody answers", &self.machine, || {
            pinger.report().first_answer.context("no answer yet")
        })?;
        Ok(answered.saturating_duration_since(since))
    }

    /// Waits until the second ENI's link lacks [`SECONDARY`], which metadata lacks.
    pub(crate) fn secondary_goes(&self) -> anyhow::Result<()> {
        eventually(PATIENCE, "the secondary goes", &self.machine, || {
            let addresses = self.machine.run("ip -br addr show dev ens6")?;
            ensure!(!addresses.contains(&SECONDARY.to_string()), "{addresses}");
            Ok(())
        })
    }
}

/// Settings with which an address that metadata lacks goes within seconds.
pub(crate) const SOON: &str = "[removal]\nconfirmations = 2\ngrace = \"6s\"\n";

/// What the first ENI of a machine is configured with: systemd-networkd and DHCP, and the package
/// ready to be installed.
pub(crate) fn networkd(matches: &str) -> anyhow::Result<Files> {
    Files::new()?
        .text(
            "/etc/systemd/network/50-dhcp.network",
            &format!("[Match]\n{matches}\n[Network]\nDHCP=ipv4\n[DHCPv4]\nUseDomains=no\n"),
        )?
        .enable("systemd-networkd.service")?
        .copy(&package()?, "/root/enid.deb")
}

/// The package to install.
pub(crate) fn package() -> anyhow::Result<PathBuf> {
    let package = std::env::var_os("ENID_PACKAGE").map(PathBuf::from);
    let package = package.context("ENID_PACKAGE names no .deb: run `cargo xtask vm`")?;
    ensure!(package.is_file(), "there is no {}", package.display());
    Ok(package)
}

/// Tells a figure to who runs the tests; `--nocapture` is not needed for it.
#[expect(clippy::print_stderr, reason = "a figure is for who runs the tests, not a condition")]
pub(crate) fn figure(what: &str, value: impl std::fmt::Debug) {
    eprintln!("\n    {what}: {value:.2?}");
}
