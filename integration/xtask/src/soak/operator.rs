//! What operators do: they look, refresh, release and drop, and some hang up halfway.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::ensure;
use vpc::Output;

use super::cloud::addresses;
use super::stage::Soak;

/// No command may take longer, on a busy machine and while metadata is silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commands at once.
const MANY: usize = 4;
/// Clients that say half a request and wait.
const STUCK: usize = 12;
/// A dropped address goes within this.
const DROPPING: Duration = Duration::from_secs(90);

struct Answer {
    words: String,
    took: Duration,
    output: anyhow::Result<Output>,
}

/// Commands that run beside everything else.
pub(super) struct Operator {
    answers: (Sender<Answer>, Receiver<Answer>),
    running: usize,
    stuck: Vec<UnixStream>,
    drops: BTreeMap<IpAddr, Instant>,
    pub(super) commands: u64,
    pub(super) longest: Duration,
}

impl Default for Operator {
    fn default() -> Operator {
        Operator {
            answers: channel(),
            running: 0,
            stuck: Vec::new(),
            drops: BTreeMap::new(),
            commands: 0,
            longest: Duration::ZERO,
        }
    }
}

impl Operator {
    /// Whether somebody asked a moment ago for an address to be dropped.
    pub(super) fn dropped(&self, address: IpAddr) -> bool {
        self.drops.get(&address).is_some_and(|asked| asked.elapsed() < DROPPING)
    }

    pub(super) fn hang_up(&mut self) {
        self.stuck.clear();
    }
}

impl Soak {
    /// Starts a command; what it says is looked at when it has ended.
    fn command(&mut self, words: &[&str]) {
        if self.operator.running >= MANY {
            return;
        }
        self.note(format!("enictl {}", words.join(" ")));
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (enictl, answers) = (self.daemon.enictl(), self.operator.answers.0.clone());
        let socket = self.daemon.control_socket();
        self.operator.running += 1;
        self.operator.commands += 1;
        std::thread::spawn(move || {
            let began = Instant::now();
            let socket = socket.to_string_lossy();
            let mut all = vec!["--socket", &*socket];
            all.extend(words.iter().map(String::as_str));
            let output = enictl.run(&all);
            let answer = Answer { words: words.join(" "), took: began.elapsed(), output };
            // Nobody listens once the soak is over.
            let _ = answers.send(answer);
        });
    }

    /// Looks at commands that have ended.
    pub(super) fn follow_operator(&mut self) -> anyhow::Result<()> {
        while let Ok(answer) = self.operator.answers.1.try_recv() {
            self.operator.running -= 1;
            self.operator.longest = self.operator.longest.max(answer.took);
            let output = answer.output?;
            let known = output.code.is_some_and(|code| (0..=5).contains(&code) && code != 2);
            let said = format!("{:?}: {}{}", output.code, output.stdout, output.stderr);
            if !known || output.stderr.contains("panicked") {
                self.violation(&format!("enictl {} ended with {said}", answer.words), None)?;
            }
            if answer.took > PATIENCE {
                let what = format!("enictl {} took {:?}: {said}", answer.words, answer.took);
                self.violation(&what, None)?;
            }
        }
        Ok(())
    }

    /// Waits until all commands have ended.
    pub(super) fn commands_end(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.operator.running > 0 {
            ensure!(began.elapsed() < 2 * PATIENCE, "an enictl does not end");
            self.tick()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Somebody looks.
pub(super) fn look(soak: &mut Soak) -> anyhow::Result<bool> {
    const ALL: [&[&str]; 4] = [&["status"], &["status", "--json"], &["plan"], &["plan", "--json"]];
    let words = soak.dice.pick(&ALL).copied().unwrap_or_default();
    soak.command(words);
    Ok(true)
}

pub(super) fn refresh(soak: &mut Soak) -> anyhow::Result<bool> {
    let words: &[&str] =
        if soak.dice.one_in(2) { &["refresh"] } else { &["refresh", "--wait", "--timeout", "5s"] };
    soak.command(words);
    Ok(true)
}

/// An address is to be dropped: one that is leaving, or one that is granted, which is refused.
pub(super) fn drop(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let Some(link) = soak.link_of(&eni)? else { return Ok(false) };
    let there: Vec<IpAddr> = link.addresses.keys().copied().collect();
    let leaving: Vec<IpAddr> =
        there.iter().copied().filter(|address| !addresses(&eni).contains(address)).collect();
    let Some(address) = soak.dice.pick(if leaving.is_empty() { &there } else { &leaving }) else {
        return Ok(false);
    };
    let address = *address;
    // A list that lacks it wrongly would be believed: what is granted is not asked for then.
    let granted = !leaving.contains(&address);
    if granted && soak.later.iter().any(|later| later.what.starts_with("metadata")) {
        return Ok(false);
    }
    if !granted {
        soak.operator.drops.insert(address, Instant::now());
    }
    soak.command(&["drop", &address.to_string()]);
    Ok(true)
}

/// An ENI is released for a while.
pub(super) fn release(soak: &mut Soak) -> anyhow::Result<bool> {
    const WHAT: &str = "an ENI is released";
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    if soak.goes_on(WHAT) || !soak.life.running {
        return Ok(false);
    }
    soak.note(format!("enictl release {}", eni.id));
    let first = addresses(&eni);
    let primary = eni.id == soak.instance.primary;
    let four = eni.ipv4.first().map(|address| IpAddr::V4(*address));
    let six = eni.ipv6.first().map(|address| IpAddr::V6(*address));
    let stays = |address: IpAddr| primary && (four == Some(address) || six == Some(address));
    let hit: Vec<IpAddr> = first.into_iter().filter(|address| !stays(*address)).collect();
    soak.released.insert(eni.id.clone());
    soak.targets.begin("released", |target| hit.contains(&target.address));
    let output = soak.daemon.enictl().run(&["release", &eni.id.0])?;
    soak.note(format!("it ended with {:?}", output.code));
    let time = soak.dice.millis(500, 8000);
    soak.after(time, WHAT, |_| Ok(()));
    Ok(true)
}

/// Ends every release.
pub(super) fn unhold(soak: &mut Soak) -> anyhow::Result<bool> {
    if soak.released.is_empty() || !soak.life.running {
        return Ok(false);
    }
    soak.note("enictl unhold --all");
    let output = soak.daemon.enictl().run(&["unhold", "--all"])?;
    if output.code != Some(0) {
        soak.note(format!("it ended with {:?}: {}", output.code, output.stderr));
        return Ok(false);
    }
    soak.released.clear();
    soak.targets.over("released", |_| true);
    Ok(true)
}

/// Clients say half a request and wait.
pub(super) fn stuck(soak: &mut Soak) -> anyhow::Result<bool> {
    if soak.operator.stuck.len() >= STUCK {
        soak.note("stuck clients hang up");
        soak.operator.hang_up();
        return Ok(true);
    }
    for _ in 0..=soak.dice.below(3) {
        // Where no daemon listens, nobody can be stuck.
        let Ok(mut client) = UnixStream::connect(soak.daemon.control_socket()) else {
            return Ok(false);
        };
        let _ = client.write_all(b"{\"method\":\"");
        soak.operator.stuck.push(client);
    }
    soak.note("a client says half a request");
    Ok(true)
}
