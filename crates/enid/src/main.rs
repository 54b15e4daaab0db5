//! The daemon's program.

use std::process::ExitCode;

use clap::Parser as _;
use enid::cli::Arguments;

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
