//! `enictl metrics`: what the daemon counts and measures.

use crate::cli::Cli;
use crate::text::{print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let metrics = socket::connect(cli).await??.metrics().await?;
    if cli.json {
        print_json(&metrics)?;
    } else {
        print(&metrics.text)?;
    }
    Ok(Exit::Done)
}
