//! The binaries: how large they are and how long they take to build.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::figure::Figure;

pub(super) const NAME: &str = "binaries";
pub(super) const METHOD: &str = "The release binaries' file sizes; with --build also wall and CPU \
     time of `cargo build --release --locked -p enid -p enictl` into an empty folder.";

/// The cargo that runs this, or the one on the path.
pub(super) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    cargo
}

pub(super) fn sizes() -> anyhow::Result<Vec<Figure>> {
    ["enid", "enictl"]
        .into_iter()
        .map(|name| {
            let path = integration::binary(name)?;
            let size = fs::metadata(&path)?.len();
            let megabytes = f64::from(u32::try_from(size)?) / 1e6;
            Ok(Figure::new(&format!("size of {name}"), "MB", vec![megabytes]))
        })
        .collect()
}

pub(super) fn time() -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir().context("cannot make a folder to build in")?;
    let (start, before) = (Instant::now(), children_cpu()?);
    let status = cargo()
        .args(["build", "--quiet", "--release", "--locked", "-p", "enid", "-p", "enictl"])
        .arg("--target-dir")
        .arg(folder.path())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the build failed");
    let (wall, cpu) = (start.elapsed().as_secs_f64(), children_cpu()? - before);
    Ok(vec![
        Figure::new("clean release build, wall", "s", vec![wall]),
        Figure::new("  CPU", "s", vec![cpu]),
    ])
}

/// Seconds on a CPU of the children that have ended, and of theirs.
fn children_cpu() -> anyhow::Result<f64> {
    // USER_HZ, which is 100 wherever Linux shows it.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name before it may hold anything; user and system time of children are fields 16 and 17.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let times: Result<Vec<f64>, _> = fields.split(' ').skip(13).take(2).map(str::parse).collect();
    Ok(times?.iter().sum::<f64>() / TICKS)
}
