//! JSON values, one a line, over a local socket: what QEMU and its guest agent both speak.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// A connection on which each line is a value.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: BufReader<UnixStream>,
    /// A line that has not ended yet.
    begun: Vec<u8>,
}

impl Lines {
    /// Connects as soon as somebody listens.
    ///
    /// # Errors
    /// When nobody does within ten seconds.
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Lines> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    return Ok(Lines { stream: BufReader::new(stream), begun: Vec::new() });
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).with_context(|| format!("connecting {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub(crate) fn send(&mut self, value: &Value) -> anyhow::Result<()> {
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        // In one piece: each piece takes room until it is read, and the agent reads late.
        let line = format!("{value}\n");
        stream.write_all(line.as_bytes()).with_context(|| format!("sending {value}"))
    }

    /// The next value; none when `deadline` comes first.
    pub(crate) fn receive(&mut self, deadline: Instant) -> anyhow::Result<Option<Value>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            match self.stream.read_until(b'\n', &mut self.begun) {
                Ok(0) => bail!("the other side has closed the connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("receiving"),
            }
            ensure!(self.begun.ends_with(b"\n"), "the connection ended within a line");
            let line = std::mem::take(&mut self.begun);
            // The agent's answers after a reset may be marked by a byte that no JSON has.
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
            let value = serde_json::from_slice(&line);
            return value.with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&line)));
        }
    }
}
