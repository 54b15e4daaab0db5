//! `cargo xtask docs`: what of the documentation is made from the code. Schemas are kept in `docs/schema`;
//! the manual and the completions are made for the packages, in `target/docs`.

pub(crate) mod manual;
mod markdown;
mod schema;

use crate::say;
use crate::tools::{files, top};

/// Makes all of it.
///
/// # Errors
/// When something cannot be written.
pub(crate) fn run() -> anyhow::Result<()> {
    for file in schema::write(&top().join("docs/schema"))? {
        say(&file.display().to_string())?;
    }
    manual::write(&manual::folder())?;
    for file in files(&manual::folder())? {
        say(&file.display().to_string())?;
    }
    Ok(())
}
