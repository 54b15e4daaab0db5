//! The server: tokens, views, faults, and a log of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::fault::{Action, Fault, FaultId};
use crate::flavour::Flavour;
use crate::http::{Answer, Head, read_head};
use crate::lock;
use crate::model::{Eni, EniId, InstanceId, Model, State};
use crate::tree::{Tree, directory};

/// A request that was received, and how it was answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its header had arrived.
    pub at: Instant,
    /// Who asked, as far as the source address tells.
    pub instance: Option<InstanceId>,
    /// Where from.
    pub peer: SocketAddr,
    /// `GET`, `PUT`, …
    pub method: String,
    /// The path as it was asked for.
    pub path: String,
    /// The answer's status; `None` where none was sent.
    pub status: Option<u16>,
}

/// A running metadata service; dropping it closes its sockets.
pub struct Server {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    model: Model,
    fallback: Option<InstanceId>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    v1: bool,
    compressed: bool,
    flavour: Flavour,
    tokens: BTreeMap<String, Token>,
    issued: u64,
    faults: BTreeMap<FaultId, Fault>,
    next_fault: u64,
    views: BTreeMap<EniId, View>,
    frozen: BTreeMap<InstanceId, Arc<Tree>>,
    /// Trees by the model's generation they were rendered from.
    rendered: BTreeMap<InstanceId, (u64, Arc<Tree>)>,
    log: Vec<Request>,
}

struct Token {
    instance: Option<InstanceId>,
    expires: Instant,
}

/// How much of an ENI is told so far.
#[derive(Clone, Default)]
struct View {
    hidden: bool,
    hidden_until: Option<Instant>,
    keys: Option<BTreeSet<String>>,
    omitted: BTreeSet<String>,
    device_zero: bool,
}

impl Server {
    /// Serves the model on listeners that were bound wherever the caller wants them.
    ///
    /// Who asks is told by the source address: the instance with an ENI that owns it, else
    /// `fallback`, else nobody, who gets 404 for everything.
    ///
    /// # Errors
    /// When the sockets or the thread cannot be set up.
    pub fn start(
        model: Model,
        listeners: Vec<TcpListener>,
        fallback: Option<InstanceId>,
    ) -> anyhow::Result<Server> {
        let shared = Arc::new(Shared { model, fallback, inner: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot build the runtime of the metadata service")?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let listeners = {
            let _guard = runtime.enter();
            listeners
                .into_iter()
                .map(|listener| {
                    listener.set_nonblocking(true)?;
                    tokio::net::TcpListener::from_std(listener)
                })
                .collect::<Result<Vec<_>, _>>()
                .context("cannot use the listeners of the metadata service")?
        };
        let thread = std::thread::Builder::new()
            .name("imds".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    for listener in listeners {
                        tokio::spawn(accept(listener, Arc::clone(&serving)));
                    }
                    // An error means that the server was dropped: the same as a stop.
                    let _ = stopped.await;
                });
            })
            .context("cannot start the thread of the metadata service")?;
        Ok(Server { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// The model that is served.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.shared.model
    }

    /// Whether requests without a token are answered (IMDSv1). Off at first.
    pub fn set_v1(&self, allowed: bool) {
        lock(&self.shared.inner).v1 = allowed;
    }

    /// Whether IPv6 networks are written without `::`, as the real service often does. On at first.
    pub fn set_uncompressed(&self, uncompressed: bool) {
        let mut inner = lock(&self.shared.inner);
        inner.compressed = !uncompressed;
        inner.rendered.clear();
    }

    /// Makes this another cloud's service; EC2's at first.
    pub fn set_flavour(&self, flavour: Flavour) {
        let mut inner = lock(&self.shared.inner);
        inner.flavour = flavour;
        inner.rendered.clear();
    }

    /// Makes every token issued so far invalid.
    pub fn expire_tokens(&self) {
        lock(&self.shared.inner).tokens.clear();
    }

    /// Sets a fault. Of several that strike one request, the first set decides.
    pub fn fault(&self, fault: Fault) -> FaultId {
        let mut inner = lock(&self.shared.inner);
        inner.next_fault += 1;
        let id = FaultId(inner.next_fault);
        inner.faults.insert(id, fault);
        id
    }

    /// Takes a fault back.
    pub fn clear(&self, fault: FaultId) {
        lock(&self.shared.inner).faults.remove(&fault);
    }

    /// Takes all faults back; views stay.
    pub fn clear_all(&self) {
        lock(&self.shared.inner).faults.clear();
    }

    /// What an instance is told now, to tell it later, or to somebody else: see [`Action::View`].
    #[must_use]
    pub fn view(&self, instance: &InstanceId) -> Option<Arc<Tree>> {
        self.shared.tree(instance)
    }

    /// Keeps telling this instance what is true now, until [`Server::thaw`].
    pub fn freeze(&self, instance: &InstanceId) {
        if let Some(tree) = self.shared.tree(instance) {
            lock(&self.shared.inner).frozen.insert(instance.clone(), tree);
        }
    }

    /// Tells an instance the truth again.
    pub fn thaw(&self, instance: &InstanceId) {
        lock(&self.shared.inner).frozen.remove(instance);
    }

    /// Lists an ENI nowhere until [`Server::reveal`]; may be said before it is attached.
    pub fn hide(&self, eni: &EniId) {
        self.change_view(eni, |view| view.hidden = true);
    }

    /// Lists an ENI nowhere for that long.
    pub fn hide_for(&self, eni: &EniId, duration: Duration) {
        self.change_view(eni, |view| view.hidden_until = Some(Instant::now() + duration));
    }

    /// Tells of this ENI only these keys (`ipv4-associations` for that directory).
    pub fn only_keys(&self, eni: &EniId, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.change_view(eni, |view| view.keys = Some(keys));
    }

    /// Tells everything of this ENI but these keys: `network-card` comes late, for example.
    pub fn omit(&self, eni: &EniId, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.change_view(eni, |view| view.omitted = keys);
    }

    /// Tells `device-number` 0 whatever it is, as the real service does for a while.
    pub fn device_zero(&self, eni: &EniId) {
        self.change_view(eni, |view| view.device_zero = true);
    }

    /// Tells everything about this ENI again.
    pub fn reveal(&self, eni: &EniId) {
        self.change_view(eni, |view| *view = View::default());
    }

    /// All requests so far, in the order in which they were answered or dropped.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.inner).log.clone()
    }

    /// The requests that an instance made for paths that match (see [`Fault::on`]).
    #[must_use]
    pub fn requests_of(&self, instance: &InstanceId, pattern: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| {
            request.instance.as_ref() == Some(instance)
                && crate::fault::matches(pattern, request.path.trim_end_matches('/'))
        });
        requests
    }

    /// Takes all requests so far out of the log.
    #[must_use]
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.shared.inner).log)
    }

    /// Empties the log.
    pub fn forget_requests(&self) {
        lock(&self.shared.inner).log.clear();
    }

    fn change_view(&self, eni: &EniId, change: impl FnOnce(&mut View)) {
        let mut inner = lock(&self.shared.inner);
        change(inner.views.entry(eni.clone()).or_default());
        inner.rendered.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(serve(stream, peer, Arc::clone(&shared)));
            }
            // A connection that died in the queue, or no descriptors left: the next one counts.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// One connection: one request, one answer.
async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    // The peer going away is its business.
    let _ = stream.set_nodelay(true);
    let Some(head) = read_head(&mut stream).await else {
        return;
    };
    let at = Instant::now();
    let answer = shared.answer(&head, peer);
    let mut request = Request {
        at,
        instance: shared.who(peer.ip()),
        peer,
        method: head.method,
        path: head.path,
        status: answer.as_ref().ok().map(|answer| answer.status),
    };
    match answer {
        Ok(answer) => {
            if !answer.delay.is_zero() {
                tokio::time::sleep(answer.delay).await;
            }
            // Logged before it is sent: whoever has the answer finds it in the log.
            lock(&shared.inner).log.push(request);
            let _ = stream.write_all(&answer.wire()).await;
            if answer.reset {
                // What was sent shall arrive first.
                tokio::time::sleep(Duration::from_millis(5)).await;
                let _ = stream.set_zero_linger();
                return;
            }
            let _ = stream.shutdown().await;
        }
        Err(drop_it) => {
            request.status = None;
            lock(&shared.inner).log.push(request);
            match drop_it {
                Unanswered::Close => {}
                Unanswered::Silence => {
                    // Until the client gives up.
                    let _ = stream.read(&mut [0; 64]).await;
                }
                Unanswered::Raw(bytes) => {
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                }
                Unanswered::Endless { head, piece, pause } => {
                    let mut sent = stream.write_all(&head).await;
                    while sent.is_ok() {
                        tokio::time::sleep(pause).await;
                        sent = stream.write_all(&piece).await;
                    }
                }
            }
        }
    }
}

/// What the client gets instead of an answer.
enum Unanswered {
    Silence,
    Close,
    Raw(Vec<u8>),
    Endless { head: Vec<u8>, piece: Vec<u8>, pause: Duration },
}

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

impl Shared {
    fn who(&self, peer: IpAddr) -> Option<InstanceId> {
        let known = self.model.read(|state| state.instance_at(peer).map(|found| found.id.clone()));
        known.or_else(|| self.fallback.clone())
    }

    fn answer(&self, head: &Head, peer: SocketAddr) -> Result<Answer, Unanswered> {
        let instance = self.who(peer.ip());
        let mut delay = Duration::ZERO;
        let mut struck = None;
        for fault in lock(&self.inner).faults.values_mut() {
            if !fault.strikes(&head.method, &head.path, instance.as_ref()) {
                continue;
            }
            match &fault.action {
                Action::Delay(time) => delay += *time,
                Action::Silence
                | Action::Close
                | Action::Status(_)
                | Action::Truncate(_)
                | Action::Reset(_)
                | Action::Unmeasured(_)
                | Action::Redirect(_)
                | Action::View(_)
                | Action::Body(_)
                | Action::Raw(_)
                | Action::Endless { .. } => {
                    struck = Some(fault.action.clone());
                    break;
                }
            }
        }
        let truth = |view| self.truth(head, instance.as_ref(), view);
        let mut answer = match struck {
            Some(Action::Silence) => return Err(Unanswered::Silence),
            Some(Action::Close) => return Err(Unanswered::Close),
            Some(Action::Raw(bytes)) => return Err(Unanswered::Raw(bytes)),
            Some(Action::Endless { head, piece, pause }) => {
                return Err(Unanswered::Endless { head, piece, pause });
            }
            Some(Action::Status(status)) => Answer::status(status),
            Some(Action::Body(body)) => Answer::new(200, body),
            Some(Action::Truncate(sent)) => Answer { sent, ..truth(None) },
            Some(Action::Reset(sent)) => Answer { sent, reset: true, ..truth(None) },
            Some(Action::Unmeasured(sent)) => Answer { sent, measured: false, ..truth(None) },
            Some(Action::Redirect(to)) => Answer { location: Some(to), ..Answer::status(302) },
            Some(Action::View(view)) => truth(Some(view)),
            Some(Action::Delay(_)) | None => truth(None),
        };
        answer.delay = delay;
        answer.protocol = self.flavour().protocol();

        Ok(answer)
    }

    /// What is answered when nothing goes wrong, by another view where one is given.
    fn truth(&self, head: &Head, instance: Option<&InstanceId>, view: Option<Arc<Tree>>) -> Answer {
        match head.method.as_str() {
            "PUT" => self.issue(head, instance),
            "GET" | "HEAD" => {
                let ttl = match self.admit(head, instance) {
                    Ok(ttl) => ttl,
                    Err(status) => return Answer::status(status),
                };
                let mut answer = match self.lookup(&head.path, instance, view) {
                    Some(body) => Answer::new(200, body),
                    None => Answer::status(404),
                };
                if head.method == "HEAD" {
                    answer.sent = 0;
                }
                answer.ttl = ttl;
                answer
            }
            _ => Answer::status(405),
        }
    }

    fn flavour(&self) -> Flavour {
        lock(&self.inner).flavour
    }

    fn issue(&self, head: &Head, instance: Option<&InstanceId>) -> Answer {
        if let Some(refusal) = self.flavour().refusal() {
            return Answer::status(refusal);
        }
        match head.path.trim_end_matches('/') {
            "/latest/api/token" => {}
            // Dated versions of the token path are refused by design.
            path if path.ends_with("/api/token") => return Answer::status(403),
            _ => return Answer::status(405),
        }
        if head.headers.contains_key("x-forwarded-for") {
            return Answer::status(403);
        }
        let ttl = head.headers.get(TTL).and_then(|text| text.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=21600).contains(ttl)) else {
            return Answer::status(400);
        };
        let mut inner = lock(&self.inner);
        inner.issued += 1;
        let token = format!("AQAEA{:051x}==", inner.issued);
        let expires = Instant::now() + Duration::from_secs(ttl);
        inner.tokens.insert(token.clone(), Token { instance: instance.cloned(), expires });
        Answer { ttl: Some(ttl), ..Answer::new(200, token) }
    }

    /// Seconds that the token is still good for, `None` without one; or the status of a refusal.
    fn admit(&self, head: &Head, instance: Option<&InstanceId>) -> Result<Option<u64>, u16> {
        let inner = lock(&self.inner);
        if inner.flavour.refusal().is_some() {
            return Ok(None);
        }
        let Some(token) = head.headers.get(TOKEN) else {
            return if inner.v1 || inner.flavour.is_open() { Ok(None) } else { Err(401) };
        };
        let now = Instant::now();
        match inner.tokens.get(token) {
            Some(token) if token.expires > now && token.instance.as_ref() == instance => {
                Ok(Some((token.expires - now).as_secs()))
            }
            _ => Err(401),
        }
    }

    fn lookup(
        &self,
        path: &str,
        instance: Option<&InstanceId>,
        view: Option<Arc<Tree>>,
    ) -> Option<String> {
        let path = path.trim_matches('/');
        let (version, rest) = path.split_once('/').unwrap_or((path, ""));
        let dated = version.len() == 10 && version.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        match version {
            "" => return Some(self.flavour().versions().to_owned()),
            "latest" => {}
            _ if dated => {}
            _ => return None,
        }
        let identity = self.flavour().has_identity();
        match rest.split_once('/').unwrap_or((rest, "")) {
            ("", _) => Some(if identity { "dynamic\nmeta-data" } else { "meta-data" }.to_owned()),
            ("meta-data", key) => view.or_else(|| self.tree(instance?))?.get(key),
            ("dynamic", _) if !identity => None,
            ("dynamic", "") => Some("instance-identity/".to_owned()),
            ("dynamic", "instance-identity") => Some("document".to_owned()),
            ("dynamic", "instance-identity/document") => self.identity(instance?),
            _ => None,
        }
    }

    /// Who an instance is, as far as programs at boot ask; nobody has signed it.
    fn identity(&self, id: &InstanceId) -> Option<String> {
        let kind = self.model.read(|state| Some(state.instances.get(id)?.kind.clone()))?;
        Some(format!(
            r#"{{"instanceId": "{id}", "instanceType": "{kind}", "region": "eu-central-1"}}"#
        ))
    }

    /// What an instance is told now.
    fn tree(&self, id: &InstanceId) -> Option<Arc<Tree>> {
        let mut inner = lock(&self.inner);
        if let Some(tree) = inner.frozen.get(id) {
            return Some(Arc::clone(tree));
        }
        let now = Instant::now();
        let mut due = false;
        for view in inner.views.values_mut() {
            due |= view.hidden_until.take_if(|until| *until <= now).is_some();
        }
        if due {
            inner.rendered.clear();
        }
        let generation = self.model.generation();
        if let Some((at, tree)) = inner.rendered.get(id)
            && *at == generation
        {
            return Some(Arc::clone(tree));
        }
        // A change in between only means that the tree is rendered once more.
        let tree = self.model.read(|state| inner.render(state, id))?;
        let tree = Arc::new(tree);
        inner.rendered.insert(id.clone(), (generation, Arc::clone(&tree)));
        Some(tree)
    }
}

impl Inner {
    fn render(&self, state: &State, id: &InstanceId) -> Option<Tree> {
        let instance = state.instances.get(id)?;
        let mut tree = Tree::of(state, instance, self.compressed);
        self.flavour.shape(&mut tree, state, instance);
        for eni in state.attached(instance) {
            if let Some(view) = self.views.get(&eni.id) {
                view.apply(eni, &mut tree);
            }
        }
        Some(tree)
    }
}

impl View {
    fn apply(&self, eni: &Eni, tree: &mut Tree) {
        let directory = format!("{}/", directory(eni));
        let hidden = self.hidden || self.hidden_until.is_some();
        tree.retain(|path| match path.strip_prefix(&directory) {
            None => true,
            Some(_) if hidden => false,
            Some(key) => {
                let first = key.split('/').next().unwrap_or(key);
                let told = self.keys.as_ref().is_none_or(|keys| keys.contains(first));
                told && !self.omitted.contains(first)
            }
        });
        if self.device_zero {
            tree.replace(&format!("{directory}device-number"), "0");
        }
    }
}
