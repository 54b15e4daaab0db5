//! `enictl release`: everything that enid made for an ENI goes, and the ENI is left alone.

use crate::cli::{Cli, Which};
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, which: &Which) -> anyhow::Result<Exit> {
    let affected = socket::connect(cli).await??.release(which.target()).await?;
    if cli.json {
        print_json(&affected)?;
    } else {
        let mut out = String::new();
        for eni in &affected.enis {
            out.push_str(&format!("released {}\n", clean(eni)));
        }
        out.push_str("`enictl unhold` hands it back to enid\n");
        print(&out)?;
    }
    Ok(Exit::Done)
}
