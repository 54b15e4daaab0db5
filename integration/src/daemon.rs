//! The real daemon and the operator's command, run inside an instance.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vpc::{Instance, Netns, Output, Process};

use crate::faults::Faults;
use crate::listener::Listener;
use crate::patience::Scene;
use crate::schema;
use crate::trial::{OLD_KERNEL, keep_log};

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The words before the daemon's own, of a program that becomes the daemon.
    wrapper: Vec<String>,
    faulty: bool,
    old_kernel: bool,
}

impl Launch {
    /// As the trial that runs on this thread wants it.
    fn usual() -> Launch {
        Launch { old_kernel: OLD_KERNEL.get(), ..Launch::default() }
    }

    /// The daemon that fails where it is told to.
    #[must_use]
    pub fn faulty() -> Launch {
        Launch { faulty: true, ..Launch::default() }
    }

    /// Started by another program, which must become the daemon by `exec`.
    #[must_use]
    pub fn under(mut self, words: &[&str]) -> Launch {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
        self
    }
}

/// A daemon that runs in an instance; dropping it kills it.
pub struct Daemon {
    instance: Instance,
    how: Launch,
    faults: Faults,
    directory: TempDir,
    /// systemd's notification socket.
    notices: Listener,
    process: Option<Process>,
    /// It was seen to listen on its control socket since its start.
    listened: AtomicBool,
}

/// For how long a daemon that was started is waited for until it can be asked.
const PATIENCE: Duration = Duration::from_secs(15);

impl Daemon {
    /// Starts `enid` with a configuration of its own and does not wait for it to be ready.
    ///
    /// `extra` is TOML: top-level keys first, tables after them. The runtime directory and the
    /// control socket are in a temporary directory, and udev is not waited for unless `extra` has
    /// its own `[links]`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(instance: &Instance, extra: &str) -> anyhow::Result<Daemon> {
        let mut daemon = Daemon::prepare(instance, &Launch::usual(), extra)?;
        daemon.launch()?;
        Ok(daemon)
    }

    /// Makes all that a daemon needs and does not start it; [`Daemon::restart`] does.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(instance: &Instance, how: &Launch, extra: &str) -> anyhow::Result<Daemon> {
        let directory = tempfile::Builder::new()
            .prefix("enid-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let notices = Listener::start(&directory.path().join("notify"))?;
        let faults = Faults::new(directory.path().join("faults"))?;
        let (instance, how) = (instance.clone(), how.clone());
        let (process, listened) = (None, AtomicBool::new(false));
        let daemon = Daemon { instance, how, faults, directory, notices, process, listened };
        daemon.configure(extra)?;
        Ok(daemon)
    }

    /// How it is started the next time.
    pub fn set_launch(&mut self, how: &Launch) {
        self.how = how.clone();
    }

    /// What a daemon that was started as faulty is told.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Starts `enid` and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it cannot be started or is not ready within 15 seconds.
    pub fn ready(instance: &Instance, extra: &str) -> anyhow::Result<Daemon> {
        let daemon = Daemon::start(instance, extra)?;
        daemon.wait_ready(PATIENCE)?;
        Ok(daemon)
    }

    /// Writes the configuration anew; the daemon is not told.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, extra: &str) -> anyhow::Result<()> {
        let directory = self.directory.path().display();
        let links = "\n[links]\nudev = \"never\"\n";
        let links = if extra.contains("[links]") { "" } else { links };
        let text = format!(
            "runtime_directory = \"{directory}/run\"\n\
             control_socket = \"{directory}/control\"\n{extra}\n{links}"
        );
        let path = self.config();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("enid.toml")
    }

    /// The directory in which the daemon keeps its ledger.
    #[must_use]
    pub fn runtime_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The socket that the daemon answers on.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// Everything that the daemon wrote to standard error so far, over all restarts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Where that is.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What the daemon told systemd, line by line (`READY=1`, `STATUS=…`), since the last start.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let messages = self.notices.messages();
        let text = messages.iter().map(|message| String::from_utf8_lossy(message));
        text.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// The process id while the daemon runs.
    ///
    /// # Errors
    /// When it was stopped.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.process.as_ref().context("the daemon was stopped")?.id())
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes too long.
    pub fn wait_ready(&self, timeout: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.notices().iter().any(|line| line == "READY=1") {
            ensure!(!self.has_ended()?, "enid ended before it was ready\n{}", self.describe());
            ensure!(start.elapsed() < timeout, "enid is not ready\n{}", self.describe());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Whether the process has ended by itself; it stays a zombie until it is waited for.
    ///
    /// # Errors
    /// When it was stopped before.
    pub fn has_ended(&self) -> anyhow::Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The name before it may hold anything, a parenthesis too.
        Ok(stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])))
    }

    /// Waits until the daemon has ended by itself; `None` when it has not within this time.
    ///
    /// # Errors
    /// When it was stopped before.
    pub fn wait_ended(&mut self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let start = Instant::now();
        while !self.has_ended()? {
            if start.elapsed() > timeout {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.wait(timeout).map(Some)
    }

    /// Kills the daemon without a chance to clean up.
    ///
    /// # Errors
    /// When it was stopped before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(5))?;
        Ok(())
    }

    /// Ends the daemon as systemd does.
    ///
    /// # Errors
    /// When it does not end within five seconds, or not with 0.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(Duration::from_secs(5))?;
        ensure!(status.success(), "enid ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Asks the daemon to read its configuration again.
    ///
    /// # Errors
    /// When it was stopped.
    pub fn hangup(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Ends the daemon, if it runs, and starts it again with the same directories.
    ///
    /// # Errors
    /// When it does not end well or cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            self.terminate()?;
        }
        self.launch()
    }

    /// The operator's command, with this daemon's configuration. A daemon that was just started gets
    /// to where it can be asked first.
    #[must_use]
    pub fn enictl(&self) -> Enictl {
        let start = Instant::now();
        let runs = || self.has_ended().is_ok_and(|ended| !ended);
        while !self.listens() && runs() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        Enictl { netns: self.instance.netns.clone(), config: self.config() }
    }

    /// Whether it can be asked, as far as is known.
    fn listens(&self) -> bool {
        let listens = self.listened.load(Ordering::Relaxed)
            || UnixStream::connect(self.control_socket()).is_ok();
        self.listened.store(listens, Ordering::Relaxed);
        listens
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to enid"))
    }

    fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        let process = self.process.as_mut().context("the daemon was stopped")?;
        let status = loop {
            if let Some(status) = process.try_wait()? {
                break status;
            }
            if start.elapsed() > timeout {
                bail!("enid does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.process = None;
        Ok(status)
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        self.notices.forget();
        self.listened.store(false, Ordering::Relaxed);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .context("cannot open the daemon's log")?;
        let program =
            binary(if self.how.faulty || self.how.old_kernel { "enid-faults" } else { "enid" })?;
        let mut words: Vec<OsString> = self.how.wrapper.iter().map(OsString::from).collect();
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        if self.how.old_kernel {
            command.env("ENID_FAULTS_OLD_KERNEL", "1");
        }
        if self.how.faulty {
            command.env("ENID_FAULTS", self.directory.path().join("faults"));
        }
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.config())
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("NO_COLOR", "1")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(self.instance.spawn(command)?);
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process = None;
        keep_log(self.log());
    }
}

impl Scene for Daemon {
    fn describe(&self) -> String {
        format!("{}--- log of enid\n{}", self.instance.describe(), self.log())
    }
}

/// The operator's command inside an instance.
#[derive(Clone, Debug)]
pub struct Enictl {
    netns: Netns,
    config: PathBuf,
}

impl Enictl {
    /// For an instance in which no daemon was started.
    #[must_use]
    pub fn new(netns: &Netns, config: &Path) -> Enictl {
        Enictl { netns: netns.clone(), config: config.to_owned() }
    }

    /// Runs `enictl --config FILE …`, whatever its exit code. What it prints with `--json` is held
    /// against the published schema.
    ///
    /// # Errors
    /// When it cannot be started, or prints what its schema does not allow.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let program = binary("enictl")?;
        let (program, config) = (program.to_string_lossy(), self.config.to_string_lossy());
        let said = self.netns.output(&[&[&*program, "--config", &*config], arguments].concat())?;
        schema::check(arguments, &said)?;
        Ok(said)
    }
}

/// The path of a binary of this workspace: in `ENID_BIN_DIR`, else where cargo put this one.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let directory = match std::env::var_os("ENID_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = std::env::current_exe().context("cannot tell where this binary is")?;
            let mut directory = own.parent().unwrap_or(Path::new("/")).to_owned();
            if directory.ends_with("deps") {
                directory.pop();
            }
            directory
        }
    };
    let path = directory.join(name);
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo build -p enid -p enictl` and\n\
         `cargo build -p enid --features faults --bin enid-faults`, or set ENID_BIN_DIR",
        path.display()
    );
    Ok(path)
}
