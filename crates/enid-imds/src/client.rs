//! Reads what is asked: each listing, then the keys it shows, all within one deadline.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use backon::Retryable;
use enid_core::metadata::{
    ASSOCIATIONS, Answer, Ask, Associations, Depth, EniAnswers, EniKey, Failure, Poll,
};
use enid_core::object::Mac;
use enid_core::time::Instant;
use futures::future::{OptionFuture, join_all, join3};

use crate::error::Error;
use crate::schedule::{Clock, Gate, passing, retries};
use crate::tally::Status;
use crate::token::{Session, Tokens};
use crate::transport::{Call, Health, Reply, Transport, Trouble, Via, address, lock};

/// How much longer a reading may take for what nothing is decided by.
const LEEWAY: Duration = Duration::from_millis(500);
/// So many public addresses of an ENI are asked for: no instance has an ENI with more.
const PUBLIC_ADDRESSES: usize = 64;

/// Where and how to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Tried in this order: `http://ADDRESS[:PORT]`.
    pub endpoints: Vec<String>,
    /// Whether to go on without a token where the service refuses or does not know them.
    pub allow_v1: bool,
    /// The time for one connection.
    pub connect_timeout: Duration,
    /// The time for one request from its start to the last byte of the answer.
    pub request_timeout: Duration,
    /// The time for one poll, apart from what the budget needs for its requests.
    pub poll_timeout: Duration,
    /// Requests at once.
    pub parallel: usize,
    /// Requests that may go out at once after a quiet time.
    pub burst: u32,
    /// Requests a second in the long run.
    pub rate: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: vec![
                "http://169.254.169.254".to_owned(),
                "http://[fd00:ec2::254]".to_owned(),
            ],
            allow_v1: false,
            connect_timeout: Duration::from_millis(250),
            request_timeout: Duration::from_secs(2),
            poll_timeout: Duration::from_secs(5),
            parallel: 8,
            burst: 50,
            rate: 50,
        }
    }
}

impl Options {
    /// The addresses of the endpoints; those that [`Client::new`] refuses have none.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.endpoints.iter().filter_map(|endpoint| address(endpoint)).collect()
    }
}

/// Asks one metadata service; keeps its token, its budget and the way that works.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    tokens: Tokens,
    gate: Gate,
    poll_timeout: Duration,
    rate: u32,
    polls: AtomicUsize,
    last_failure: Mutex<Option<(Instant, Failure)>>,
}

/// What the requests of one poll share.
struct Run<'a> {
    clock: Clock,
    deadline: tokio::time::Instant,
    via: &'a [Via],
    answered: AtomicBool,
    /// Set when nothing answered and no other request could fare better.
    hopeless: OnceLock<Failure>,
}

impl Run<'_> {
    fn worth_another(&self, trouble: &Trouble) -> bool {
        passing(&trouble.failure) && self.hopeless.get().is_none()
    }

    fn nothing_works(&self, trouble: &Trouble) -> bool {
        trouble.everybodys && !self.answered.load(Ordering::Relaxed)
    }
}

impl Client {
    /// A client that has sent nothing yet.
    ///
    /// # Errors
    ///
    /// When there is no endpoint, or one is not `http://ADDRESS[:PORT]`.
    pub fn new(options: Options) -> Result<Self, Error> {
        Ok(Self {
            transport: Transport::new(&options)?,
            tokens: Tokens::new(options.allow_v1),
            gate: Gate::new(options.parallel, options.burst, options.rate),
            poll_timeout: options.poll_timeout,
            rate: options.rate.max(1),
            polls: AtomicUsize::new(0),
            last_failure: Mutex::new(None),
        })
    }

    /// Reads what is asked; what could not be read says so in its answer.
    ///
    /// `now` is the time at the call; it decides about tokens and budget, so it may not go back.
    /// Connections are tried by each of `via` in turn, by any link
    /// if it is empty. Ends within `poll_timeout` plus the time that the budget needs for that
    /// many requests; what is still missing then has failed with [`Failure::Timeout`].
    pub async fn poll(&self, ask: &Ask, now: Instant, via: &[Via]) -> Poll {
        self.transport.keep_only(via);
        let run = Run {
            clock: Clock::starting_at(now),
            deadline: tokio::time::Instant::now() + self.poll_timeout + self.time_for(ask),
            via,
            answered: AtomicBool::new(false),
            hopeless: OnceLock::new(),
        };
        let mut enis: Vec<_> = ask.enis.iter().collect();
        if !enis.is_empty() {
            // Another ENI goes first each time, so that a deadline never hits the same ones.
            let first = self.polls.fetch_add(1, Ordering::Relaxed) % enis.len();
            enis.rotate_left(first);
        }
        let top = |path| OptionFuture::from(ask.top.then(|| self.get(&run, path)));
        let (mac, macs, enis) = join3(
            top("mac"),
            top("network/interfaces/macs/"),
            join_all(enis.into_iter().map(|(mac, depth)| self.eni(&run, *mac, *depth))),
        )
        .await;
        Poll { at: now, mac, macs, enis: enis.into_iter().collect() }
    }

    /// How many requests were tried so far, those for tokens and those that found no connection
    /// included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.transport.requests()
    }

    /// How requests have ended so far.
    pub fn tally(&self) -> impl Iterator<Item = (Status, u64)> {
        self.transport.tally()
    }

    /// Takes the place of another client, whose requests count on.
    #[must_use]
    pub fn instead_of(mut self, before: &Self) -> Self {
        self.transport.count_on_from(&before.transport);
        self
    }

    /// Which way answers, and what failed last.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut health = Health {
            last_failure: self.last_failure().clone(),
            v1: self.tokens.v1(),
            ..Health::default()
        };
        self.transport.report(&mut health);
        health
    }

    /// What the budget needs for an ask in the worst case.
    fn time_for(&self, ask: &Ask) -> Duration {
        let keys = |depth: &Depth| 1 + keys(*depth).count();
        let requests = 3 + ask.enis.values().map(keys).sum::<usize>();
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        Duration::from_secs(1).saturating_mul(requests) / self.rate
    }

    async fn eni(&self, run: &Run<'_>, mac: Mac, depth: Depth) -> (Mac, EniAnswers) {
        let directory = format!("network/interfaces/macs/{mac}/");
        let listing = self.get(run, &directory).await;
        let shown = match &listing {
            Answer::Text(listing) => shown(listing, depth),
            Answer::NotFound | Answer::Failed(_) => Vec::new(),
        };
        let read = |key: EniKey| {
            let path = format!("{directory}{}", key.name());
            async move { (key, self.get(run, &path).await) }
        };
        let keys = join_all(shown.into_iter().map(read)).await;
        let associations = match (&listing, depth) {
            (Answer::Text(listing), Depth::Full) => {
                let read = self.associations(run, &directory, listing);
                tokio::time::timeout(LEEWAY, read).await.unwrap_or_default()
            }
            (_, Depth::Lists) | (Answer::NotFound | Answer::Failed(_), Depth::Full) => {
                Associations::Unknown
            }
        };
        let keys = keys.into_iter().collect();
        (mac, EniAnswers { depth, listing, keys, associations })
    }

    /// Which public addresses lead to an ENI.
    async fn associations(&self, run: &Run<'_>, directory: &str, listing: &str) -> Associations {
        let listed =
            listing.split_whitespace().any(|entry| entry.trim_end_matches('/') == ASSOCIATIONS);
        if !listed {
            return Associations::Read(BTreeMap::new());
        }
        let directory = format!("{directory}{ASSOCIATIONS}/");
        let Answer::Text(shown) = self.get(run, &directory).await else {
            return Associations::Unknown;
        };
        let publics = shown.split_whitespace().filter_map(|entry| entry.parse::<Ipv4Addr>().ok());
        let read = |public: Ipv4Addr| {
            let path = format!("{directory}{public}");
            async move { (public, self.get(run, &path).await) }
        };
        let read = join_all(publics.take(PUBLIC_ADDRESSES).map(read)).await;
        Associations::Read(read.into_iter().collect())
    }

    /// Reads one path, again after a passing failure, until the poll's deadline.
    async fn get(&self, run: &Run<'_>, path: &str) -> Answer {
        let before = Mutex::new(None);
        let tried = (|| self.attempt(run, path, &before))
            .retry(retries())
            .when(|trouble| run.worth_another(trouble))
            .notify(|trouble, pause| again(path, trouble, pause, &before));
        let failure = match tokio::time::timeout_at(run.deadline, tried).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(trouble)) => trouble.failure,
            // What failed before says more than that the time was up at the next try.
            Err(_) => lock(&before).take().unwrap_or(Failure::Timeout),
        };
        *self.last_failure() = Some((run.clock.now(), failure.clone()));
        Answer::Failed(failure)
    }

    /// Reads one path in a lane of its own.
    ///
    /// Keeps the lane during retries only while nothing works at all: then whoever waits for one
    /// would fail as well, and learns it sooner.
    async fn attempt(
        &self,
        run: &Run<'_>,
        path: &str,
        before: &Mutex<Option<Failure>>,
    ) -> Result<Answer, Trouble> {
        let _lane = self.gate.lane().await;
        let tried = (|| self.exchange(run, path))
            .retry(retries())
            .when(|trouble| run.worth_another(trouble) && run.nothing_works(trouble))
            .notify(|trouble, pause| again(path, trouble, pause, before))
            .await;
        if let Err(trouble) = &tried
            && run.nothing_works(trouble)
        {
            run.hopeless.get_or_init(|| trouble.failure.clone());
        }
        tried
    }

    /// One request, and one more with a fresh token after a 401.
    async fn exchange(&self, run: &Run<'_>, path: &str) -> Result<Answer, Trouble> {
        if let Some(failure) = run.hopeless.get() {
            return Err(Trouble::everybodys(failure.clone()));
        }
        let mut session = self.session(run).await?;
        let mut reply = self.send(run, Call::Get(path, session.token())).await?;
        if reply.status == 401 {
            self.tokens.forget(&session).await;
            session = self.session(run).await?;
            reply = self.send(run, Call::Get(path, session.token())).await?;
        }
        run.answered.store(true, Ordering::Relaxed);
        match reply.status {
            200 => Ok(Answer::Text(reply.body)),
            404 => Ok(Answer::NotFound),
            401 => Err(Trouble::own(Failure::Unauthorized)),
            403 => Err(Trouble::own(Failure::Forbidden)),
            status => Err(Trouble::own(Failure::Status(status))),
        }
    }

    async fn session(&self, run: &Run<'_>) -> Result<Session, Trouble> {
        let ask = self.send(run, Call::Token);
        self.tokens.session(|| run.clock.now(), ask).await
    }

    async fn send(&self, run: &Run<'_>, call: Call<'_>) -> Result<Reply, Trouble> {
        self.transport.send(call, run.via, &self.gate, &run.clock).await
    }

    fn last_failure(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Failure)>> {
        lock(&self.last_failure)
    }
}

/// Notes why a path is asked for again.
fn again(path: &str, trouble: &Trouble, pause: Duration, before: &Mutex<Option<Failure>>) {
    tracing::debug!(path, failure = %trouble.failure, ?pause, "asking again");
    *lock(before) = Some(trouble.failure.clone());
}

/// The keys that a depth includes, those first that matter most when time runs out.
fn keys(depth: Depth) -> impl Iterator<Item = EniKey> {
    let constants: &[EniKey] = match depth {
        Depth::Lists => &[],
        Depth::Full => &EniKey::CONSTANTS,
    };
    EniKey::LISTS.iter().chain(constants).copied()
}

/// Those of them that a listing shows.
fn shown(listing: &str, depth: Depth) -> Vec<EniKey> {
    let entries: Vec<_> =
        listing.split_whitespace().map(|entry| entry.trim_end_matches('/')).collect();
    keys(depth).filter(|key| entries.contains(&key.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_with_any_line_ends_and_unknown_entries() {
        let listing = "device-number\r\nipv4-associations/\nlocal-ipv4s \n\n ipv6s/\nfuture-key";
        assert_eq!(shown(listing, Depth::Lists), [EniKey::LocalIpv4s, EniKey::Ipv6s]);
        assert_eq!(
            shown(listing, Depth::Full),
            [EniKey::LocalIpv4s, EniKey::Ipv6s, EniKey::DeviceNumber]
        );
        assert_eq!(shown("", Depth::Full), []);
        assert_eq!(shown("local-ipv4s-other", Depth::Full), []);
    }
}
