//! `enictl wait`: returns when what the cloud was told has come about.

use crate::cli::{self, Cli};
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Wait) -> anyhow::Result<Exit> {
    let mut daemon = socket::connect(cli).await??;
    let waited = daemon.wait(arguments.what(), arguments.timeout).await?;
    if cli.json {
        print_json(&waited)?;
    } else if !waited.met {
        let lines = waited.waiting.iter();
        print(&lines.map(|line| format!("not yet: {}\n", clean(line))).collect::<String>())?;
    }
    Ok(if waited.met { Exit::Done } else { Exit::NotYet })
}
