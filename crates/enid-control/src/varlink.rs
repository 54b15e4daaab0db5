//! Varlink on the wire: JSON objects that end in a NUL byte, and the interface that every service
//! has.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::refused::Refused;
use crate::request::{Parameters, Request, invalid};

/// The interface of enid.
pub const INTERFACE: &str = "io.enid.Control";

/// The description of [`INTERFACE`] in Varlink's own language.
pub const DESCRIPTION: &str = include_str!("io.enid.Control.varlink");

/// The interface that every Varlink service has.
pub const SERVICE: &str = "org.varlink.service";

/// The description of [`SERVICE`], as `https://varlink.org/Service` defines it.
const SERVICE_DESCRIPTION: &str = "\
# The interface that every Varlink service has: it tells what the service is and offers.
interface org.varlink.service

method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()

error ExpectedMore ()
";

/// A call as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallFrame {
    /// Interface and method: `io.enid.Control.Status`.
    pub method: String,
    /// The parameters by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
    /// No reply is wanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// Several replies are welcome; [`Request::Events`] has them, everything else sends one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The connection shall carry another protocol afterwards; enid has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade: bool,
}

/// A reply as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyFrame {
    /// The error's full name; none when it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the method or the error gives, by name.
    #[serde(default)]
    pub parameters: Option<Value>,
    /// More replies follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

impl ReplyFrame {
    /// The only reply, or the last, that gives these parameters.
    #[must_use]
    pub const fn new(parameters: Value) -> Self {
        Self { error: None, parameters: Some(parameters), continues: false }
    }

    /// One of several replies.
    #[must_use]
    pub const fn one_of_many(parameters: Value) -> Self {
        Self { error: None, parameters: Some(parameters), continues: true }
    }
}

impl From<&Refused> for ReplyFrame {
    fn from(refused: &Refused) -> Self {
        let (error, parameters) = refused.to_wire();
        Self { error: Some(error), parameters: Some(parameters), continues: false }
    }
}

/// A call that was understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// A question about the service itself, and the parameters of its reply.
    Service(Value),
    /// A request to the daemon.
    Control(Request),
}

impl Method {
    /// Understands a call; `version` is the daemon's.
    pub fn of(call: CallFrame, version: &str) -> Result<Self, Refused> {
        if call.upgrade {
            return Err(Refused::MethodNotImplemented { method: call.method });
        }
        let parameters = call.parameters.unwrap_or_default();
        match call.method.rsplit_once('.') {
            Some((INTERFACE, method)) => Request::from_wire(method, parameters).map(Self::Control),
            Some((SERVICE, "GetInfo")) => {
                Parameters(parameters).finish()?;
                Ok(Self::Service(json!({
                    "vendor": "The enid project",
                    "product": "enid",
                    "version": version,
                    "url": env!("CARGO_PKG_REPOSITORY"),
                    "interfaces": [INTERFACE, SERVICE],
                })))
            }
            Some((SERVICE, "GetInterfaceDescription")) => {
                let mut parameters = Parameters(parameters);
                let interface = parameters.text("interface")?;
                parameters.finish()?;
                description(interface).map(Self::Service)
            }
            Some((SERVICE, _)) => Err(Refused::MethodNotFound { method: call.method }),
            Some((interface, _)) => {
                Err(Refused::InterfaceNotFound { interface: interface.to_owned() })
            }
            None => Err(Refused::MethodNotFound { method: call.method }),
        }
    }
}

fn description(interface: Option<String>) -> Result<Value, Refused> {
    let interface = interface.ok_or_else(|| invalid("interface"))?;
    match interface.as_str() {
        INTERFACE => Ok(json!({ "description": DESCRIPTION })),
        SERVICE => Ok(json!({ "description": SERVICE_DESCRIPTION })),
        _ => Err(Refused::InterfaceNotFound { interface }),
    }
}

/// A message as bytes, with the NUL that ends it; JSON never holds one.
pub fn encode(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    Ok(bytes)
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A message is longer than allowed.
    #[error("a message is longer than {limit} bytes")]
    TooLong {
        /// What is allowed.
        limit: usize,
    },
    /// The connection ended in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Truncated,
    /// Reading failed.
    #[error("reading from the connection")]
    Read(#[source] io::Error),
}

/// Messages out of a stream of bytes. Every method may be cancelled without loss.
#[derive(Debug)]
pub struct Frames<R> {
    reader: R,
    buffer: Vec<u8>,
    /// No NUL is before this place of the buffer.
    scanned: usize,
    limit: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Reads messages of at most `limit` bytes.
    pub const fn new(reader: R, limit: usize) -> Self {
        Self { reader, buffer: Vec::new(), scanned: 0, limit, ended: false }
    }

    /// The next message without its NUL, or none when the stream has ended.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == 0) {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut message = std::mem::replace(&mut self.buffer, rest);
                message.pop();
                self.scanned = 0;
                return if message.len() > self.limit {
                    Err(FrameError::TooLong { limit: self.limit })
                } else {
                    Ok(Some(message))
                };
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > self.limit {
                return Err(FrameError::TooLong { limit: self.limit });
            }
            if self.ended {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
            self.fill().await?;
        }
    }

    /// Returns when the stream has ended. What comes meanwhile is kept for [`Frames::next`], up to
    /// one message's limit; past it, the end is not seen any more.
    pub async fn ended(&mut self) {
        while !self.ended {
            if self.buffer.len() > self.limit {
                std::future::pending::<()>().await;
            }
            if self.fill().await.is_err() {
                self.ended = true;
            }
        }
    }

    async fn fill(&mut self) -> Result<(), FrameError> {
        let mut chunk = [0; 4096];
        let n = self.reader.read(&mut chunk).await.map_err(FrameError::Read)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        self.ended = n == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn messages_come_out_one_by_one() {
        block_on(async {
            let mut frames = Frames::new(&b"one\0two\0\0thr"[..], 5);
            assert_eq!(frames.next().await.unwrap().unwrap(), b"one");
            assert_eq!(frames.next().await.unwrap().unwrap(), b"two");
            assert_eq!(frames.next().await.unwrap().unwrap(), b"");
            assert!(matches!(frames.next().await, Err(FrameError::Truncated)));
        });
    }

    #[test]
    fn a_message_is_too_long_with_and_without_its_end() {
        block_on(async {
            for bytes in [&b"123456\0"[..], b"123456"] {
                let mut frames = Frames::new(bytes, 5);
                assert!(matches!(frames.next().await, Err(FrameError::TooLong { limit: 5 })));
            }
            let mut frames = Frames::new(&b"12345\0"[..], 5);
            assert_eq!(frames.next().await.unwrap().unwrap(), b"12345");
        });
    }

    #[test]
    fn what_comes_while_waiting_for_the_end_is_kept() {
        block_on(async {
            let mut frames = Frames::new(&b"one\0"[..], 5);
            frames.ended().await;
            assert_eq!(frames.next().await.unwrap().unwrap(), b"one");
            assert_eq!(frames.next().await.unwrap(), None);
        });
    }

    #[test]
    fn the_description_names_every_method_type_and_error() {
        for line in [
            "interface io.enid.Control",
            "method Status() -> (status: InstanceStatus)",
            "method Plan() -> (plan: PassPlan)",
            "method Refresh(wait: ?bool, timeout_seconds: ?int) -> (",
            "method Release(eni: ?string, all: ?bool) -> (enis: []string)",
            "method Unhold(eni: ?string, all: ?bool) -> (enis: []string)",
            "method Drop(address: string) -> (enis: []string)",
        ] {
            assert!(DESCRIPTION.lines().any(|l| l == line), "{line}");
        }
    }
}
