//! A machine that runs: commands inside it, adapters that come and go, reboots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::Scene;
use serde_json::{Value, json};
use tempfile::TempDir;
use vpc::{EniId, Guest, Output, Vpc};

use crate::agent::Agent;
use crate::files::Files;
use crate::image::Image;
use crate::qemu::Qemu;

/// Booting may take this long where other work is done at the same time.
const BOOT: Duration = Duration::from_secs(240);
/// A command may take this long.
const COMMAND: Duration = Duration::from_secs(180);
/// The slot of the primary ENI's adapter: udev calls it `ens5`, as on many instances.
const FIRST_SLOT: u8 = 5;

/// A guest of a VPC, booted from an image. Its first ENI is `ens5`, the next `ens6` and so on.
#[derive(Debug)]
pub struct Machine {
    /// Who it is in the VPC.
    pub guest: Guest,
    state: Mutex<State>,
    _directory: TempDir,
}

#[derive(Debug)]
struct State {
    qemu: Qemu,
    agent: Agent,
    slots: BTreeMap<EniId, u8>,
}

/// How a systemd unit stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `ActiveState`.
    pub active: String,
    /// `MainPID`, 0 when it does not run.
    pub pid: u32,
    /// `StatusText`: what the service says of itself.
    pub status: String,
    /// `NRestarts`.
    pub restarts: u32,
}

impl Machine {
    /// Boots a machine and waits until commands can be run in it, which is long before its
    /// network works.
    ///
    /// # Errors
    /// When it does not boot; the error has the end of its console.
    pub fn boot(vpc: &Vpc, guest: Guest, image: &Image, files: &Files) -> anyhow::Result<Machine> {
        let directory = tempfile::Builder::new().prefix("machine-").tempdir()?;
        let archive = directory.path().join("files");
        files.archive(&archive)?;
        let taps = [(FIRST_SLOT, vpc.tap(&guest.primary)?)];
        let qemu = Qemu::start(vpc.fabric(), image, &archive, directory.path(), &taps)?;
        let agent = Agent::connect(&qemu.agent())?;
        let slots = BTreeMap::from([(guest.primary.clone(), FIRST_SLOT)]);
        let state = Mutex::new(State { qemu, agent, slots });
        let machine = Machine { guest, state, _directory: directory };
        machine.wait_booted()?;
        Ok(machine)
    }

    /// Runs a shell script as root; its standard output.
    ///
    /// # Errors
    /// When it fails; the error shows what it said.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        self.output(script)?.success()
    }

    /// Runs a shell script as root, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn output(&self, script: &str) -> anyhow::Result<Output> {
        self.state().agent.run(script, COMMAND)
    }

    /// Runs a shell script whose standard output is JSON, whatever its exit code.
    ///
    /// # Errors
    /// When it says something else.
    pub fn json(&self, script: &str) -> anyhow::Result<Value> {
        self.output(script)?.json()
    }

    /// Plugs an ENI in; the moment at which the machine had its adapter.
    ///
    /// # Errors
    /// When it is attached already or QEMU refuses it.
    pub fn plug(&self, vpc: &Vpc, eni: &EniId) -> anyhow::Result<Instant> {
        let tap = vpc.attach_tap(eni, &self.guest)?;
        let mut state = self.state();
        let free = |slot: &u8| state.slots.values().all(|taken| taken != slot);
        let slot = (FIRST_SLOT..0x1d).find(free).context("no free slot")?;
        let at = state.qemu.plug(slot, &tap)?;
        state.slots.insert(eni.clone(), slot);
        Ok(at)
    }

    /// Takes an ENI out: the machine lets go of it first, then metadata forgets it.
    ///
    /// # Errors
    /// When it is not plugged in or the machine keeps it.
    pub fn unplug(&self, vpc: &Vpc, eni: &EniId) -> anyhow::Result<()> {
        let mut state = self.state();
        let slot = state.slots.remove(eni).with_context(|| format!("{eni} is not plugged in"))?;
        state.qemu.unplug(slot)?;
        vpc.detach(eni)
    }

    /// The name that udev gives an ENI's link.
    ///
    /// # Errors
    /// When it is not plugged in.
    pub fn link_name(&self, eni: &EniId) -> anyhow::Result<String> {
        let slot = self.state().slots.get(eni).copied();
        Ok(format!("ens{}", slot.with_context(|| format!("{eni} is not plugged in"))?))
    }

    /// Starts it anew as an operator does, and waits until commands can be run again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&self) -> anyhow::Result<()> {
        let before = self.boot_id()?;
        self.state().agent.tell("guest-shutdown", &json!({ "mode": "reboot" }))?;
        let deadline = Instant::now() + BOOT;
        loop {
            self.wait_booted()?;
            if self.boot_id().is_ok_and(|now| now != before) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it does not go down\n{}", self.console());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How a systemd unit stands.
    ///
    /// # Errors
    /// When systemd does not say.
    pub fn unit(&self, name: &str) -> anyhow::Result<Unit> {
        let said = self.run(&format!(
            "systemctl show {name} -p ActiveState -p MainPID -p StatusText -p NRestarts"
        ))?;
        let property = |name: &str| {
            let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.with_context(|| format!("no {name} in {said}")).map(str::to_owned)
        };
        Ok(Unit {
            active: property("ActiveState")?,
            pid: property("MainPID")?.parse()?,
            status: property("StatusText")?,
            restarts: property("NRestarts")?.parse()?,
        })
    }

    /// The journal's entries of a unit since boot, oldest first.
    ///
    /// # Errors
    /// When journalctl fails.
    pub fn journal(&self, matches: &str) -> anyhow::Result<Vec<Value>> {
        let said = self.run(&format!("journalctl -b -o json --no-pager {matches}"))?;
        said.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// The end of what it wrote to its console.
    #[must_use]
    pub fn console(&self) -> String {
        let console = self.state().qemu.console();
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn boot_id(&self) -> anyhow::Result<String> {
        self.run("cat /proc/sys/kernel/random/boot_id")
    }

    fn wait_booted(&self) -> anyhow::Result<()> {
        let outcome = self.state().agent.wait(BOOT);
        outcome.with_context(|| format!("it does not boot\n{}", self.console()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scene for Machine {
    fn describe(&self) -> String {
        let mut text = format!("in {}:\n", self.guest.name);
        for line in [
            "ip -d addr",
            "ip rule; ip -6 rule",
            "ip route show table all",
            "systemctl --no-pager status enid",
            "journalctl -b --no-pager -n 60",
        ] {
            let said = match self.output(line) {
                Ok(output) => format!("{}{}", output.stdout, output.stderr),
                Err(error) => format!("{error:#}"),
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "--- {line}\n{said}");
        }
        let _ = write!(text, "--- console\n{}", self.console());
        text
    }
}
