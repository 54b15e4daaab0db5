//! A network namespace with a name: running code and commands inside it.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv6Addr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// Where `ip` looks for namespaces by name.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace; clones are the same one. It goes when the last clone does.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    file: File,
}

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    fn new(command: String, output: &std::process::Output) -> Output {
        Output {
            command,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output as JSON, whatever the exit code.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!("`{}` did not say JSON: {}{}", self.command, self.stdout, self.stderr)
        })
    }

    /// Standard output of a command that succeeded.
    ///
    /// # Errors
    /// When the exit code is not 0; the error shows what the command said.
    pub fn success(self) -> anyhow::Result<String> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| code.to_string());
        bail!("`{}` ended with {code}: {}{}", self.command, self.stderr, self.stdout)
    }
}

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Netns {
    /// Makes a namespace in which nothing is up but `lo`.
    pub(crate) fn create(name: &str, setup: &[String]) -> anyhow::Result<Netns> {
        let path = path(name);
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        std::thread::scope(|scope| {
            let made = scope.spawn(|| -> anyhow::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let none: Option<&str> = None;
                mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
                Ok(())
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("cannot make the network namespace {name}"))?;
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let netns = Netns(Arc::new(Inner { name: name.to_owned(), file }));
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend_from_slice(setup);
        netns.ip_batch(&lines)?;
        Ok(netns)
    }

    /// The name as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs code in a thread that is inside the namespace; sockets that it opens stay inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        setns(&self.0.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {}", self.0.name))
    }

    /// Runs a command inside and gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started or its exit code is not 0.
    pub fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        self.output(command)?.success()
    }

    /// Runs a command inside, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.within(|| command(words))?
    }

    /// Runs `ip -j …` inside and gives what it says; `Null` where it says nothing.
    ///
    /// # Errors
    /// When the command fails.
    pub fn ip_json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.run(&[&["ip", "-j"], words].concat())?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("ip -j {words:?} said {text}"))
    }

    /// Runs `ip` command lines (without the word `ip`) in one process; stops at the first failure.
    ///
    /// # Errors
    /// When a line fails.
    pub fn ip_batch(&self, lines: &[String]) -> anyhow::Result<()> {
        if !lines.is_empty() {
            self.feed(&["ip", "-batch", "-"], &lines.join("\n"))?;
        }
        Ok(())
    }

    /// Loads an nft script, all of it or nothing.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn nft(&self, script: &str) -> anyhow::Result<()> {
        self.feed(&["nft", "-f", "-"], script)?;
        Ok(())
    }

    /// Waits until links carry packets: the kernel gets there a little after `up` has returned.
    pub(crate) fn wait_up(&self, names: &[&str]) -> anyhow::Result<()> {
        self.wait_operstate(names, "UP")
    }

    /// The kernel notices that a carrier came or went up to a second later.
    pub(crate) fn wait_operstate(&self, names: &[&str], state: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let links = self.ip_json(&["link"])?;
            let up = |name: &&str| {
                let mut links = links.as_array().into_iter().flatten();
                links.any(|link| link["ifname"] == *name && link["operstate"] == state)
            };
            if names.iter().all(up) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{names:?} in {} do not get {state}: {links}",
                self.name()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until an IPv6 address may be used: without a search for duplicates, too, the kernel
    /// gets there a little after it has taken the address.
    pub(crate) fn wait_local(&self, address: Ipv6Addr) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let address = address.to_string();
        while self.run(&["ip", "-6", "route", "show", "table", "local", &address])?.is_empty() {
            ensure!(Instant::now() < deadline, "{address} does not get local in {}", self.name());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Writes a sysctl of this namespace, for example `net.ipv4.ip_forward`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        self.sysctls(&[(name, value)])
    }

    /// Reads a sysctl of this namespace.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn read_sysctl(&self, name: &str) -> anyhow::Result<String> {
        let path = sysctl_path(name);
        let text = self.within(|| std::fs::read_to_string(&path))?;
        Ok(text.with_context(|| format!("cannot read {path}"))?.trim().to_owned())
    }

    pub(crate) fn sysctls(&self, list: &[(&str, &str)]) -> anyhow::Result<()> {
        self.within(|| {
            for (name, value) in list {
                let path = sysctl_path(name);
                std::fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// Starts a command inside and leaves it running.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> anyhow::Result<Process> {
        let child = self.within(|| command.spawn())?;
        let child = child.map_err(|error| cannot_start(&command, error))?;
        Ok(Process(child))
    }

    fn feed(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = prepare(words)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.within(|| command.spawn())?;
        let mut child = child.map_err(|error| cannot_start(&command, error))?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // Where it ends before it has read all, its exit code and messages say why.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })?;
        let output = Output::new(words.join(" "), &output);
        // `ip` tells only the number of the line that failed.
        let number = output.stderr.trim().rsplit_once("failed -:").map(|(_, number)| number);
        let line = number
            .and_then(|number| number.parse::<usize>().ok())
            .and_then(|number| input.lines().nth(number.saturating_sub(1)))
            .unwrap_or_default()
            .to_owned();
        output.success().with_context(|| format!("in {}: {line}", self.name()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let path = path(&self.name);
        // What is left of it goes with the process's mounts.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&path);
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

/// Runs a command where the calling thread is.
pub(crate) fn command(words: &[&str]) -> anyhow::Result<Output> {
    let mut command = prepare(words)?;
    command.stdin(Stdio::null());
    let output = command.output().map_err(|error| cannot_start(&command, error))?;
    Ok(Output::new(words.join(" "), &output))
}

fn prepare(words: &[&str]) -> anyhow::Result<Command> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    // An ordinary user's path often lacks the directories that hold ip and nft.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"));
    Ok(command)
}

fn cannot_start(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    let package = match program.as_str() {
        "ip" | "bridge" | "ss" => Some("iproute2"),
        "nft" => Some("nftables"),
        "ping" => Some("iputils-ping"),
        "dhclient" => Some("isc-dhcp-client"),
        "udhcpc" => Some("udhcpc"),
        "socat" => Some("socat"),
        _ => None,
    };
    let hint = match package {
        Some(package) if error.kind() == ErrorKind::NotFound => {
            format!("; install the Debian package {package}")
        }
        _ => String::new(),
    };
    anyhow::Error::new(error).context(format!("cannot start {program}{hint}"))
}
