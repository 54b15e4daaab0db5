//! A machine in a VPC with the package installed, and who talks to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::{Scene as _, eventually};
use vm::{Files, Image, Machine};
use vpc::{Bound, Config, Echo, EniId, EniSpec, Instance, Netns, Pinger, Vpc, ping_once};

/// Long enough for an emulated machine beside which much else is done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub(crate) const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const SECOND_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A secondary address of the second ENI, once it is assigned.
pub(crate) const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 77);
/// The first ENI's IPv6 address, where there is IPv6; the internet reaches it as it is.
pub(crate) const FIRST_SIX: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, 4);
/// The second ENI's.
pub(crate) const SECOND_SIX: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf202, 0, 0, 0, 4);
/// A host in a third subnet, which has IPv4 only.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 254, 4);
/// What tells a TCP client which address it sees.
pub(crate) const WHOAMI: u16 = 7;

/// What the subnets of a machine's ENIs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// IPv4 alone.
    Four,
    /// Both families.
    Both,
    /// IPv6 alone.
    Six,
}

impl Families {
    /// Both ENIs' subnets, in a VPC that looks like this.
    fn subnets(self, config: Config) -> Config {
        let each = [
            ("10.0.1.0/24", "2600:1f16:67f:f201::/64"),
            ("10.0.2.0/24", "2600:1f16:67f:f202::/64"),
        ];
        each.into_iter().fold(config, |config, (four, six)| match self {
            Families::Four => config.subnet(four),
            Families::Both => config.dual_subnet(four, six),
            Families::Six => config.subnet_v6(six),
        })
    }

    /// An ENI with one address of each family, and how the internet reaches the one of IPv4.
    fn eni(self, four: Ipv4Addr, public: Ipv4Addr, six: Ipv6Addr) -> EniSpec {
        match self {
            Families::Four => EniSpec::new([four]).public(four, public),
            Families::Both => EniSpec::new([IpAddr::from(four), six.into()]).public(four, public),
            Families::Six => EniSpec::new([six]),
        }
    }
}

/// A machine with one ENI, `ens5`, another one to plug in, and who talks to them.
pub(crate) struct Stage {
    families: Families,
    pub(crate) vpc: Vpc,
    pub(crate) machine: Machine,
    pub(crate) second: EniId,
    pub(crate) host: Instance,
    _whoami: Echo,
}

impl Stage {
    /// A machine whose first ENI is configured by these files; enid is not installed.
    pub(crate) fn boot(image: &Image, files: &Files) -> anyhow::Result<Stage> {
        Stage::boot_in(Families::Four, Config::default(), image, files)
    }

    /// As [`Stage::boot`], in subnets of these families and a VPC that looks like this otherwise.
    pub(crate) fn boot_in(
        families: Families,
        config: Config,
        image: &Image,
        files: &Files,
    ) -> anyhow::Result<Stage> {
        let vpc = Vpc::new(families.subnets(config).subnet("10.0.254.0/24"))?;
        let guest = vpc.guest("main", families.eni(FIRST, FIRST_PUBLIC, FIRST_SIX))?;
        let second = families.eni(SECOND, SECOND_PUBLIC, SECOND_SIX).device(1);
        let second = vpc.create_eni(second)?;
        let host = vpc.instance("host", EniSpec::new([HOST]))?;
        let whoami = Echo::start(vpc.internet(), WHOAMI)?;
        let machine = Machine::boot(&vpc, guest, image, files)?;
        let stage = Stage { families, vpc, machine, second, host, _whoami: whoami };
        eventually(PATIENCE, "the first ENI works", &stage.machine, || {
            stage.public(0).into_iter().try_for_each(|address| stage.answers(address))
        })?;
        Ok(stage)
    }

    /// Where the internet reaches the first ENI or the second.
    fn public(&self, eni: usize) -> Vec<IpAddr> {
        let four = [FIRST_PUBLIC, SECOND_PUBLIC].map(IpAddr::from);
        let four = four.get(eni).filter(|_| self.families != Families::Six).copied();
        four.into_iter().chain(self.six().get(eni).copied()).collect()
    }

    /// The two ENIs' addresses of IPv6, where they have some.
    pub(crate) fn six(&self) -> Vec<IpAddr> {
        match self.families {
            Families::Four => Vec::new(),
            Families::Both | Families::Six => vec![FIRST_SIX.into(), SECOND_SIX.into()],
        }
    }

    /// What the status says of an ENI beside its state.
    pub(crate) fn notices(&self, eni: &EniId) -> anyhow::Result<String> {
        let status = self.machine.json("enictl status --json")?;
        let enis = status["enis"].as_array().context("no ENIs")?;
        let eni = enis.iter().find(|told| told["id"] == eni.0).context("it is not listed")?;
        Ok(eni["notices"].to_string())
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
    pub(crate) fn answers(&self, to: impl Into<IpAddr>) -> anyhow::Result<()> {
        let to = to.into();
        let from = self.who_asks(to);
        ensure!(ping_once(from, to, &Bound::No)?, "{to} does not answer {}", from.name());
        Ok(())
    }

    fn who_asks(&self, to: IpAddr) -> &Netns {
        let is_private = matches!(to, IpAddr::V4(to) if to.is_private());
        if is_private { &self.host } else { self.vpc.internet() }
    }

    /// A steady stream of requests to an address, from where [`Stage::answers`] asks.
    pub(crate) fn ping(&self, to: impl Into<IpAddr>) -> anyhow::Result<Pinger> {
        let to = to.into();
        Pinger::start(self.who_asks(to), to, &Bound::No, Duration::from_millis(50))
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
    pub(crate) fn seen_from(&self, source: impl Into<IpAddr>) -> anyhow::Result<IpAddr> {
        let source = source.into();
        let internet: IpAddr = match source {
            IpAddr::V4(_) => self.vpc.internet_v4().into(),
            IpAddr::V6(_) => self.vpc.internet_v6().into(),
        };
        let seen = self
            .machine
            .run(&format!("nc -N -w 10 -s {source} {internet} {WHOAMI} < /dev/null"))?;
        let seen: SocketAddr =
            seen.trim().parse().with_context(|| format!("no address and port: {seen}"))?;
        Ok(seen.ip())
    }

    /// Both ENIs work, in both directions and in every family.
    pub(crate) fn works(&self) -> anyhow::Result<()> {
        if self.families != Families::Six {
            for to in [FIRST, SECOND] {
                self.answers(to)?;
            }
        }
        for (eni, own) in [(0, FIRST), (1, SECOND)] {
            for public in self.public(eni) {
                self.answers(public)?;
                let source = if public.is_ipv4() { own.into() } else { public };
                let seen = self.seen_from(source)?;
                ensure!(seen == public, "bound to {source}, the internet sees {seen}");
            }
        }
        Ok(())
    }

    pub(crate) fn comes_to_work(&self) -> anyhow::Result<()> {
        eventually(PATIENCE, "both ENIs work", &self.machine, || self.works())
    }

    /// Plugs the second ENI in and waits until it answers; how long that took.
    pub(crate) fn plug_second(&self) -> anyhow::Result<Duration> {
        let pinger = self.ping(self.public(1)[0])?;
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
    networkd_with("ipv4", matches)
}

/// As [`networkd`], for these families: `ipv4`, or `yes` for both.
pub(crate) fn networkd_with(dhcp: &str, matches: &str) -> anyhow::Result<Files> {
    Files::new()?
        .text(
            "/etc/systemd/network/50-dhcp.network",
            &format!("[Match]\n{matches}\n[Network]\nDHCP={dhcp}\n[DHCPv4]\nUseDomains=no\n"),
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
