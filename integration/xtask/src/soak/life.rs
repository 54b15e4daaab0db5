//! The daemon as a process: it is stopped, killed and started again, its configuration is edited,
//! and what it uses and says is kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use integration::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vpc::EniId;

use super::stage::Soak;
use super::{CONFIG, journal_time};
use crate::bench::process;

/// How often the process is looked at.
const OFTEN: Duration = Duration::from_secs(2);
/// Lines of the journal that are shown beside a violation.
const LINES: usize = 40;

/// What a process used at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) rss: f64,
    pub(super) descriptors: usize,
    pub(super) threads: usize,
}

/// One run of the daemon.
pub(super) struct Run {
    pid: u32,
    pub(super) began: Instant,
    pub(super) ended: Option<Instant>,
    pub(super) cpu: Duration,
    pub(super) most: f64,
    /// Taken while all was quiet, after the first rest of the run.
    pub(super) quiet: Vec<Sample>,
    pub(super) first: Sample,
    pub(super) last: Sample,
}

/// The journal as it grows.
pub(super) struct Journal {
    path: PathBuf,
    read: u64,
    rest: String,
    last: Vec<String>,
    pub(super) lines: u64,
    pub(super) passes: u64,
    pub(super) steps: u64,
}

/// All runs of the daemon.
pub(super) struct Life {
    pub(super) runs: Vec<Run>,
    pub(super) journal: Journal,
    pub(super) running: bool,
    looked: Instant,
    /// The configuration cannot be used.
    pub(super) broken: bool,
}

fn sample(pid: u32) -> anyhow::Result<Sample> {
    let count = |what: &str| -> anyhow::Result<usize> {
        let path = format!("/proc/{pid}/{what}");
        Ok(std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.count())
    };
    let rss = process::memory(pid, "VmRSS")?;
    Ok(Sample { rss, descriptors: count("fd")?, threads: count("task")? })
}

impl Run {
    fn start(pid: u32) -> anyhow::Result<Run> {
        let first = sample(pid)?;
        Ok(Run {
            pid,
            began: Instant::now(),
            ended: None,
            cpu: Duration::ZERO,
            most: first.rss,
            quiet: Vec::new(),
            first,
            last: first,
        })
    }

    /// Looks once more.
    fn look(&mut self, quiet: bool) -> anyhow::Result<()> {
        let sample = sample(self.pid)?;
        self.cpu = process::cpu(self.pid)?;
        self.most = self.most.max(sample.rss);
        self.last = sample;
        if quiet {
            self.quiet.push(sample);
        }
        Ok(())
    }

    pub(super) fn lived(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now).duration_since(self.began)
    }
}

impl Journal {
    fn new(daemon: &Daemon) -> Journal {
        let (rest, last) = (String::new(), Vec::new());
        let path = daemon.log_file();
        Journal { path, read: 0, rest, last, lines: 0, passes: 0, steps: 0 }
    }

    /// The lines since the last time; those that only count for the figures are counted.
    fn news(&mut self) -> anyhow::Result<Vec<String>> {
        let mut file = File::open(&self.path).context("cannot open the daemon's log")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += u64::try_from(file.read_to_end(&mut bytes)?)?;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let Some(end) = self.rest.rfind('\n') else { return Ok(Vec::new()) };
        let rest = self.rest.split_off(end + 1);
        let text = std::mem::replace(&mut self.rest, rest);
        let mut news = Vec::new();
        for line in text.lines() {
            if line.contains(" DEBUG ") {
                if let Some((_, steps)) = line.split_once(" passed steps=") {
                    let steps = steps.split(' ').next().unwrap_or_default();
                    self.passes += 1;
                    self.steps += steps.parse::<u64>().unwrap_or_default();
                }
                continue;
            }
            self.lines += 1;
            news.push(line.to_owned());
            self.last.push(line.to_owned());
        }
        let old = self.last.len().saturating_sub(LINES);
        self.last.drain(..old);
        Ok(news)
    }

    pub(super) fn last(&self) -> Vec<String> {
        self.last.clone()
    }
}

impl Life {
    pub(super) fn start(daemon: &Daemon) -> anyhow::Result<Life> {
        let now = Instant::now();
        let run = Run::start(daemon.pid()?)?;
        let journal = Journal::new(daemon);
        Ok(Life { runs: vec![run], journal, running: true, looked: now, broken: false })
    }

    pub(super) fn run(&mut self) -> Option<&mut Run> {
        self.runs.last_mut().filter(|_| self.running)
    }
}

/// What a line of the journal says was removed: from which ENI, what, and when.
pub(super) fn removal(line: &str) -> Option<(String, IpAddr, SystemTime)> {
    let (time, rest) = line.split_once(' ')?;
    let rest = rest.trim_start().strip_prefix("INFO removed ")?;
    let address = rest.split(' ').next()?.parse().ok()?;
    let eni = rest.split_once(" eni=\"")?.1.split('"').next()?;
    Some((eni.to_owned(), address, journal_time(time)?))
}

impl Soak {
    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.life.running {
            let pid = Pid::from_raw(i32::try_from(self.daemon.pid()?)?);
            kill(pid, signal).with_context(|| format!("cannot send {signal}"))?;
        }
        Ok(())
    }

    /// How many events the kernel could not keep for the daemon's sockets.
    pub(super) fn lost_events(&self) -> anyhow::Result<u64> {
        if !self.life.running {
            return Ok(0);
        }
        let pid = self.daemon.pid()?;
        let own = std::fs::read_dir(format!("/proc/{pid}/fd"))?
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .map(|file| file.to_string_lossy().into_owned())
            .collect::<BTreeSet<_>>();
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/netlink"))?;
        // Address, protocol, port, groups, memory of both ways, dump, locks, drops, inode; of all
        // sockets that listen in this namespace.
        let all = text.lines().skip(1).map(|line| line.split_whitespace().skip(8));
        let drops = all.filter_map(|mut words| {
            let (drops, inode) = (words.next()?, words.next()?);
            own.contains(&format!("socket:[{inode}]")).then(|| drops.parse::<u64>().ok())?
        });
        Ok(drops.sum())
    }

    /// Reads what the daemon said and whether it was allowed to do it.
    pub(super) fn follow_journal(&mut self) -> anyhow::Result<()> {
        for line in self.life.journal.news()? {
            if line.contains("panicked") {
                self.violation(&format!("enid panicked: {line}"), None)?;
            }
            if let Some((eni, address, at)) = removal(&line) {
                self.removed(&eni, address, at)?;
            }
        }
        Ok(())
    }

    fn removed(&mut self, eni: &str, address: IpAddr, at: SystemTime) -> anyhow::Result<()> {
        self.readings.absorb(&self.vpc, &self.instance);
        let ago = SystemTime::now().duration_since(at).unwrap_or_default();
        let at = Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
        let eni = EniId(eni.to_owned());
        let allowed = self.released.contains(&eni) || self.operator.dropped(address);
        match self.readings.forbids(&eni, address, at) {
            Some(why) if !allowed => {
                self.violation(&format!("{address} was removed from {eni}: {why}"), None)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Looks at the process, if it is time.
    pub(super) fn follow_process(&mut self) -> anyhow::Result<()> {
        if !self.life.running || self.life.looked.elapsed() < OFTEN {
            return Ok(());
        }
        self.life.looked = Instant::now();
        let pid = self.daemon.pid()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        if ended {
            self.ends();
            self.violation("enid ended by itself", None)?;
            self.daemon.kill()?;
            return self.start_again();
        }
        match self.life.run() {
            Some(run) => run.look(false),
            None => Ok(()),
        }
    }

    /// Takes a sample while all is quiet.
    pub(super) fn look_quietly(&mut self) -> anyhow::Result<()> {
        self.life.run().map_or(Ok(()), |run| run.look(true))
    }

    fn ends(&mut self) {
        if let Some(run) = self.life.run() {
            // It may be gone.
            let _ = run.look(false);
            run.ended = Some(Instant::now());
        }
        self.life.running = false;
    }

    /// Writes a configuration that can be used, where the last one cannot.
    pub(super) fn mend(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.life.broken) {
            let prefixes = if self.local_prefixes { "prefixes = \"local\"\n" } else { "" };
            self.daemon.configure(&format!("{prefixes}{CONFIG}"))?;
        }
        Ok(())
    }

    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        if self.life.running {
            return Ok(());
        }
        self.mend()?;
        self.note("enid is started");
        self.daemon.restart()?;
        self.life.runs.push(Run::start(self.daemon.pid()?)?);
        self.life.running = true;
        Ok(())
    }
}

/// The daemon ends, well or not, and is started again at once or later.
pub(super) fn restart(soak: &mut Soak) -> anyhow::Result<bool> {
    if !soak.life.running {
        return Ok(false);
    }
    let well = soak.dice.one_in(2);
    soak.note(if well { "enid is stopped" } else { "enid is killed" });
    soak.ends();
    if well {
        soak.daemon.terminate()?;
    } else {
        soak.daemon.kill()?;
    }
    if soak.dice.one_in(2) {
        soak.start_again()?;
    } else {
        let time = soak.dice.millis(100, 6000);
        soak.after(time, "enid is away", Soak::start_again);
    }
    Ok(true)
}

/// The daemon does not get to run for a while.
pub(super) fn stop(soak: &mut Soak) -> anyhow::Result<bool> {
    if !soak.life.running {
        return Ok(false);
    }
    let time = soak.dice.millis(100, 2500);
    soak.note(format!("enid does not run for {time:?}"));
    soak.signal(Signal::SIGSTOP)?;
    std::thread::sleep(time);
    soak.signal(Signal::SIGCONT)?;
    Ok(true)
}

/// The configuration is edited: well, or so that it cannot be used.
pub(super) fn edit(soak: &mut Soak) -> anyhow::Result<bool> {
    const BROKEN: &str = "the configuration is broken";
    let broken = soak.dice.one_in(3);
    if broken {
        soak.note(BROKEN);
        let text = ["[removal]\ngrase = \"1s\"\n", "poll_interval = 7\n", "<html>"];
        let text = soak.dice.pick(&text).copied().unwrap_or_default();
        soak.daemon.configure(text)?;
        soak.life.broken = true;
    } else {
        soak.local_prefixes = soak.dice.one_in(2);
        soak.note(format!("the configuration is edited: local prefixes: {}", soak.local_prefixes));
        soak.life.broken = true;
        soak.mend()?;
    }
    if soak.life.running && soak.dice.one_in(3) {
        soak.signal(Signal::SIGHUP)?;
    }
    Ok(true)
}
