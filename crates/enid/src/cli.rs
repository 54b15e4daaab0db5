//! The daemon's command line.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser};

/// Keeps this instance's network equal to what the cloud's metadata says it has.
///
/// Runs in the foreground until SIGTERM or SIGINT, and changes nothing on its way out. SIGHUP reads
/// the configuration again. Look at it with `enictl status` and `journalctl -u enid`.
#[derive(Debug, Parser)]
#[command(version, name = "enid")]
pub struct Arguments {
    /// Read this file, and the drop-ins of the directory that is named like it but ends in `.d`,
    /// instead of /etc/enid/enid.toml, which need not exist.
    #[arg(long, env = "ENID_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and leave.
    #[arg(long)]
    pub check: bool,
}

/// The command line, with all that `--help` says.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}
