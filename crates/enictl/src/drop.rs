//! `enictl drop`: an address goes as soon as one fresh reading of metadata lacks it.

use crate::cli::{self, Cli};
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Drop) -> anyhow::Result<Exit> {
    let affected = socket::connect(cli).await??.drop(arguments.address).await?;
    if cli.json {
        print_json(&affected)?;
    } else {
        print(&format!(
            "{} goes from {} as soon as a complete reading of metadata lacks it\n",
            arguments.address,
            clean(&affected.enis.join(", "))
        ))?;
    }
    Ok(Exit::Done)
}
