//! `enictl hold`: an ENI is left as it is for a while.

use crate::cli::{self, Cli};
use crate::text::{clean, print, print_json, span};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Hold) -> anyhow::Result<Exit> {
    let cli::Hold { eni, time, reason } = arguments;
    let mut daemon = socket::connect(cli).await??;
    let affected = daemon.hold(eni.clone(), *time, reason.clone()).await?;
    if cli.json {
        print_json(&affected)?;
    } else {
        let ends =
            time.map_or_else(String::new, |time| format!("for {} or ", span(time.as_secs())));
        let line =
            |eni: &String| format!("held as it is {ends}until `enictl unhold`: {}\n", clean(eni));
        print(&affected.enis.iter().map(line).collect::<String>())?;
    }
    Ok(Exit::Done)
}
