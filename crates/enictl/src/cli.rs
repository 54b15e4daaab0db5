//! The command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use enid_control::request::{LONGEST_HOLD, LONGEST_WAIT};
use enid_control::{Awaited, Target};

/// What the exit codes mean; stands beneath every help.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done; status: converged; plan: nothing to do
  1  something failed
  2  wrong usage
  3  status: not converged; plan: something to do; refresh, wait: not in time;
     check: something is broken, or a probe failed
  4  no enid answers at the control socket
  5  not allowed, or refused by enid (unknown ENI, address or rule, not possible as things stand)";

/// Shows and steers enid, which keeps this instance's network equal to what the cloud says.
#[derive(Debug, Parser)]
#[command(name = "enictl", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// enid's configuration, to find the control socket and to plan without the daemon.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The control socket [default: as configured, else /run/enid/control.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Print JSON of a versioned schema.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how it stands with the ENIs and their addresses.
    #[command(after_help = EXIT_CODES)]
    Status(Status),
    /// Show what the next pass would do, as ip commands; nothing is done.
    ///
    /// Without a running daemon this machine is looked at and metadata is read here. How often
    /// metadata lacked an address is the daemon's memory, so removals are marked as not counted.
    #[command(after_help = EXIT_CODES)]
    Plan,
    /// Look for what breaks the network, or will, with the remedy of each; nothing is changed.
    ///
    /// Every address is asked of the kernel in both directions, settings that break answers are
    /// read, and other programs that manage the network are looked for. Without a running daemon
    /// only what the links have is known.
    #[command(after_help = EXIT_CODES)]
    Check(Check),
    /// Explain an address, an ENI or a rule: where it comes from, whose it is, what it waits for.
    ///
    /// Of an address also the way of a packet that it sends, as the kernel tells it; nothing is sent.
    #[command(after_help = EXIT_CODES)]
    Explain(Explain),
    /// Draw ENIs, addresses, rules, tables and gateways, and what differs from the wish.
    ///
    /// The picture goes to standard output: `enictl graph > enid.svg`.
    #[command(after_help = EXIT_CODES)]
    Graph(Graph),
    /// Show what happened last, with causes and durations.
    ///
    /// The daemon remembers the last thousand; `journalctl -u enid` has the older ones.
    #[command(after_help = EXIT_CODES)]
    Events(Events),
    /// Print what the daemon counts and measures, as OpenMetrics.
    ///
    /// For node-exporter, let the daemon write a file: textfile, in the configuration's section metrics.
    #[command(after_help = EXIT_CODES)]
    Metrics,
    /// Read metadata now and run a pass.
    #[command(after_help = EXIT_CODES)]
    Refresh(Refresh),
    /// Wait until what the cloud was told has come about; for scripts.
    ///
    /// Metadata is read every second meanwhile, where the caller may change anything.
    #[command(after_help = EXIT_CODES)]
    Wait(Wait),
    /// Leave an ENI as it is for a while: nothing is added, removed or repaired.
    #[command(after_help = EXIT_CODES)]
    Hold(Hold),
    /// Manage an ENI again that was held or released.
    #[command(after_help = EXIT_CODES)]
    Unhold(Which),
    /// Remove everything that enid made for an ENI and leave it alone from now on.
    #[command(after_help = EXIT_CODES)]
    Release(Which),
    /// Read the configuration again; one that cannot be used is refused and changes nothing.
    #[command(after_help = EXIT_CODES)]
    Reload,
    /// Remove an address now, without the grace, if a fresh reading of metadata lacks it.
    #[command(after_help = EXIT_CODES)]
    Drop(Drop),
}

/// Arguments of `enictl status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// List every address, also where there are many and all is well with them.
    #[arg(long)]
    pub(crate) all: bool,

    /// Show it anew every second, until interrupted; with --json a line each time.
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Arguments of `enictl check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Open a TCP connection to there from every address and show which works; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) probe: Vec<String>,

    /// Where processes, units and files of other programs are looked for.
    #[arg(long, value_name = "DIRECTORY", default_value = "/", hide = true)]
    pub(crate) root: PathBuf,
}

/// Arguments of `enictl explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// An address; an ENI by its id, MAC address or link; or a rule by its priority or ip's words
    /// (20020, from 10.0.2.0/24).
    #[arg(required = true, value_name = "ADDRESS|ENI|INTERFACE|RULE")]
    what: Vec<String>,

    /// Of an address: where the packet goes to [default: a place outside of every VPC].
    #[arg(long, value_name = "DESTINATION")]
    to: Option<IpAddr>,
}

/// Where a packet goes to that is only asked about: outside of every VPC, and nobody's.
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1));

impl Explain {
    /// What is asked about, in one line.
    pub(crate) fn what(&self) -> String {
        self.what.join(" ")
    }

    /// The source and the destination of the packet that is asked about; none without an address, and
    /// an error where both do not go together.
    pub(crate) fn packet(&self) -> Result<Option<(IpAddr, IpAddr)>, clap::Error> {
        let wrong = |text: &str| Cli::command().error(ErrorKind::ArgumentConflict, text);
        let from: Option<IpAddr> = self.what().parse().ok();
        match (from, self.to) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(wrong("--to goes together with an address only")),
            (Some(from), Some(to)) if from.is_ipv4() == to.is_ipv4() => Ok(Some((from, to))),
            (Some(_), Some(_)) => Err(wrong("--to is of another family than the address")),
            (Some(from @ IpAddr::V4(_)), None) => Ok(Some((from, OUTSIDE_V4))),
            (Some(from @ IpAddr::V6(_)), None) => Ok(Some((from, OUTSIDE_V6))),
        }
    }
}

/// Arguments of `enictl graph`.
#[derive(Debug, Args)]
pub(crate) struct Graph {
    /// SVG for a browser, or Mermaid for a document.
    #[arg(long, value_enum, default_value_t = Format::Svg)]
    pub(crate) format: Format,
}

/// In which form `enictl graph` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A picture that stands by itself, light or dark as the reader likes it.
    Svg,
    /// Text that many documents draw.
    Mermaid,
}

/// Arguments of `enictl refresh`.
#[derive(Debug, Args)]
pub(crate) struct Refresh {
    /// Wait until a pass after the reading has converged.
    #[arg(long)]
    pub(crate) wait: bool,

    /// With --wait: how long at most (30s, 5m, 1h).
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "wait", value_parser = time)]
    pub(crate) timeout: Duration,
}

/// Arguments of `enictl events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens, until interrupted.
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only what happened within this time (10m, 1h, 7d).
    #[arg(long, value_name = "TIME", value_parser = long_time)]
    pub(crate) since: Option<Duration>,
}

/// Arguments of `enictl wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    what: What,

    /// How long at most (30s, 5m, 1h).
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) timeout: Duration,
}

/// What `enictl wait` waits for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Until metadata grants this address to an ENI here and the ENI has it.
    #[arg(long)]
    address: Option<IpAddr>,

    /// Until metadata grants this address to no ENI here and no ENI has it.
    #[arg(long, value_name = "ADDRESS")]
    absent: Option<IpAddr>,

    /// Until this ENI (its id, MAC address or link) has all that metadata grants it.
    #[arg(long)]
    eni: Option<String>,

    /// Until every ENI that is not held has all that metadata grants it.
    #[arg(long)]
    online: bool,
}

impl Wait {
    pub(crate) fn what(&self) -> Awaited {
        let What { address, absent, eni, online: _ } = &self.what;
        let address = address.map(Awaited::Address).or_else(|| absent.map(Awaited::Absent));
        let eni = || eni.clone().map(Awaited::Eni);
        address.or_else(eni).unwrap_or(Awaited::Online)
    }
}

/// Arguments of `enictl hold`.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// The ENI: its id, its MAC address or the name of its link.
    pub(crate) eni: String,

    /// For how long (30m, 1h, 7d); without it until `enictl unhold` or the next boot.
    #[arg(long = "for", value_name = "TIME", value_parser = long_time)]
    pub(crate) time: Option<Duration>,

    /// Why, for whoever looks next.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

/// The ENI of `enictl release` and `enictl unhold`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The ENI: its id, its MAC address or the name of its link.
    eni: Option<String>,

    /// All ENIs, also those attached later.
    #[arg(long)]
    all: bool,
}

impl Which {
    pub(crate) fn target(&self) -> Target {
        match &self.eni {
            Some(eni) => Target::Eni(eni.clone()),
            None => Target::All,
        }
    }
}

/// Arguments of `enictl drop`.
#[derive(Debug, Args)]
pub(crate) struct Drop {
    /// The address.
    pub(crate) address: IpAddr,
}

/// Reads `30s`, `5m`, `1h` or a bare number of seconds, a day at most.
fn time(text: &str) -> Result<Duration, String> {
    span(text)
        .filter(|time| *time <= LONGEST_WAIT)
        .ok_or_else(|| "a whole number of s, m or h, a day at most: 30s".to_owned())
}

/// Reads `30m`, `1h`, `7d` or a bare number of seconds, a year at most.
fn long_time(text: &str) -> Result<Duration, String> {
    span(text)
        .filter(|time| *time <= LONGEST_HOLD)
        .ok_or_else(|| "a whole number of s, m, h or d, a year at most: 1h".to_owned())
}

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, text.get(number.len()..)?),
        None => (text, "s"),
    };
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 1,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("2h", 7200), ("7", 7), ("24h", 86_400)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "1.5s", "-1s", "25h", "99999999999999999999h", "500ms", "5µ"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn release_takes_one_eni_or_all_of_them() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["enictl", "release"], arguments].concat()).is_ok()
        };
        assert!(parse(&["ens6"]));
        assert!(parse(&["--all"]));
        assert!(!parse(&[]));
        assert!(!parse(&["ens6", "--all"]));
    }

    #[test]
    fn one_thing_is_waited_for() {
        let parse = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["enictl", "wait"], arguments].concat()).ok()?;
            let Command::Wait(wait) = cli.command else { return None };
            Some(wait.what())
        };
        let address: IpAddr = "10.0.1.9".parse().unwrap();
        assert_eq!(parse(&["--address", "10.0.1.9"]), Some(Awaited::Address(address)));
        assert_eq!(parse(&["--absent", "10.0.1.9"]), Some(Awaited::Absent(address)));
        assert_eq!(parse(&["--eni", "eni-1"]), Some(Awaited::Eni("eni-1".to_owned())));
        assert_eq!(parse(&["--online"]), Some(Awaited::Online));
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&["--online", "--eni", "eni-1"]), None);
    }

    #[test]
    fn a_packet_is_asked_about_with_an_address_and_within_its_family() {
        let packet = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["enictl", "explain"], arguments].concat()).ok()?;
            let Command::Explain(explain) = cli.command else { return None };
            explain.packet().ok()
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let both = |a: &str, b: &str| Some(Some((ip(a), ip(b))));
        assert_eq!(packet(&["10.0.2.4"]), both("10.0.2.4", "198.51.100.1"));
        assert_eq!(packet(&["10.0.2.4", "--to", "10.9.9.9"]), both("10.0.2.4", "10.9.9.9"));
        assert_eq!(packet(&["from", "10.0.2.0/24"]), Some(None));
        for wrong in [&["10.0.2.4", "--to", "fe80::1"][..], &["ens6", "--to", "10.9.9.9"], &[]] {
            assert_eq!(packet(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_timeout_without_waiting_is_a_mistake() {
        assert!(Cli::try_parse_from(["enictl", "refresh"]).is_ok());
        assert!(Cli::try_parse_from(["enictl", "refresh", "--wait", "--timeout", "5s"]).is_ok());
        assert!(Cli::try_parse_from(["enictl", "refresh", "--timeout", "5s"]).is_err());
    }
}
