//! Where the daemon listens, and the connection to it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use enid_control::{Client, ClientError, DEFAULT_SOCKET};

use crate::cli::Cli;
use crate::text;

/// Connects to the daemon.
pub(crate) async fn connect(cli: &Cli) -> anyhow::Result<Result<Client, ClientError>> {
    Ok(Client::connect(&socket_path(cli)?).await)
}

/// `--socket`, else as configured, else the usual place.
fn socket_path(cli: &Cli) -> anyhow::Result<PathBuf> {
    if let Some(path) = &cli.socket {
        return Ok(path.clone());
    }
    match configured(cli.config.as_deref()) {
        Ok(path) => Ok(path),
        Err(error) if cli.config.is_some() => Err(error),
        // The daemon refuses a broken edit and goes on: its status must be seen just then.
        Err(error) => {
            let error = text::clean(&format!("{error:#}"));
            // The warning is worth nothing where standard error is closed.
            let _ =
                writeln!(io::stderr(), "enictl: {error}; trying the usual socket {DEFAULT_SOCKET}");
            Ok(DEFAULT_SOCKET.into())
        }
    }
}

/// The control socket of the configuration in this file, or in the usual files.
fn configured(config: Option<&Path>) -> anyhow::Result<PathBuf> {
    Ok(enid::config::load(config)?.control_socket)
}
