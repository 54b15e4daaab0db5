//! The daemon's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Keeps this instance's network equal to what the cloud's metadata says it has.
///
/// Runs in the foreground until SIGTERM or SIGINT, and changes nothing on its way out. SIGHUP reads
/// the configuration again. Look at it with `enictl status` and `journalctl -u enid`.
#[derive(Debug, Parser)]
#[command(version, name = "enid")]
struct Arguments {
    /// Read this file, and the drop-ins of the directory that is named like it but ends in `.d`,
    /// instead of /etc/enid/enid.toml, which need not exist.
    #[arg(long, env = "ENID_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and leave.
    #[arg(long)]
    check: bool,
}

#[expect(clippy::print_stderr, reason = "nobody logs before the configuration is read")]
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match enid::config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("enid: {}", enid::config::chain(&error));
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        eprintln!("{}: all is well", config.file.display());
        return ExitCode::SUCCESS;
    }
    let run = || {
        let level = enid::journal::start(&config.log)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(enid::daemon::run(arguments.config.clone(), config.clone(), level))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("enid: {error:#}");
            ExitCode::FAILURE
        }
    }
}
