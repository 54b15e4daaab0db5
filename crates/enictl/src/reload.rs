//! `enictl reload`: the configuration is read again.

use crate::cli::Cli;
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let reloaded = socket::connect(cli).await??.reload().await?;
    if cli.json {
        print_json(&reloaded)?;
    } else {
        let said = if reloaded.changed { "read again" } else { "nothing in it has changed" };
        let notices = reloaded.notices.iter().map(|notice| format!("note: {}\n", clean(notice)));
        print(&format!("{said}\n{}", notices.collect::<String>()))?;
    }
    Ok(Exit::Done)
}
