//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use enid_control::Target;
use enid_control::request::LONGEST_WAIT;

/// What the exit codes mean; stands beneath every help.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done; status: converged; plan: nothing to do
  1  something failed
  2  wrong usage
  3  status: not converged; plan: something to do; refresh: not in time
  4  no enid answers at the control socket
  5  not allowed, or refused by enid (unknown ENI or address, not possible as things stand)";

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
    /// Read metadata now and run a pass.
    #[command(after_help = EXIT_CODES)]
    Refresh(Refresh),
    /// Remove everything that enid made for an ENI and leave it alone from now on.
    #[command(after_help = EXIT_CODES)]
    Release(Which),
    /// Manage an ENI again that was released.
    #[command(after_help = EXIT_CODES)]
    Unhold(Which),
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

/// Reads `30s`, `5m`, `1h` or a bare number of seconds.
fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.get(number.len()..).unwrap_or_default()),
        None => (text, "s"),
    };
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        _ => 1,
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        .map(Duration::from_secs)
        .filter(|time| *time <= LONGEST_WAIT)
        .ok_or_else(|| "a whole number of s, m or h, a day at most: 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
    fn a_timeout_without_waiting_is_a_mistake() {
        assert!(Cli::try_parse_from(["enictl", "refresh"]).is_ok());
        assert!(Cli::try_parse_from(["enictl", "refresh", "--wait", "--timeout", "5s"]).is_ok());
        assert!(Cli::try_parse_from(["enictl", "refresh", "--timeout", "5s"]).is_err());
    }
}
