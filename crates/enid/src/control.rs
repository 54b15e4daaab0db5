//! The control socket: takes requests of operators to the main loop and answers back.
//!
//! Every client is a task of its own with limits on size and time, so that one that is stuck, slow
//! or hostile holds up neither the others nor the main loop. The main loop gets one [`Call`] after
//! the other and never waits for a client.

mod door;
mod permission;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use enid_control::varlink::{CallFrame, FrameError, Frames, Method, ReplyFrame, encode};
use enid_control::{Refused, Reply, Request};
use nix::unistd::Uid;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::chronicle::Chronicle;
use door::{Door, Seat, Seats};
use permission::{Peer, is_member};

/// A request on its way to the main loop.
#[derive(Debug)]
pub struct Call {
    /// What is asked; whoever asks may.
    pub request: Request,
    /// Whether they might change anything, too.
    pub privileged: bool,
    /// Where the answer goes. It is closed when the client has gone: what waits for it may stop.
    pub reply: oneshot::Sender<Result<Reply, Refused>>,
}

/// What a client may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes of one request.
    request: usize,
    /// From one request to the next, and for a request to arrive whole.
    idle: Duration,
    /// For a reply to be taken.
    write: Duration,
    /// For the main loop to answer, beside what a request asks to wait.
    answer: Duration,
    /// Between two requests of all clients that may only read.
    pace: Duration,
}

impl Limits {
    const USUAL: Self = Self {
        request: 64 << 10,
        idle: Duration::from_secs(60),
        write: Duration::from_secs(5),
        answer: Duration::from_secs(10),
        pace: Duration::from_millis(20),
    };
}

/// How many calls wait for the main loop before clients do.
const QUEUE: usize = 8;

/// A client that may only read takes up the main loop for one part in ten at most.
const PAUSE: u32 = 9;

/// A slow answer is no reason to keep the next client that may only read waiting longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// After a failure to accept (no more descriptors, say): try again this much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// The open control socket. Dropping it closes and removes the socket and lets go of all clients.
#[derive(Debug)]
pub struct Server {
    calls: mpsc::Receiver<Call>,
    group: watch::Sender<Option<String>>,
    accepting: JoinHandle<()>,
    /// Gone last: until then no other daemon may open the socket.
    _door: Door,
}

/// Opens the control socket at `path`, whose directory must exist, and serves it in tasks of the
/// current runtime.
///
/// # Errors
///
/// [`io::ErrorKind::AddrInUse`] when another daemon answers there or something that is no socket
/// is in the place; else what the system says, with the path.
pub async fn serve(path: &Path, group: Option<String>, chronicle: Chronicle) -> io::Result<Server> {
    serve_within(path, group, chronicle, Limits::USUAL).await
}

async fn serve_within(
    path: &Path,
    group: Option<String>,
    chronicle: Chronicle,
    limits: Limits,
) -> io::Result<Server> {
    let (door, listener) = Door::open(path).await?;
    let (sender, calls) = mpsc::channel(QUEUE);
    let (group, groups) = watch::channel(group);
    let service = Arc::new(Service {
        calls: sender,
        limits,
        groups,
        chronicle,
        own: Uid::effective().as_raw(),
        next_reading: Mutex::new(Instant::now()),
    });
    Ok(Server { calls, group, accepting: tokio::spawn(accept(listener, service)), _door: door })
}

impl Server {
    /// From now on the members of this group may change something, beside root and the daemon's user.
    pub fn permit(&self, group: Option<&str>) {
        self.group.send_if_modified(|before| {
            let other = before.as_deref() != group;
            *before = group.map(str::to_owned);
            other
        });
    }

    /// The next call. May be cancelled without loss.
    pub async fn next(&mut self) -> Call {
        match self.calls.recv().await {
            Some(call) => call,
            // The accepting task ended, which only a panic in it does: the daemon goes on without.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What the clients' tasks share.
#[derive(Debug)]
struct Service {
    calls: mpsc::Sender<Call>,
    limits: Limits,
    /// The group whose members may change something.
    groups: watch::Receiver<Option<String>>,
    /// What happened, which is told without the main loop.
    chronicle: Chronicle,
    /// The daemon's user.
    own: u32,
    /// When the next request of a client that may only read is taken to the main loop.
    next_reading: Mutex<Instant>,
}

async fn accept(listener: UnixListener, service: Arc<Service>) {
    let seats = Seats::default();
    // Dropped with this task, and the clients' tasks with it.
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a client of the control socket");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        while clients.try_join_next().is_some() {}
        let peer = match stream.peer_cred() {
            Ok(peer) => Peer { uid: peer.uid(), gid: peer.gid() },
            Err(error) => {
                tracing::warn!(%error, "asking who a client of the control socket is");
                continue;
            }
        };
        match seats.take(peer.uid, peer.rules(service.own)) {
            Some(seat) => {
                let client = Client::new(stream, peer, Arc::clone(&service));
                clients.spawn(client.serve(seat));
            }
            None => turn_away(&stream),
        }
    }
}

/// Tells a client that there is no place for it, as far as that can be done without waiting.
fn turn_away(stream: &UnixStream) {
    let refused = Refused::Busy {
        message: "too many clients at the control socket: try again later".to_owned(),
    };
    if let Ok(bytes) = encode(&ReplyFrame::from(&refused)) {
        // A client that does not take it sees the connection end, which says enough.
        let _ = stream.try_write(&bytes);
    }
}

/// What a call gets.
enum Answer {
    Reply(serde_json::Value),
    /// What happened after the event of this number.
    Events {
        after: u64,
    },
}

fn members(group: Option<&str>) -> String {
    group.map_or_else(String::new, |group| format!(" and the members of the group {group}"))
}

fn written(reply: &Reply) -> Result<serde_json::Value, Refused> {
    reply
        .parameters()
        .map_err(|error| Refused::Failed { message: format!("writing the reply as JSON: {error}") })
}

/// Why a client's task ends; the client itself is told by the end of the connection.
struct Ended;

struct Client {
    frames: Frames<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    peer: Peer,
    service: Arc<Service>,
}

impl Client {
    fn new(stream: UnixStream, peer: Peer, service: Arc<Service>) -> Self {
        let (reader, writer) = stream.into_split();
        Self { frames: Frames::new(reader, service.limits.request), writer, peer, service }
    }

    async fn serve(mut self, _seat: Seat) {
        while let Ok(()) = self.serve_one().await {}
    }

    async fn serve_one(&mut self) -> Result<(), Ended> {
        let message = match timeout(self.service.limits.idle, self.frames.next()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Err(FrameError::TooLong { limit })) => {
                return self.malformed(format!("it is longer than {limit} bytes")).await;
            }
            Ok(Ok(None) | Err(FrameError::Truncated | FrameError::Read(_))) | Err(_) => {
                return Err(Ended);
            }
        };
        let call: CallFrame = match serde_json::from_slice(&message) {
            Ok(call) => call,
            Err(error) => return self.malformed(error.to_string()).await,
        };
        let (oneway, more) = (call.oneway, call.more && !call.oneway);
        let reply = match self.answer(call).await? {
            Ok(Answer::Reply(parameters)) => ReplyFrame::new(parameters),
            Ok(Answer::Events { after }) if more => return self.follow(after).await,
            Ok(Answer::Events { after }) => match self.events(after) {
                Ok(parameters) => ReplyFrame::new(parameters),
                Err(refused) => ReplyFrame::from(&refused),
            },
            Err(refused) => ReplyFrame::from(&refused),
        };
        if oneway {
            return Ok(());
        }
        self.write(&reply).await
    }

    /// Says what is wrong and ends: where the next message begins is anybody's guess.
    async fn malformed(&mut self, message: String) -> Result<(), Ended> {
        let refused = Refused::Malformed { message };
        self.write(&ReplyFrame::from(&refused)).await?;
        Err(Ended)
    }

    fn events(&self, after: u64) -> Result<serde_json::Value, Refused> {
        written(&Reply::Events(self.service.chronicle.after(after)))
    }

    /// Tells what happened and what happens, until the client goes.
    async fn follow(&mut self, mut after: u64) -> Result<(), Ended> {
        let mut last = self.service.chronicle.follow();
        loop {
            last.mark_unchanged();
            let events = self.service.chronicle.after(after);
            after = events.events.last().map_or(after, |event| event.number);
            let frame = match written(&Reply::Events(events)) {
                Ok(parameters) => ReplyFrame::one_of_many(parameters),
                Err(refused) => ReplyFrame::from(&refused),
            };
            self.write(&frame).await?;
            tokio::select! {
                changed = last.changed() => changed.map_err(|_| Ended)?,
                () = gone(&mut self.frames, &self.writer) => return Err(Ended),
            }
            // Many things happen in one pass.
            sleep(self.service.limits.pace).await;
        }
    }

    async fn answer(&mut self, call: CallFrame) -> Result<Result<Answer, Refused>, Ended> {
        let service = Arc::clone(&self.service);
        let privileged =
            self.peer.rules(service.own) || is_member(self.peer, &service.groups).await;
        // One reading client at a time, and a pause after it that grows with what it cost: whoever
        // may only read must not be able to keep the main loop busy.
        let mut turn = if privileged {
            None
        } else {
            let turn = service.next_reading.lock().await;
            sleep_until(*turn).await;
            Some(turn)
        };
        let started = Instant::now();
        let method = Method::of(call, env!("CARGO_PKG_VERSION"));
        // Who waits is not in the others' way, and costs the main loop nothing that counts.
        let waits = matches!(method, Ok(Method::Control(Request::Wait { .. })));
        if let Some(mut turn) = turn.take_if(|_| waits) {
            *turn = started + service.limits.pace;
        }
        let answer = match method {
            Err(refused) => Ok(Err(refused)),
            Ok(Method::Service(parameters)) => Ok(Ok(Answer::Reply(parameters))),
            Ok(Method::Control(Request::Events { after })) => Ok(Ok(Answer::Events { after })),
            Ok(Method::Control(request)) if request.changes() && !privileged => {
                Ok(Err(Refused::PermissionDenied {
                    message: format!(
                        "{} is for root, enid's own user{}, not for uid {}: use sudo",
                        request.name(),
                        members(service.groups.borrow().as_deref()),
                        self.peer.uid
                    ),
                }))
            }
            Ok(Method::Control(request)) => {
                let asked = self.ask_main_loop(request, privileged, privileged || waits).await;
                asked.map(|answer| answer.map(Answer::Reply))
            }
        };
        if let Some(turn) = &mut turn {
            let pause = (started.elapsed() * PAUSE).clamp(service.limits.pace, LONGEST_PAUSE);
            **turn = Instant::now() + pause;
        }
        answer
    }

    /// One that may only read is heard out even if it has gone: going must not buy the next turn
    /// while the main loop still works for this one.
    async fn ask_main_loop(
        &mut self,
        request: Request,
        privileged: bool,
        may_go: bool,
    ) -> Result<Result<serde_json::Value, Refused>, Ended> {
        let service = Arc::clone(&self.service);
        let busy = || Refused::Busy {
            message: "enid did not come to it in time: `journalctl -u enid` may say why".to_owned(),
        };
        let patience = match &request {
            Request::Refresh { wait: true, timeout } | Request::Wait { timeout, .. } => {
                *timeout + service.limits.answer
            }
            Request::Refresh { wait: false, .. }
            | Request::Status
            | Request::Plan
            | Request::Objects
            | Request::Explain { .. }
            | Request::Events { .. }
            | Request::Metrics
            | Request::Release { .. }
            | Request::Unhold { .. }
            | Request::Drop { .. }
            | Request::Hold { .. }
            | Request::Reload => service.limits.answer,
        };
        let (sender, receiver) = oneshot::channel();
        let call = Call { request, privileged, reply: sender };
        let exchange = async {
            // Only a daemon that stops closes either channel.
            service.calls.send(call).await.ok()?;
            receiver.await.ok()
        };
        tokio::select! {
            answer = timeout(patience, exchange) => Ok(match answer {
                Err(_) => Err(busy()),
                Ok(None) => Err(Refused::Busy { message: "enid is stopping".to_owned() }),
                Ok(Some(answer)) => answer.and_then(|reply| written(&reply)),
            }),
            () = gone(&mut self.frames, &self.writer), if may_go => Err(Ended),
        }
    }

    async fn write(&mut self, reply: &ReplyFrame) -> Result<(), Ended> {
        let bytes = encode(reply).map_err(|_| Ended)?;
        match timeout(self.service.limits.write, self.writer.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ended),
        }
    }
}

/// Returns when the client has closed the connection. One that only sends nothing more (`nc -N`)
/// still wants its reply.
async fn gone(frames: &mut Frames<OwnedReadHalf>, writer: &OwnedWriteHalf) {
    frames.ended().await;
    match writer.ready(Interest::WRITABLE).await {
        Ok(ready) if !ready.is_write_closed() => std::future::pending().await,
        Ok(_) | Err(_) => {}
    }
}
