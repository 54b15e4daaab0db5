//! `enictl unhold`: enid manages an ENI again that was released.

use crate::cli::{Cli, Which};
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, which: &Which) -> anyhow::Result<Exit> {
    let affected = socket::connect(cli).await??.unhold(which.target()).await?;
    if cli.json {
        print_json(&affected)?;
    } else if affected.enis.is_empty() {
        print("done; no ENI that is here was concerned\n")?;
    } else {
        let lines = affected.enis.iter();
        print(&lines.map(|eni| format!("managed again: {}\n", clean(eni))).collect::<String>())?;
    }
    Ok(Exit::Done)
}
