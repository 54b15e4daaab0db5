//! One exchange with the service: which endpoint, by which link, and what came back.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use enid_core::metadata::Failure;
use enid_core::time::Instant;
use reqwest::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use reqwest::{RequestBuilder, Response, Url};

use crate::client::Options;
use crate::error::Error;
use crate::schedule::{Clock, Gate};
use crate::tally::{Status, Tally};
use crate::token::LONGEST_LIFE;

/// The longest answer that is read, in bytes.
const LONGEST_BODY: usize = 64 * 1024;
/// How long a route that answered goes first; then the caller's order counts again.
const ROUTE_MEMORY: Duration = Duration::from_mins(1);

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_LIFE: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// By which link requests leave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// As the routing tables say.
    Any,
    /// By the link of this name, whatever the routing tables prefer.
    Device(String),
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any link"),
            Self::Device(name) => f.write_str(name),
        }
    }
}

/// How the service fares, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// The endpoint that answered last.
    pub endpoint: Option<String>,
    /// The link by which it answered.
    pub via: Option<Via>,
    /// When it answered.
    pub last_answer: Option<Instant>,
    /// What failed last for good, and when.
    pub last_failure: Option<(Instant, Failure)>,
    /// Whether requests go out without a token.
    pub v1: bool,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call<'a> {
    /// Ask for a token.
    Token,
    /// Read a path under `latest/meta-data/`.
    Get(&'a str, Option<&'a HeaderValue>),
}

/// What came back; the body is read only after a 200. Holds a token at times, hence no `Debug`.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// The token's life in seconds, where the reply tells.
    pub(crate) life: Option<u32>,
}

/// Why nothing came back.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    /// Every other request would meet the same end.
    pub(crate) everybodys: bool,
}

impl Trouble {
    pub(crate) const fn own(failure: Failure) -> Self {
        Self { failure, everybodys: false }
    }

    pub(crate) const fn everybodys(failure: Failure) -> Self {
        Self { failure, everybodys: true }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    endpoint: usize,
    via: Via,
}

#[derive(Debug)]
struct Remembered {
    route: Route,
    since: Instant,
    answered: Instant,
}

/// Sends requests and remembers which way works.
#[derive(Debug)]
pub(crate) struct Transport {
    endpoints: Vec<String>,
    connect_timeout: Duration,
    request_timeout: Duration,
    clients: Mutex<BTreeMap<Via, reqwest::Client>>,
    remembered: Mutex<Option<Remembered>>,
    unbound: AtomicBool,
    requests: AtomicU64,
    tally: Arc<Tally>,
}

impl Transport {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let endpoints: Vec<_> =
            options.endpoints.iter().map(|endpoint| checked(endpoint)).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::NoEndpoint);
        }
        Ok(Self {
            endpoints,
            connect_timeout: options.connect_timeout,
            request_timeout: options.request_timeout,
            clients: Mutex::default(),
            remembered: Mutex::default(),
            unbound: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            tally: Arc::default(),
        })
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How requests have ended so far, those of the clients that this one goes on from included.
    pub(crate) fn tally(&self) -> impl Iterator<Item = (Status, u64)> {
        self.tally.counts()
    }

    pub(crate) fn count_on_from(&mut self, before: &Self) {
        self.tally = Arc::clone(&before.tally);
    }

    /// Adds which way worked last.
    pub(crate) fn report(&self, health: &mut Health) {
        if let Some(remembered) = &*lock(&self.remembered) {
            health.endpoint = self.endpoints.get(remembered.route.endpoint).cloned();
            health.via = Some(remembered.route.via.clone());
            health.last_answer = Some(remembered.answered);
        }
    }

    /// Forgets the clients of links that are no longer asked for.
    pub(crate) fn keep_only(&self, via: &[Via]) {
        lock(&self.clients).retain(|known, _| *known == Via::Any || via.contains(known));
    }

    /// Sends by the first route that gives a connection.
    pub(crate) async fn send(
        &self,
        call: Call<'_>,
        via: &[Via],
        gate: &Gate,
        clock: &Clock,
    ) -> Result<Reply, Trouble> {
        let mut routes = self.routes(via, clock.now());
        let mut causes: Vec<String> = Vec::new();
        while let Some(route) = routes.pop_front() {
            let Some(endpoint) = self.endpoints.get(route.endpoint) else {
                continue;
            };
            let request = match self.client(&route.via) {
                Ok(client) => build(&client, endpoint, call),
                Err(error) => return Err(Trouble::own(Failure::Unreachable(cause(&error)))),
            };
            gate.budget(clock).await;
            self.requests.fetch_add(1, Ordering::Relaxed);
            match request.send().await {
                Ok(response) => {
                    self.remember(route, clock.now());
                    let reply = read(response).await;
                    self.tally.note(match &reply {
                        Ok(reply) => Status::of_reply(reply.status),
                        Err(failure) => Status::of_failure(failure),
                    });
                    return reply.map_err(Trouble::own);
                }
                Err(error) if error.is_connect() => {
                    self.tally.note(match errno(&error) {
                        Some(ECONNREFUSED) => Status::Refused,
                        Some(_) | None => Status::of_failure(&failure(&error)),
                    });
                    if errno(&error) == Some(EPERM) && route.via != Via::Any {
                        self.stop_binding(&route.via);
                        routes.push_front(Route { via: Via::Any, ..route });
                        continue;
                    }
                    let cause = format!("{endpoint}: {}", self.no_connection(&error));
                    if !causes.contains(&cause) {
                        causes.push(cause);
                    }
                }
                Err(error) => {
                    let failure = failure(&error);
                    self.tally.note(Status::of_failure(&failure));
                    return Err(Trouble::own(failure));
                }
            }
        }
        let failure = Failure::Unreachable(causes.join("; "));
        Err(Trouble::everybodys(failure))
    }

    /// Every endpoint by every link, in the caller's order, except that what worked goes first.
    fn routes(&self, via: &[Via], now: Instant) -> VecDeque<Route> {
        let any = [Via::Any];
        let via = if via.is_empty() || self.unbound.load(Ordering::Relaxed) { &any } else { via };
        let mut routes: VecDeque<_> = via
            .iter()
            .flat_map(|via| {
                (0..self.endpoints.len()).map(|endpoint| Route { endpoint, via: via.clone() })
            })
            .collect();
        if let Some(remembered) = &*lock(&self.remembered)
            && now - remembered.since < ROUTE_MEMORY
            && let Some(place) = routes.iter().position(|route| *route == remembered.route)
            && let Some(route) = routes.remove(place)
        {
            routes.push_front(route);
        }
        routes
    }

    fn remember(&self, route: Route, now: Instant) {
        let mut remembered = lock(&self.remembered);
        match &mut *remembered {
            Some(same) if same.route == route && now - same.since < ROUTE_MEMORY => {
                same.answered = now;
            }
            Some(_) | None => {
                *remembered = Some(Remembered { route, since: now, answered: now });
            }
        }
    }

    fn client(&self, via: &Via) -> Result<reqwest::Client, reqwest::Error> {
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(via) {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder()
            .user_agent(concat!("enid/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // The service closes each connection: keeping one only risks writing into a dead one.
            .pool_max_idle_per_host(0)
            .connect_timeout(self.connect_timeout)
            .timeout(self.request_timeout);
        let client = match via {
            Via::Any => builder,
            Via::Device(name) => builder.interface(name),
        }
        .build()?;
        clients.insert(via.clone(), client.clone());
        Ok(client)
    }

    fn stop_binding(&self, via: &Via) {
        if !self.unbound.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                link = %via,
                "may not bind requests to a link: metadata is read as the routing tables say; \
                 CAP_NET_RAW would allow it"
            );
        }
    }

    fn no_connection(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("no connection within {:?}", self.connect_timeout);
        }
        match errno(error) {
            Some(EACCES) => format!(
                "{}; a prohibit route or a firewall rule keeps this process away, such as \
                 systemd-imdsd's lock",
                cause(error)
            ),
            Some(_) | None => cause(error),
        }
    }
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ECONNREFUSED: i32 = 111;

/// What a panic left behind is as good as before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address of an endpoint, if it has one.
pub(crate) fn address(endpoint: &str) -> Option<IpAddr> {
    let url = Url::parse(endpoint).ok()?;
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The endpoint without a trailing slash, if it is `http://ADDRESS[:PORT]`.
fn checked(endpoint: &str) -> Result<String, Error> {
    let wrong = |problem| Error::Endpoint { endpoint: endpoint.to_owned(), problem };
    let url = Url::parse(endpoint).map_err(|_| wrong("is not a URL"))?;
    if url.scheme() != "http" {
        return Err(wrong("does not start with \"http://\""));
    }
    if address(endpoint).is_none() {
        return Err(wrong("names a host instead of an IP address"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("contains a user name or password"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("goes on after the address"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn build(client: &reqwest::Client, endpoint: &str, call: Call<'_>) -> RequestBuilder {
    match call {
        Call::Token => {
            client.put(format!("{endpoint}/latest/api/token")).header(TOKEN_LIFE, LONGEST_LIFE)
        }
        Call::Get(path, token) => {
            let request = client.get(format!("{endpoint}/latest/meta-data/{path}"));
            match token {
                Some(token) => request.header(TOKEN, token),
                None => request,
            }
        }
    }
}

async fn read(response: Response) -> Result<Reply, Failure> {
    let status = response.status().as_u16();
    let life =
        response.headers().get(TOKEN_LIFE).and_then(|life| life.to_str().ok()?.trim().parse().ok());
    let body = if status == 200 { body(response).await? } else { String::new() };
    Ok(Reply { status, body, life })
}

async fn body(mut response: Response) -> Result<String, Failure> {
    let headers = response.headers();
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        // A cut-off list would look like a short one.
        return Err(Failure::Malformed("its length is not told".to_owned()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + chunk.len() > LONGEST_BODY {
            return Err(Failure::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| Failure::Malformed("it is not UTF-8".to_owned()))
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() { Failure::Timeout } else { Failure::Unreachable(cause(error)) }
}

/// The innermost cause: the outer ones repeat the URL.
fn cause(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map_or_else(String::new, ToString::to_string)
}

fn errno(error: &(dyn StdError + 'static)) -> Option<i32> {
    chain(error).find_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error())
}

fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_http_addresses() {
        for (given, kept) in [
            ("http://169.254.169.254", "http://169.254.169.254"),
            ("http://169.254.169.254/", "http://169.254.169.254"),
            ("http://[fd00:ec2::254]", "http://[fd00:ec2::254]"),
            ("http://127.0.0.1:1338", "http://127.0.0.1:1338"),
        ] {
            assert_eq!(checked(given).unwrap(), kept);
        }
    }

    #[test]
    fn an_endpoints_address_is_told_without_brackets_and_port() {
        for (endpoint, told) in [
            ("http://169.254.169.254", Some("169.254.169.254")),
            ("http://[fd00:ec2::254]:8773", Some("fd00:ec2::254")),
            ("http://metadata.internal", None),
        ] {
            assert_eq!(address(endpoint), told.map(|told| told.parse().unwrap()));
        }
    }

    #[test]
    fn a_refused_endpoint_is_named_with_its_problem_and_a_way_out() {
        for (given, problem) in [
            ("169.254.169.254", "is not a URL"),
            ("https://169.254.169.254", "does not start with"),
            ("http://metadata.internal", "instead of an IP address"),
            ("http://u:p@169.254.169.254", "user name or password"),
            ("http://169.254.169.254/latest", "goes on after the address"),
            ("http://169.254.169.254/?a", "goes on after the address"),
        ] {
            let text = checked(given).unwrap_err().to_string();
            assert!(text.contains(given) && text.contains(problem), "{text}");
            assert!(text.contains("write it like"), "{text}");
        }
    }

    fn transport() -> Transport {
        Transport::new(&Options::default()).unwrap()
    }

    fn device(name: &str) -> Via {
        Via::Device(name.to_owned())
    }

    #[test]
    fn all_endpoints_are_tried_by_one_link_before_the_next_link() {
        let routes = transport().routes(&[device("ens5"), Via::Any], Instant::default());
        let order: Vec<_> = routes.iter().map(|route| (route.endpoint, &route.via)).collect();
        let ens5 = device("ens5");
        assert_eq!(order, [(0, &ens5), (1, &ens5), (0, &Via::Any), (1, &Via::Any)]);
    }

    #[test]
    fn the_route_that_worked_goes_first_for_a_minute() {
        let at = |seconds| Instant(Duration::from_secs(seconds));
        let transport = transport();
        let via = [device("ens5"), device("ens6")];
        let worked = Route { endpoint: 1, via: device("ens6") };
        transport.remember(worked.clone(), at(100));
        transport.remember(worked.clone(), at(159));
        assert_eq!(transport.routes(&via, at(159))[0], worked);
        assert_eq!(transport.routes(&via, at(160))[0].endpoint, 0);
        assert_eq!(transport.routes(&via[..1], at(159)).len(), 2);
    }

    #[test]
    fn without_the_right_to_bind_requests_go_as_the_routing_tables_say() {
        let transport = transport();
        transport.stop_binding(&device("ens5"));
        let routes = transport.routes(&[device("ens5"), device("ens6")], Instant::default());
        assert_eq!(routes.len(), 2);
        assert!(routes.iter().all(|route| route.via == Via::Any));
    }
}
