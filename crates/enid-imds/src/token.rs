//! The session token: fetched once, shared, renewed early, dropped when refused, never shown.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use enid_core::metadata::Failure;
use enid_core::time::Instant;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex;

use crate::transport::{Reply, Trouble};

/// The longest life that the service grants, in seconds.
pub(crate) const LONGEST_LIFE: u32 = 21_600;
/// How long a service without tokens is taken at its word.
const V1_LIFE: Duration = Duration::from_mins(10);
/// How long a failed early renewal is left alone while the old token still serves.
const RENEWAL_PAUSE: Duration = Duration::from_mins(1);

/// What requests show for some time: a token, or nothing under version 1.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Session {
    number: u64,
    token: Option<HeaderValue>,
    renew_at: Instant,
    ends_at: Instant,
}

impl Session {
    /// Begins when the token was asked for, which errs on the early side; renewed at 5/6 of its life.
    fn new(number: u64, grant: Grant, asked_at: Instant) -> Self {
        let (token, life) = match grant {
            Grant::Token(token, life) => (Some(token), life),
            Grant::None => (None, V1_LIFE),
        };
        Self { number, token, renew_at: asked_at + life * 5 / 6, ends_at: asked_at + life }
    }

    /// The header's value, marked sensitive.
    pub(crate) const fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("number", &self.number)
            .field("ends_at", &self.ends_at)
            .finish_non_exhaustive()
    }
}

/// What the service grants on a token request.
enum Grant {
    Token(HeaderValue, Duration),
    None,
}

/// Hands out the current session.
#[derive(Debug)]
pub(crate) struct Tokens {
    allow_v1: bool,
    v1: AtomicBool,
    /// Token requests that have ended.
    ended: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    failed: Option<Failure>,
}

impl Tokens {
    pub(crate) fn new(allow_v1: bool) -> Self {
        Self {
            allow_v1,
            v1: AtomicBool::new(false),
            ended: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Whether requests go out without a token.
    pub(crate) fn v1(&self) -> bool {
        self.v1.load(Ordering::Relaxed)
    }

    /// The session to use now; `ask` sends a token request when there is none to use.
    ///
    /// Whoever comes while a token request is under way waits for it and shares its outcome.
    pub(crate) async fn session(
        &self,
        now: impl Fn() -> Instant + Send,
        ask: impl Future<Output = Result<Reply, Trouble>> + Send,
    ) -> Result<Session, Trouble> {
        let ended = self.ended.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        let asked_at = now();
        if let Some(session) = &state.session
            && asked_at < session.renew_at
        {
            return Ok(session.clone());
        }
        if self.ended.load(Ordering::Acquire) != ended
            && let Some(failure) = &state.failed
        {
            return Err(Trouble::everybodys(failure.clone()));
        }
        let outcome = match ask.await {
            Ok(reply) => self.grant(reply),
            Err(trouble) => Err(trouble.failure),
        };
        let number = self.ended.fetch_add(1, Ordering::AcqRel);
        match outcome {
            Ok(grant) => {
                let session = Session::new(number, grant, asked_at);
                self.v1.store(session.token.is_none(), Ordering::Relaxed);
                state.failed = None;
                Ok(state.session.insert(session).clone())
            }
            Err(failure) => {
                let old = state.session.take().filter(|old| now() < old.ends_at);
                if let Some(mut session) = old {
                    tracing::debug!(%failure, "could not renew the session token yet");
                    session.renew_at = (now() + RENEWAL_PAUSE).min(session.ends_at);
                    return Ok(state.session.insert(session).clone());
                }
                state.failed = Some(failure.clone());
                Err(Trouble::everybodys(failure))
            }
        }
    }

    /// Forgets a session that the service refused, unless a newer one took its place.
    pub(crate) async fn forget(&self, refused: &Session) {
        let mut state = self.state.lock().await;
        if state.session.as_ref().is_some_and(|session| session.number == refused.number) {
            state.session = None;
        }
    }

    fn grant(&self, reply: Reply) -> Result<Grant, Failure> {
        match reply.status {
            200 => {
                let mut token = HeaderValue::from_str(reply.body.trim())
                    .ok()
                    .filter(|token| !token.is_empty())
                    .ok_or_else(|| Failure::Malformed("no usable session token".to_owned()))?;
                token.set_sensitive(true);
                let life = reply.life.unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE);
                Ok(Grant::Token(token, Duration::from_secs(life.into())))
            }
            403..=405 | 501 if self.allow_v1 => Ok(Grant::None),
            401 => Err(Failure::Unauthorized),
            403 => Err(Failure::Forbidden),
            status @ (404 | 405 | 501) => Err(Failure::NoToken(status)),
            status => Err(Failure::Status(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(Duration::from_secs(seconds))
    }

    fn reply(status: u16, body: &str, life: Option<u32>) -> Result<Reply, Trouble> {
        Ok(Reply { status, body: body.to_owned(), life })
    }

    async fn ask(
        tokens: &Tokens,
        seconds: u64,
        answer: Result<Reply, Trouble>,
    ) -> Result<Option<String>, Failure> {
        match tokens.session(|| at(seconds), async { answer }).await {
            Ok(session) => Ok(session.token().map(|token| token.to_str().unwrap().to_owned())),
            Err(trouble) => Err(trouble.failure),
        }
    }

    #[tokio::test]
    async fn a_token_is_kept_for_five_sixths_of_the_life_in_the_reply() {
        let tokens = Tokens::new(false);
        let first = ask(&tokens, 100, reply(200, "first", Some(60))).await;
        assert_eq!(first, Ok(Some("first".to_owned())));
        let kept = ask(&tokens, 149, reply(200, "second", Some(60))).await;
        assert_eq!(kept, Ok(Some("first".to_owned())));
        let renewed = ask(&tokens, 150, reply(200, "second", Some(60))).await;
        assert_eq!(renewed, Ok(Some("second".to_owned())));
    }

    #[tokio::test]
    async fn a_failed_renewal_leaves_the_old_token_until_it_ends() {
        let tokens = Tokens::new(false);
        ask(&tokens, 0, reply(200, "old", Some(3600))).await.unwrap();
        let old = Ok(Some("old".to_owned()));
        assert_eq!(ask(&tokens, 3000, reply(503, "", None)).await, old);
        assert_eq!(ask(&tokens, 3059, reply(200, "new", None)).await, old);
        assert_eq!(ask(&tokens, 3599, reply(503, "", None)).await, old);
        assert_eq!(ask(&tokens, 3600, reply(503, "", None)).await, Err(Failure::Status(503)));
    }

    #[tokio::test]
    async fn a_service_without_tokens_is_used_only_if_version_1_is_allowed() {
        for status in [403, 404, 405, 501] {
            assert_eq!(ask(&Tokens::new(true), 0, reply(status, "", None)).await, Ok(None));
            assert!(ask(&Tokens::new(false), 0, reply(status, "", None)).await.is_err());
        }
        let refused = ask(&Tokens::new(false), 0, reply(404, "", None)).await.unwrap_err();
        assert!(refused.to_string().contains("allow_v1 = true"), "{refused}");
        assert_eq!(
            ask(&Tokens::new(false), 0, reply(403, "", None)).await,
            Err(Failure::Forbidden)
        );
        assert_eq!(
            ask(&Tokens::new(true), 0, reply(400, "", None)).await,
            Err(Failure::Status(400))
        );
    }

    #[tokio::test]
    async fn an_empty_or_unprintable_token_is_refused() {
        for body in ["", " \n", "a\nb", "a\u{7f}b"] {
            let answer = ask(&Tokens::new(true), 0, reply(200, body, Some(60))).await;
            assert_eq!(answer, Err(Failure::Malformed("no usable session token".to_owned())));
        }
    }

    #[tokio::test]
    async fn debug_output_shows_no_token() {
        let tokens = Tokens::new(false);
        ask(&tokens, 0, reply(200, "SECRET", Some(60))).await.unwrap();
        let session = tokens.session(|| at(1), async { reply(500, "", None) }).await;
        let text = format!("{tokens:?} {session:?} {:?}", session.as_ref().unwrap().token());
        assert!(!text.contains("SECRET"), "{text}");
    }
}
