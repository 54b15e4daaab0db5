//! Everything that the fuzzer has kept, and everything it ever broke something with, once more.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// What the committed corpus may weigh, in bytes.
const LARGEST: u64 = 1 << 20;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The inputs of a target that break it.
fn broken(kind: &str, name: &str, run: fn(&[u8])) -> Vec<PathBuf> {
    let mut files = files(&folder(kind).join(name));
    files.retain(|path| {
        let bytes = fs::read(path).unwrap();
        catch_unwind(|| run(&bytes)).is_err()
    });
    files
}

#[test]
fn nothing_in_the_corpus_breaks_anything() {
    for target in TARGETS {
        let kept = files(&folder("corpus").join(target.name));
        assert!(!kept.is_empty(), "{} has no corpus", target.name);
        let broken = broken("corpus", target.name, target.run);
        assert!(broken.is_empty(), "{}: {broken:#?}", target.name);
    }
}

#[test]
fn nothing_that_broke_something_once_does_so_again() {
    let known: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    for path in files(&folder("regressions")).iter().filter(|path| path.is_dir()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(known.contains(name), "there is no target {name}: its inputs would not be tried");
    }
    for target in TARGETS {
        let broken = broken("regressions", target.name, target.run);
        assert!(broken.is_empty(), "{}: {broken:#?}", target.name);
    }
}

#[test]
fn the_corpus_stays_small() {
    let all = TARGETS.iter().flat_map(|target| files(&folder("corpus").join(target.name)));
    let bytes: u64 = all.map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes < LARGEST, "{bytes} bytes: `cargo xtask fuzz --keep` makes it smaller");
}

#[test]
fn the_fuzzer_has_a_binary_for_each_target_and_no_other() {
    let stems = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let binaries: BTreeSet<String> =
        files(&folder("libfuzzer/fuzz_targets")).iter().map(stems).collect();
    let names = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(binaries, names);
    let manifest = fs::read_to_string(folder("libfuzzer/Cargo.toml")).unwrap();
    for target in TARGETS {
        let line = format!("name = \"{}\"", target.name);
        assert!(manifest.contains(&line), "libfuzzer/Cargo.toml lacks {line}");
        let source = folder("libfuzzer/fuzz_targets").join(format!("{}.rs", target.name));
        let source = fs::read_to_string(source).unwrap();
        assert!(source.contains(&format!("fuzz::{}(bytes)", target.name)), "{source}");
    }
}
