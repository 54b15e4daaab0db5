//! Just enough HTTP: one request and one answer a connection.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// A request's first line and its headers, with names in lower case.
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// Reads up to the empty line; `None` where there is no request before the connection ends.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<Head> {
    let mut text = Vec::new();
    let mut chunk = [0; 2048];
    while !text.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await.ok()?;
        if count == 0 || text.len() > 64 * 1024 {
            return None;
        }
        text.extend_from_slice(&chunk[..count]);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let method = words.next()?.to_owned();
    let path = words.next()?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Head { method, path, headers })
}

/// An answer, to be sent after a while.
pub(crate) struct Answer {
    pub(crate) protocol: &'static str,
    pub(crate) delay: Duration,
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Bytes of the body that are really sent.
    pub(crate) sent: usize,
    /// Whether the body's length is told.
    pub(crate) measured: bool,
    /// Whether the connection is reset after what is sent.
    pub(crate) reset: bool,
    /// Where whoever asks is sent.
    pub(crate) location: Option<String>,
    /// Seconds that the token is good for.
    pub(crate) ttl: Option<u64>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: String) -> Answer {
        Answer {
            protocol: "HTTP/1.1",
            delay: Duration::ZERO,
            status,
            sent: body.len(),
            body,
            measured: true,
            reset: false,
            location: None,
            ttl: None,
        }
    }

    pub(crate) fn status(status: u16) -> Answer {
        Answer::new(status, format!("{status} - {}\n", reason(status)))
    }

    pub(crate) fn wire(&self) -> Vec<u8> {
        let ttl = match self.ttl {
            Some(seconds) => format!("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {seconds}\r\n"),
            None => String::new(),
        };
        let length = if self.measured {
            format!("Content-Length: {}\r\n", self.body.len())
        } else {
            String::new()
        };
        let location = match &self.location {
            Some(location) => format!("Location: {location}\r\n"),
            None => String::new(),
        };
        let head = format!(
            "{} {} {}\r\nContent-Type: text/plain\r\n{length}{location}{ttl}\
             Connection: close\r\nServer: EC2ws\r\n\r\n",
            self.protocol,
            self.status,
            reason(self.status),
        );
        let mut wire = head.into_bytes();
        wire.extend_from_slice(&self.body.as_bytes()[..self.sent.min(self.body.len())]);
        wire
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
