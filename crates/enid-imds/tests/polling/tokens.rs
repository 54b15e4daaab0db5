//! Tokens: how many, for how long, and where they never show.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use enid_core::metadata::{Answer, Depth, EniKey, Failure};
use enid_core::object::Mac;
use enid_imds::{Client, Options};

use crate::support::{Act, Seen, answer};
use crate::{ENI, USUAL, at, client, eni, enis, mac, options, service, text, top};

#[tokio::test]
async fn one_token_serves_many_requests_and_polls() {
    let server = service(USUAL).await;
    let client = client(&server);
    for seconds in 0..3 {
        client.poll(&top(), at(seconds), &[]).await;
        client.poll(&enis([ENI], Depth::Full), at(seconds), &[]).await;
    }
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.is_token()).count(), 1);
    assert_eq!(client.requests(), seen.len() as u64);
    let put = &seen[0];
    assert!(put.is_token() && put.target == "/latest/api/token", "{put:?}");
    assert_eq!(put.headers["x-aws-ec2-metadata-token-ttl-seconds"], "21600");
    let agent = concat!("enid/", env!("CARGO_PKG_VERSION"));
    assert!(seen.iter().all(|seen| seen.headers["user-agent"] == agent));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let server = service(USUAL).await;
    server.token_life(600);
    let client = client(&server);
    let tokens = |_| server.seen().iter().filter(|seen| seen.is_token()).count();
    let first = tokens(mac(&client, 0).await);
    let kept = tokens(mac(&client, 499).await);
    let renewed = tokens(mac(&client, 501).await);
    assert_eq!((first, kept, renewed), (1, 0, 1));
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_for_all_and_nothing_is_lost() {
    let server = service(USUAL).await;
    let client = client(&server);
    assert_eq!(eni(&client).await.keys.len(), 3);
    server.seen();
    server.expire_tokens();
    let read = eni(&client).await;
    assert!(read.keys.values().all(|answer| matches!(answer, Answer::Text(_))));
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.is_token()).count(), 1);
    assert_eq!(seen.len(), 1 + 1 + 1 + USUAL.len());
}

#[tokio::test]
async fn refusing_a_fresh_token_too_is_unauthorized_and_not_retried_further() {
    let server = service(USUAL).await;
    server.script(|seen| if seen.is_token() { Act::Obey } else { Act::status(401) });
    let read = eni(&client(&server)).await;
    assert_eq!(read.listing, Answer::Failed(Failure::Unauthorized));
    let methods: Vec<_> = server.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["PUT", "GET", "PUT", "GET"]);
}

#[tokio::test]
async fn forbidden_is_told_apart_from_unauthorized_and_not_retried() {
    let server = service(USUAL).await;
    server.script(|seen| if seen.is_token() { Act::Obey } else { Act::status(403) });
    assert_eq!(eni(&client(&server)).await.listing, Answer::Failed(Failure::Forbidden));
    assert_eq!(server.seen().len(), 2);
    server.script(|_| Act::status(403));
    let many = enis((0..40).map(|last| Mac([2, 0, 0, 0, 1, last])), Depth::Full);
    let poll = client(&server).poll(&many, at(0), &[]).await;
    assert!(poll.enis.values().all(|eni| eni.listing == Answer::Failed(Failure::Forbidden)));
    assert_eq!(server.seen().len(), 1, "one refusal speaks for the poll");
}

#[tokio::test]
async fn version_1_is_used_only_if_allowed() {
    let server = service(USUAL).await;
    let body = |seen: &Seen| match seen.is_token() {
        true => Act::status(404),
        false => Act::Raw(answer(200, "", "plain")),
    };
    server.script(body);
    let refused = mac(&client(&server), 0).await;
    assert_eq!(refused, Answer::Failed(Failure::NoToken(404)));
    assert!(server.seen().iter().all(Seen::is_token));
    let client = Client::new(Options { allow_v1: true, ..options(&[&server.endpoint]) }).unwrap();
    assert_eq!(mac(&client, 0).await, text("plain"));
    assert_eq!(mac(&client, 1).await, text("plain"));
    assert!(client.health().v1);
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.is_token()).count(), 1);
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("x-aws-ec2-metadata-token")));
}

/// Clouds that know no tokens say so in several ways.
#[tokio::test]
async fn every_way_to_know_no_tokens_leads_to_version_1_and_is_named_with_the_remedy_without_it() {
    for status in [404, 405, 501] {
        let server = service(USUAL).await;
        server.script(move |seen| match seen.is_token() {
            true => Act::status(status),
            false => Act::Tell,
        });
        let Answer::Failed(failure) = mac(&client(&server), 0).await else {
            panic!("version 1 was used although it is not allowed");
        };
        let said = failure.to_string();
        assert!(said.contains(&status.to_string()) && said.contains("allow_v1 = true"), "{said}");
        let client =
            Client::new(Options { allow_v1: true, ..options(&[&server.endpoint]) }).unwrap();
        assert_eq!(eni(&client).await.keys[&EniKey::LocalIpv4s], text("10.0.1.5\n10.0.1.6\n"));
    }
}

#[tokio::test]
async fn a_service_that_demands_tokens_later_gets_them() {
    let server = service(USUAL).await;
    server.script(|seen| match seen.is_token() {
        true => Act::status(404),
        false => Act::Tell,
    });
    let client = Client::new(Options { allow_v1: true, ..options(&[&server.endpoint]) }).unwrap();
    assert_eq!(mac(&client, 0).await, text("02:00:00:00:00:01"));
    assert!(client.health().v1);
    server.script(|_| Act::Obey);
    assert_eq!(mac(&client, 1).await, text("02:00:00:00:00:01"));
    assert!(!client.health().v1);
}

/// Writes every event and span field into one text.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<String>>);

impl tracing::field::Visit for Journal {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = writeln!(self.0.lock().unwrap(), "{field}={value:?}");
    }
}

impl tracing::Subscriber for Journal {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        attributes.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn the_token_shows_in_no_log_and_no_debug_output() {
    let journal = Journal::default();
    // For all threads: what is enabled is remembered for the process, by the thread that asks first.
    tracing::subscriber::set_global_default(journal.clone()).unwrap();
    let server = service(USUAL).await;
    let client = client(&server);
    eni(&client).await;
    server.script(|seen| if seen.is_token() { Act::Obey } else { Act::status(500) });
    let poll = client.poll(&top(), at(17_999), &[]).await;
    let poll = format!("{poll:?} {:?}", client.poll(&top(), at(18_000), &[]).await);
    let sent = format!("{:?}", server.seen());
    assert!(sent.contains("SECRET"));
    let logged = journal.0.lock().unwrap().clone();
    assert!(logged.contains("asking again"), "{logged}");
    for shown in [logged, poll, format!("{client:?} {:?}", client.health())] {
        assert!(!shown.contains("SECRET"), "{shown}");
    }
}
