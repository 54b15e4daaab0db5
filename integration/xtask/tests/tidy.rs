//! The rules of the house that no lint knows.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that the deciding crate may be built from; `serde` and `ipnet`'s are for inputs.
const CORE: [&str; 11] = [
    "enid-core",
    "ipnet",
    "proc-macro2",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "syn",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
];

/// Our crates, and which of ours each may use.
const WALLS: [(&str, &[&str]); 6] = [
    ("enid-core", &[]),
    ("enid-imds", &["enid-core"]),
    ("enid-kernel", &["enid-core"]),
    ("enid-control", &["enid-core"]),
    ("enid", &["enid-control", "enid-core", "enid-imds", "enid-kernel"]),
    ("enictl", &["enid", "enid-control", "enid-core", "enid-kernel"]),
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn tree(package: &str, more: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(top())
        .args(["tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none"])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Every file of the repository that ends like this.
fn files(ending: &str) -> Vec<PathBuf> {
    let output = Command::new("git").current_dir(top()).args(["ls-files"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> =
        text.lines().filter(|line| line.ends_with(ending)).map(|line| top().join(line)).collect();
    assert!(!files.is_empty(), "no file ends in {ending}: the rules would check nothing");
    files.into_iter().filter(|file| file.exists()).collect()
}

#[test]
fn the_deciding_crate_is_built_from_few_crates() {
    let found = tree("enid-core", &[]);
    let allowed: BTreeSet<String> = CORE.iter().map(|name| (*name).to_owned()).collect();
    let more: Vec<_> = found.difference(&allowed).collect();
    assert!(
        more.is_empty(),
        "enid-core now depends on {more:?}: decide elsewhere, or say why here"
    );
}

#[test]
fn the_crates_in_the_middle_never_meet() {
    for (package, allowed) in WALLS {
        let direct = tree(package, &["--depth", "1"]);
        let ours = direct.iter().filter(|name| name.starts_with("eni") && *name != package);
        for name in ours {
            assert!(allowed.contains(&name.as_str()), "{package} must not depend on {name}");
        }
    }
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    for file in files(".rs") {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{}: open it with a //! sentence", file.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written so that this file does not find itself.
    let words =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["#[ig", "nore"]];
    for file in files(".rs").into_iter().chain(files(".md")).chain(files(".toml")) {
        let text = fs::read_to_string(&file).unwrap();
        for word in words {
            let word = word.concat();
            assert!(!text.contains(&word), "{} has {word}", file.display());
        }
    }
}

#[test]
fn the_daemon_starts_no_program() {
    for file in files(".rs") {
        let path = file.strip_prefix(top()).unwrap().to_owned();
        let shipped = path.starts_with("crates") && path.iter().any(|part| part == "src");
        let text = fs::read_to_string(&file).unwrap();
        let starts = text.contains("process::Command") || text.contains("Command::new(\"");
        assert!(!(shipped && starts), "{}: enid starts no program", path.display());
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for file in files(".md") {
        let text = fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let found = file.parent().unwrap().join(target);
            assert!(found.exists(), "{} links to {target}, which is not there", file.display());
        }
    }
}
