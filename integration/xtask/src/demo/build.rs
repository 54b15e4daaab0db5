//! The release build of the daemon and the operator's command, and who runs them next.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{needs, say, tools};

/// Where the harness looks for the binaries.
const BINARIES: &str = "ENID_BIN_DIR";

/// The directory that was given, or the one that `enid` and `enictl` are built into.
pub(crate) fn given_or_release(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let missing = |given: &Path| format!("there is no directory {}", given.display());
    match given {
        Some(given) => given.canonicalize().with_context(|| missing(given)),
        None => release(),
    }
}

/// Builds `enid` and `enictl` and gives the directory they are in.
fn release() -> anyhow::Result<PathBuf> {
    let what = "building enid and enictl for release";
    let progress = std::io::stdout().is_terminal();
    let end = if progress { "" } else { "\n" };
    write(&format!("{what}: a few minutes the first time{end}"))?;
    let start = Instant::now();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--locked", "-p", "enid", "-p", "enictl"])
        .args(["--color", "never", "--message-format", "json-render-diagnostics"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (stdout, stderr) = (cargo.stdout.take(), cargo.stderr.take());
    let (messages, said) = std::thread::scope(|scope| {
        let messages = scope.spawn(|| {
            let mut text = String::new();
            stdout.map(|mut stdout| stdout.read_to_string(&mut text)).transpose().map(|_| text)
        });
        let said = stderr.map(|stderr| follow(stderr, progress.then_some(what), start));
        (messages.join(), said)
    });
    let messages = messages.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let status = cargo.wait()?;
    if !status.success() {
        bail!("cargo build ended with {status}:\n{}", said.transpose()?.unwrap_or_default());
    }
    let took = start.elapsed();
    if took > Duration::from_secs(5) {
        say(&format!("built in {:.0} s", took.as_secs_f64()))?;
    }
    directory(&messages)
}

/// Reads what cargo says; shows how many packages it has compiled where somebody watches.
fn follow(stderr: impl Read, progress: Option<&str>, start: Instant) -> anyhow::Result<String> {
    let mut said = String::new();
    let mut packages = 0;
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        if line.trim_start().starts_with("Compiling ") {
            packages += 1;
            if let Some(what) = progress {
                let seconds = start.elapsed().as_secs();
                write(&format!("\r{what}: {packages} packages, {seconds} s          "))?;
            }
        }
        said.push_str(&line);
        said.push('\n');
    }
    if progress.is_some() {
        say("")?;
    }
    Ok(said)
}

/// Writes a part of a line to standard output.
fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).context("cannot write")
}

/// The directory of the executables that cargo tells about, one JSON object a line.
fn directory(messages: &str) -> anyhow::Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(Path::new(message["executable"].as_str()?).parent()?.to_owned()))
        .context("cargo did not say where it put the binaries")
}

/// Whether this process looks for the binaries in that directory.
pub(crate) fn runs_with(binaries: &Path) -> bool {
    std::env::var_os(BINARIES).is_some_and(|own| own == binaries.as_os_str())
}

/// Becomes `cargo xtask … --binaries DIR`, in an environment that finds them. What it keeps in files
/// goes to `/run`, which will be its own.
pub(crate) fn run_with(binaries: &Path, arguments: &[&str]) -> anyhow::Error {
    let error = Command::new(tools::OWN)
        .args(arguments)
        .arg("--binaries")
        .arg(binaries)
        .env(BINARIES, binaries)
        .env("PATH", needs::path())
        .env("TMPDIR", "/run")
        .exec();
    anyhow::Error::new(error).context("cannot start this program anew")
}

#[cfg(test)]
mod tests {
    use super::directory;

    #[test]
    fn the_binaries_are_where_cargo_says() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/target/release/enid"}"#,
            "\n",
        );
        assert_eq!(directory(messages).unwrap(), std::path::Path::new("/target/release"));
        assert!(directory("").is_err());
    }
}
