//! The licences of the crates that are linked into the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::Architecture;
use crate::tools::output;

/// How the names of files with a licence begin.
const LICENCES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// A crate that is linked in.
struct Linked {
    name: String,
    licence: String,
    folder: PathBuf,
}

/// Every linked crate with its licence, and every licence's text, once.
pub(super) fn text(top: &Path, architecture: Architecture) -> anyhow::Result<String> {
    let mut metadata = Command::new(env!("CARGO"));
    metadata
        .current_dir(top)
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform"])
        .arg(architecture.target());
    let metadata = serde_json::from_str(&output(&mut metadata)?).context("cargo's metadata")?;
    let crates = linked(&metadata).context("cargo's metadata lack something")?;
    let mut text = "enid and enictl contain Rust's standard library (MIT OR Apache-2.0) and these \
                    crates from https://crates.io:\n\n"
        .to_owned();
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for linked in &crates {
        let _ = writeln!(text, "{}: {}", linked.name, linked.licence);
        for file in licences(&linked.folder)? {
            let content =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            texts.entry(content.trim().replace("\r\n", "\n")).or_default().push(&linked.name);
        }
    }
    for (content, names) in &texts {
        let _ = write!(text, "\n\n{}\n{}:\n\n{content}\n", "-".repeat(80), names.join(", "));
    }
    Ok(text)
}

/// The crates of others that the programs are linked with, in the order of their names.
fn linked(metadata: &Value) -> Option<Vec<Linked>> {
    let nodes = metadata["resolve"]["nodes"].as_array()?;
    let packages = metadata["packages"].as_array()?;
    let package = |id: &str| packages.iter().find(|package| package["id"] == id);
    let programs = packages.iter().filter(|package| {
        package["source"].is_null() && (package["name"] == "enid" || package["name"] == "enictl")
    });
    let mut ahead: Vec<&str> = programs.filter_map(|program| program["id"].as_str()).collect();
    let mut seen: BTreeSet<&str> = ahead.iter().copied().collect();
    while let Some(id) = ahead.pop() {
        let node = nodes.iter().find(|node| node["id"] == id)?;
        for dependency in node["deps"].as_array()? {
            // What only builds or tests is not linked in; its kind has a name.
            let kinds = dependency["dep_kinds"].as_array()?;
            let id = dependency["pkg"].as_str()?;
            if kinds.iter().any(|kind| kind["kind"].is_null()) && seen.insert(id) {
                ahead.push(id);
            }
        }
    }
    let mut crates = Vec::new();
    for package in seen.into_iter().filter_map(package).filter(|it| !it["source"].is_null()) {
        crates.push(Linked {
            name: format!("{} {}", package["name"].as_str()?, package["version"].as_str()?),
            licence: package["license"].as_str().unwrap_or("see below").to_owned(),
            folder: Path::new(package["manifest_path"].as_str()?).parent()?.to_owned(),
        });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Some(crates)
}

/// The files of a folder that hold a licence.
fn licences(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.to_ascii_uppercase();
        if path.is_file() && LICENCES.iter().any(|begin| name.starts_with(begin)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
