//! A metadata service on loopback that misbehaves on request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it arrived; header names in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn is_token(&self) -> bool {
        self.method == "PUT"
    }

    pub(crate) fn ends_with(&self, path: &str) -> bool {
        self.target.ends_with(path)
    }
}

/// What to do with a request.
pub(crate) enum Act {
    /// As a well-behaved service would.
    Obey,
    /// Answer whoever asks, token or not.
    Tell,
    /// Send these bytes and close.
    Raw(Vec<u8>),
    /// Obey later.
    Late(Duration),
    /// Never answer, keep the connection.
    Silence,
}

impl Act {
    pub(crate) fn status(status: u16) -> Self {
        Self::Raw(answer(status, "", ""))
    }
}

/// An answer with its length.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}")
        .into_bytes()
}

type Script = Box<dyn FnMut(&Seen) -> Act + Send>;

struct State {
    tree: BTreeMap<String, String>,
    tokens: Vec<String>,
    life: u32,
    seen: Vec<Seen>,
    at_once: usize,
    most_at_once: usize,
    script: Script,
}

/// The service; lives as long as the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            tree: BTreeMap::new(),
            tokens: Vec::new(),
            life: 21_600,
            seen: Vec::new(),
            at_once: 0,
            most_at_once: 0,
            script: Box::new(|_| Act::Obey),
        }));
        let server = Self { endpoint, state };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    /// What is at a path under `latest/meta-data/`.
    pub(crate) fn put(&self, path: &str, text: &str) {
        self.with(|state| state.tree.insert(path.to_owned(), text.to_owned()));
    }

    pub(crate) fn script(&self, script: impl FnMut(&Seen) -> Act + Send + 'static) {
        self.with(|state| state.script = Box::new(script));
    }

    pub(crate) fn token_life(&self, seconds: u32) {
        self.with(|state| state.life = seconds);
    }

    pub(crate) fn expire_tokens(&self) {
        self.with(|state| state.tokens.clear());
    }

    /// The requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.with(|state| std::mem::take(&mut state.seen))
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.with(|state| state.most_at_once)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    async fn serve(self, mut stream: TcpStream) {
        let Some(seen) = receive(&mut stream).await else {
            return;
        };
        let act = self.with(|state| {
            state.at_once += 1;
            state.most_at_once = state.most_at_once.max(state.at_once);
            state.seen.push(seen.clone());
            (state.script)(&seen)
        });
        let bytes = match act {
            Act::Obey => self.with(|state| state.obey(&seen)),
            Act::Tell => self.with(|state| state.tell(&seen, "")),
            Act::Raw(bytes) => bytes,
            Act::Late(time) => {
                tokio::time::sleep(time).await;
                self.with(|state| state.obey(&seen))
            }
            Act::Silence => {
                // Ends when the client gives up.
                let _ = stream.read(&mut [0]).await;
                Vec::new()
            }
        };
        self.with(|state| state.at_once -= 1);
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    }
}

impl State {
    fn obey(&mut self, seen: &Seen) -> Vec<u8> {
        let life = format!("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {}\r\n", self.life);
        if seen.is_token() {
            let token = format!("SECRET{}", self.tokens.len() + self.seen.len());
            self.tokens.push(token.clone());
            return answer(200, &life, &token);
        }
        match seen.headers.get("x-aws-ec2-metadata-token") {
            Some(token) if self.tokens.contains(token) => {}
            Some(_) | None => return answer(401, "", ""),
        }
        self.tell(seen, &life)
    }

    fn tell(&self, seen: &Seen, headers: &str) -> Vec<u8> {
        let path = seen.target.strip_prefix("/latest/meta-data/");
        match path.and_then(|path| self.tree.get(path)) {
            Some(text) => answer(200, headers, text),
            None => answer(404, "", "not found"),
        }
    }
}

async fn receive(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let mut request = lines.next()?.split(' ');
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Some(Seen { method: request.next()?.to_owned(), target: request.next()?.to_owned(), headers })
}
