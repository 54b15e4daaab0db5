//! `enictl drop`: an address goes now if a fresh reading of metadata lacks it.

use crate::cli::{self, Cli};
use crate::text::{print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Drop) -> anyhow::Result<Exit> {
    let affected = socket::connect(cli).await??.drop(arguments.address).await?;
    if cli.json {
        print_json(&affected)?;
    } else {
        print(&format!("{} is gone\n", arguments.address))?;
    }
    Ok(Exit::Done)
}
