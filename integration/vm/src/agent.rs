//! Commands inside a machine, run by QEMU's guest agent: they work whatever the network does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vpc::Output;

use crate::lines::Lines;

/// How long it is not asked again whether a command has ended, at first and at last: each question
/// costs the machine time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));

/// The agent of a machine that runs.
#[derive(Debug)]
pub(crate) struct Agent {
    lines: Lines,
    /// The last number that was used to find the answers' beginning.
    mark: u64,
}

impl Agent {
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Agent> {
        Ok(Agent { lines: Lines::connect(path)?, mark: 0 })
    }

    /// Waits until the agent answers, at boot or after a reboot.
    pub(crate) fn wait(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            self.mark += 1;
            self.lines
                .send(&json!({ "execute": "guest-sync", "arguments": { "id": self.mark } }))?;
            let patience = Instant::now() + Duration::from_secs(2);
            // Answers to what was asked before a reset may come first.
            while let Some(said) = self.lines.receive(patience)? {
                if said["return"] == self.mark {
                    return Ok(());
                }
            }
        }
        bail!("the guest agent does not answer within {timeout:?}")
    }

    /// Runs a shell script as root and waits for its end.
    pub(crate) fn run(&mut self, script: &str, timeout: Duration) -> anyhow::Result<Output> {
        let deadline = Instant::now() + timeout;
        let started = self.ask(
            "guest-exec",
            &json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true }),
        )?;
        let pid = started["pid"].as_i64().context("the agent names no process")?;
        let mut pause = PAUSE.0;
        loop {
            let status = self.ask("guest-exec-status", &json!({ "pid": pid }))?;
            if status["exited"] == true {
                return Ok(Output {
                    command: script.to_owned(),
                    code: status["exitcode"].as_i64().and_then(|code| i32::try_from(code).ok()),
                    stdout: decoded(&status["out-data"])?,
                    stderr: decoded(&status["err-data"])?,
                });
            }
            ensure!(Instant::now() < deadline, "not ended within {timeout:?}: {script}");
            std::thread::sleep(pause);
            pause = PAUSE.1.min(pause * 2);
        }
    }

    /// Asks for something that is not answered: the machine goes down meanwhile.
    pub(crate) fn tell(&mut self, command: &str, arguments: &Value) -> anyhow::Result<()> {
        self.lines.send(&json!({ "execute": command, "arguments": arguments }))
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.tell(command, arguments)?;
        let patience = Duration::from_secs(60);
        let Some(mut said) = self.lines.receive(Instant::now() + patience)? else {
            bail!("the guest agent does not answer {command} within {patience:?}")
        };
        if let Some(error) = said.get("error") {
            bail!("the guest agent refuses {command} {arguments}: {error}");
        }
        Ok(said["return"].take())
    }
}

fn decoded(data: &Value) -> anyhow::Result<String> {
    let bytes = STANDARD.decode(data.as_str().unwrap_or_default()).context("no base64")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
