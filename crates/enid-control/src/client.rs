//! A client of the control socket: one call at a time, each with a time limit.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use crate::SCHEMA;
use crate::events::Events;
use crate::explain::Explanation;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::plan::Plan;
use crate::refused::Refused;
use crate::request::{Affected, Awaited, Refreshed, Reloaded, Request, Target, Waited};
use crate::status::Status;
use crate::varlink::{CallFrame, FrameError, Frames, INTERFACE, ReplyFrame, encode};

/// Longer replies are refused; a status of 24 ENIs with 64 addresses each has about 200 KiB.
const LONGEST_REPLY: usize = 16 << 20;

/// How long a connection and a call may take; the daemon gives up a little earlier.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often to knock while the daemon's queue of connections is full.
const KNOCK: Duration = Duration::from_millis(50);

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no enid answers at {}: is it running? (`systemctl status enid`)", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// `ENOENT` or `ECONNREFUSED`.
        source: io::Error,
    },
    /// The socket may not be used.
    #[error("no permission to connect to {}: run this as root, or check the directory's mode", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
        /// `EACCES` or `EPERM`.
        source: io::Error,
    },
    /// Connecting failed in another way.
    #[error("connecting to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// No answer in time.
    #[error("enid at {} did not answer within {} s: `journalctl -u enid` may say why", path.display(), after.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to enid broke: did it restart? Try again")]
    Broken {
        /// What failed.
        source: Option<FrameError>,
    },
    /// The answer is no Varlink reply that this version understands.
    #[error(
        "enid's answer is not understood: does something else listen at the socket, or do enictl and enid differ in version?"
    )]
    NotUnderstood {
        /// What is wrong with it.
        source: Option<serde_json::Error>,
    },
    /// The answer has a schema that this version does not know.
    #[error(
        "enid speaks schema {theirs}, this program knows {SCHEMA}: install the same version of both"
    )]
    Schema {
        /// The daemon's.
        theirs: u64,
    },
    /// The daemon said no.
    #[error(transparent)]
    Refused(Refused),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = timeout(PATIENCE, knock(path))
            .await
            .map_err(|_| ClientError::Timeout { path: path.to_owned(), after: PATIENCE })?
            .map_err(|source| {
                let path = path.to_owned();
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) {
                    ClientError::NoDaemon { path, source }
                } else if source.kind() == io::ErrorKind::PermissionDenied {
                    ClientError::Permission { path, source }
                } else {
                    ClientError::Connect { path, source }
                }
            })?;
        let (reader, writer) = stream.into_split();
        Ok(Self { path: path.to_owned(), frames: Frames::new(reader, LONGEST_REPLY), writer })
    }

    /// How it stands.
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        #[derive(Deserialize)]
        struct Parameters {
            status: Status,
        }
        let parameters = self.call(&Request::Status, PATIENCE).await?;
        check_schema(&parameters, "status")?;
        understand::<Parameters>(parameters).map(|p| p.status)
    }

    /// What the next pass would do.
    pub async fn plan(&mut self) -> Result<Plan, ClientError> {
        #[derive(Deserialize)]
        struct Parameters {
            plan: Plan,
        }
        let parameters = self.call(&Request::Plan, PATIENCE).await?;
        check_schema(&parameters, "plan")?;
        understand::<Parameters>(parameters).map(|p| p.plan)
    }

    /// What must be and what is, object by object.
    pub async fn objects(&mut self) -> Result<Objects, ClientError> {
        let parameters = self.call(&Request::Objects, PATIENCE).await?;
        check_schema_of(&parameters)?;
        understand(parameters)
    }

    /// What is known of an address, an ENI or a rule.
    pub async fn explain(&mut self, what: String) -> Result<Explanation, ClientError> {
        let parameters = self.call(&Request::Explain { what }, PATIENCE).await?;
        check_schema_of(&parameters)?;
        understand(parameters)
    }

    /// Reads metadata now; with `wait` until a pass after the reading has converged or `timeout`
    /// (whole seconds) is over.
    pub async fn refresh(
        &mut self,
        wait: bool,
        timeout: Duration,
    ) -> Result<Refreshed, ClientError> {
        let patience = if wait { timeout + PATIENCE } else { PATIENCE };
        let request = Request::Refresh { wait, timeout };
        self.call(&request, patience).await.and_then(understand)
    }

    /// Removes what enid made for an ENI and leaves it alone from then on.
    pub async fn release(&mut self, target: Target) -> Result<Affected, ClientError> {
        let request = Request::Release { target };
        self.call(&request, PATIENCE).await.and_then(understand)
    }

    /// Ends that, and a hold.
    pub async fn unhold(&mut self, target: Target) -> Result<Affected, ClientError> {
        let request = Request::Unhold { target };
        self.call(&request, PATIENCE).await.and_then(understand)
    }

    /// Removes an address if a fresh complete reading lacks it.
    pub async fn drop(&mut self, address: IpAddr) -> Result<Affected, ClientError> {
        let request = Request::Drop { address };
        self.call(&request, PATIENCE).await.and_then(understand)
    }

    /// Leaves an ENI as it is, for `time` (whole seconds) or until [`Client::unhold`].
    pub async fn hold(
        &mut self,
        eni: String,
        time: Option<Duration>,
        reason: String,
    ) -> Result<Affected, ClientError> {
        let request = Request::Hold { eni, time, reason };
        self.call(&request, PATIENCE).await.and_then(understand)
    }

    /// Waits until something has come about or `timeout` (whole seconds) is over.
    pub async fn wait(&mut self, what: Awaited, timeout: Duration) -> Result<Waited, ClientError> {
        let request = Request::Wait { what, timeout };
        self.call(&request, timeout + PATIENCE).await.and_then(understand)
    }

    /// Reads the configuration again.
    pub async fn reload(&mut self) -> Result<Reloaded, ClientError> {
        self.call(&Request::Reload, PATIENCE).await.and_then(understand)
    }

    /// What the daemon counts and measures.
    pub async fn metrics(&mut self) -> Result<Metrics, ClientError> {
        let parameters = self.call(&Request::Metrics, PATIENCE).await?;
        check_schema_of(&parameters)?;
        understand(parameters)
    }

    /// What happened after the event of this number.
    pub async fn events(&mut self, after: u64) -> Result<Events, ClientError> {
        let parameters = self.call(&Request::Events { after }, PATIENCE).await?;
        check_schema_of(&parameters)?;
        understand(parameters)
    }

    /// The same, and from then on what happens: [`Client::next_events`] has it.
    pub async fn follow_events(&mut self, after: u64) -> Result<(), ClientError> {
        let request = Request::Events { after };
        let bytes = frame(&request, true)?;
        self.writer
            .write_all(&bytes)
            .await
            .map_err(|error| ClientError::Broken { source: Some(FrameError::Read(error)) })
    }

    /// The next events after [`Client::follow_events`]. May be cancelled without loss.
    pub async fn next_events(&mut self) -> Result<Events, ClientError> {
        let message = self.frames.next().await;
        let message = message.map_err(|error| ClientError::Broken { source: Some(error) })?;
        let message = message.ok_or(ClientError::Broken { source: None })?;
        let parameters = parameters(&message)?;
        check_schema_of(&parameters)?;
        understand(parameters)
    }

    async fn call(&mut self, request: &Request, patience: Duration) -> Result<Value, ClientError> {
        timeout(patience, self.exchange(request)).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout { path: self.path.clone(), after: patience })
        })
    }

    async fn exchange(&mut self, request: &Request) -> Result<Value, ClientError> {
        let bytes = frame(request, false)?;
        let written = self.writer.write_all(&bytes).await;
        // A daemon that has no place for one more client says so and hangs up before it reads:
        // its word counts more than the broken pipe.
        let message = match (self.frames.next().await, written) {
            (Ok(Some(message)), _) => message,
            (Ok(None), Ok(())) => return Err(ClientError::Broken { source: None }),
            (Ok(None), Err(error)) => {
                return Err(ClientError::Broken { source: Some(FrameError::Read(error)) });
            }
            (Err(error), _) => {
                return Err(ClientError::Broken { source: Some(error) });
            }
        };
        parameters(&message)
    }
}

fn frame(request: &Request, more: bool) -> Result<Vec<u8>, ClientError> {
    let parameters = request.parameters();
    encode(&CallFrame {
        method: format!("{INTERFACE}.{}", request.name()),
        parameters: parameters.as_object().cloned(),
        oneway: false,
        more,
        upgrade: false,
    })
    .map_err(not_understood)
}

/// What a reply gives, or why there is nothing.
fn parameters(message: &[u8]) -> Result<Value, ClientError> {
    let reply: ReplyFrame = serde_json::from_slice(message).map_err(not_understood)?;
    let parameters = reply.parameters.unwrap_or_default();
    match reply.error {
        None => Ok(parameters),
        Some(error) => Err(ClientError::Refused(Refused::from_wire(&error, parameters))),
    }
}

/// Connects, also where the queue of connections is full for a moment: a socket that does not
/// block answers `EAGAIN` then.
async fn knock(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(KNOCK).await,
            result => return result,
        }
    }
}

fn check_schema(parameters: &Value, what: &str) -> Result<(), ClientError> {
    check_schema_of(parameters.get(what).unwrap_or_default())
}

fn check_schema_of(value: &Value) -> Result<(), ClientError> {
    match value.get("schema").and_then(Value::as_u64) {
        None => Err(ClientError::NotUnderstood { source: None }),
        Some(theirs) if theirs == u64::from(SCHEMA) => Ok(()),
        Some(theirs) => Err(ClientError::Schema { theirs }),
    }
}

fn understand<T: DeserializeOwned>(parameters: Value) -> Result<T, ClientError> {
    serde_json::from_value(parameters).map_err(not_understood)
}

fn not_understood(error: serde_json::Error) -> ClientError {
    ClientError::NotUnderstood { source: Some(error) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_schema_is_told_before_anything_else_is_read() {
        let parameters = json!({ "status": { "schema": 2, "verdict": "splendid" } });
        assert!(matches!(
            check_schema(&parameters, "status"),
            Err(ClientError::Schema { theirs: 2 })
        ));
        assert!(matches!(
            check_schema(&json!({}), "status"),
            Err(ClientError::NotUnderstood { source: None })
        ));
    }
}
