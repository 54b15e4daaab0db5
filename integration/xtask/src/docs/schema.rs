//! The JSON Schemas of what `enictl … --json` prints, one file a command.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::tools::files;

/// Where schemas have their names.
const HOME: &str = "https://github.com/enid-project/enid/blob/main/docs/schema";

/// Writes all schemas to a folder, and takes away what is none.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let wanted = texts(folder)?;
    for file in files(folder)? {
        if !wanted.contains_key(&file) {
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
    }
    for (file, text) in &wanted {
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(wanted.into_keys().collect())
}

/// What the files of a folder of schemas must say.
fn texts(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut texts = BTreeMap::new();
    for (command, mut schema) in enid_control::schema::all().context("making the schemas")? {
        schema["$id"] = format!("{HOME}/{command}.json").into();
        let text = serde_json::to_string_pretty(&schema).context("writing a schema as JSON")?;
        texts.insert(folder.join(format!("{command}.json")), format!("{text}\n"));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tools::top;

    #[test]
    fn the_published_schemas_are_those_of_the_code() {
        let folder = top().join("docs/schema");
        let wanted = texts(&folder).unwrap();
        let there: BTreeSet<PathBuf> = files(&folder).unwrap().into_iter().collect();
        assert_eq!(there, wanted.keys().cloned().collect(), "run `cargo xtask docs`");
        for (file, text) in wanted {
            let said = fs::read_to_string(&file).unwrap();
            assert!(said == text, "{} is not current: run `cargo xtask docs`", file.display());
        }
    }

    #[test]
    fn every_command_that_prints_json_has_a_schema() {
        let all = enid_control::schema::all().unwrap();
        let schemas: BTreeSet<&str> = all.iter().map(|(command, _)| *command).collect();
        let command = enictl::command();
        for command in command.get_subcommands() {
            let name = command.get_name();
            assert!(schemas.contains(name), "`enictl {name} --json` has no schema");
        }
    }
}
