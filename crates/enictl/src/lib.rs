//! `enictl`, the operator's command for enid; a library so that its manual and its completions can be
//! made from its command line.

mod check;
mod cli;
mod drop;
mod events;
mod examples;
mod explain;
mod graph;
mod hold;
mod leaving;
mod metrics;
mod plan;
mod refresh;
mod release;
mod reload;
mod socket;
mod status;
mod text;
mod unhold;
mod wait;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches};
use enid_control::{ClientError, Refused};

use cli::{Cli, Command};

/// How a command ended; [`cli::EXIT_CODES`] says the same to the operator. 2 is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// It is done; all is as it must be.
    Done = 0,
    /// Something failed.
    Error = 1,
    /// Not converged, not in time, something to do, or something broken.
    NotYet = 3,
    /// No daemon answers.
    NoDaemon = 4,
    /// Not allowed, or refused by the daemon.
    Refused = 5,
}

/// The command line, with all that `--help` says.
#[must_use]
pub fn command() -> clap::Command {
    examples::with_examples(Cli::command())
}

/// All that the program does.
#[must_use]
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let exit = run(&cli).unwrap_or_else(|error| {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(io::stderr(), "enictl: {}", text::clean(&format!("{error:#}")));
        exit_of(&error)
    });
    ExitCode::from(exit as u8)
}

fn run(cli: &Cli) -> anyhow::Result<Exit> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(async {
            match &cli.command {
                Command::Status(arguments) => status::run(cli, arguments).await,
                Command::Plan => plan::run(cli).await,
                Command::Check(arguments) => check::run(cli, arguments).await,
                Command::Explain(arguments) => explain::run(cli, arguments).await,
                Command::Graph(arguments) => graph::run(cli, arguments).await,
                Command::Refresh(arguments) => refresh::run(cli, arguments).await,
                Command::Release(which) => release::run(cli, which).await,
                Command::Unhold(which) => unhold::run(cli, which).await,
                Command::Wait(arguments) => wait::run(cli, arguments).await,
                Command::Hold(arguments) => hold::run(cli, arguments).await,
                Command::Events(arguments) => events::run(cli, arguments).await,
                Command::Metrics => metrics::run(cli).await,
                Command::Reload => reload::run(cli).await,
                Command::Drop(arguments) => drop::run(cli, arguments).await,
            }
        })
}

fn exit_of(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NoDaemon { .. }) => Exit::NoDaemon,
        Some(ClientError::Permission { .. }) => Exit::Refused,
        Some(ClientError::Refused(refused)) => match refused {
            Refused::PermissionDenied { .. }
            | Refused::NoSuchEni { .. }
            | Refused::NoSuchAddress { .. }
            | Refused::NoSuchSubject { .. }
            | Refused::InvalidState { .. }
            | Refused::InvalidParameter { .. } => Exit::Refused,
            Refused::Busy { .. }
            | Refused::Failed { .. }
            | Refused::Malformed { .. }
            | Refused::InterfaceNotFound { .. }
            | Refused::MethodNotFound { .. }
            | Refused::MethodNotImplemented { .. }
            | Refused::Other { .. } => Exit::Error,
        },
        Some(
            ClientError::Connect { .. }
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. }
            | ClientError::NotUnderstood { .. }
            | ClientError::Schema { .. },
        )
        | None => Exit::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_daemon_no_permission_and_failure_end_differently() {
        let refused = |refused| anyhow::Error::from(ClientError::Refused(refused));
        let message = || "why".to_owned();
        let path = || "/run/enid/control.sock".into();
        for (error, exit) in [
            (
                ClientError::NoDaemon { path: path(), source: io::ErrorKind::NotFound.into() }
                    .into(),
                Exit::NoDaemon,
            ),
            (
                ClientError::Permission {
                    path: path(),
                    source: io::ErrorKind::PermissionDenied.into(),
                }
                .into(),
                Exit::Refused,
            ),
            (refused(Refused::PermissionDenied { message: message() }), Exit::Refused),
            (refused(Refused::Busy { message: message() }), Exit::Error),
            (anyhow::anyhow!("anything else"), Exit::Error),
        ] {
            assert_eq!(exit_of(&error), exit, "{error:#}");
        }
    }
}
