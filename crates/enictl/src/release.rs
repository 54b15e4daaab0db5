//! `enictl release`: everything that enid made for an ENI goes, and the ENI is left alone.

use enid_control::Target;

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
        out.push_str(match which.target() {
            Target::All => "all ENIs are left alone until `enictl unhold --all`\n",
            Target::Eni(_) => "it is left alone until `enictl unhold`\n",
        });
        print(&out)?;
    }
    Ok(Exit::Done)
}
