//! What a poll promises, against a service that misbehaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use enid_core::metadata::{Answer, Ask, Depth, EniAnswers, EniKey, Failure};
use enid_core::object::Mac;
use enid_core::time::Instant;
use enid_imds::{Client, Options, Via};
use support::{Act, Server, answer};
use tokio::net::{TcpListener, TcpStream};

mod support;

const ENI: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MACS: &str = "network/interfaces/macs/";

fn options(endpoints: &[&str]) -> Options {
    Options {
        endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
        ..Options::default()
    }
}

fn client(server: &Server) -> Client {
    Client::new(options(&[&server.endpoint])).unwrap()
}

fn at(seconds: u64) -> Instant {
    Instant(Duration::from_secs(seconds))
}

fn top() -> Ask {
    Ask { top: true, enis: BTreeMap::new() }
}

fn enis(macs: impl IntoIterator<Item = Mac>, depth: Depth) -> Ask {
    Ask { top: false, enis: macs.into_iter().map(|mac| (mac, depth)).collect() }
}

async fn mac(client: &Client, seconds: u64) -> Answer {
    client.poll(&top(), at(seconds), &[]).await.mac.unwrap()
}

async fn eni(client: &Client) -> EniAnswers {
    let mut poll = client.poll(&enis([ENI], Depth::Full), at(0), &[]).await;
    poll.enis.remove(&ENI).unwrap()
}

fn text(text: &str) -> Answer {
    Answer::Text(text.to_owned())
}

/// A service with one ENI that has these keys.
async fn service(keys: &[(EniKey, &str)]) -> Server {
    let server = Server::start().await;
    server.put("mac", "02:00:00:00:00:01");
    server.put(MACS, "02:00:00:00:00:01/\n");
    put_eni(&server, ENI, keys);
    server
}

fn put_eni(server: &Server, mac: Mac, keys: &[(EniKey, &str)]) {
    let listing: Vec<_> = keys.iter().map(|(key, _)| key.name()).collect();
    server.put(&format!("{MACS}{mac}/"), &listing.join("\n"));
    for (key, text) in keys {
        server.put(&format!("{MACS}{mac}/{}", key.name()), text);
    }
}

const USUAL: &[(EniKey, &str)] = &[
    (EniKey::DeviceNumber, "1"),
    (EniKey::InterfaceId, "eni-0123456789abcdef0"),
    (EniKey::LocalIpv4s, "10.0.1.5\n10.0.1.6\n"),
];

#[tokio::test]
async fn a_full_reading_holds_the_keys_that_the_listing_shows_and_asks_for_no_others() {
    let server = service(USUAL).await;
    let read = eni(&client(&server)).await;
    assert_eq!(read.depth, Depth::Full);
    assert_eq!(read.listing, text("device-number\ninterface-id\nlocal-ipv4s"));
    let keys = USUAL.iter().map(|&(key, value)| (key, text(value)));
    assert_eq!(read.keys, keys.collect());
    assert_eq!(server.seen().len(), 1 + 1 + USUAL.len());
}

#[tokio::test]
async fn a_reading_of_lists_leaves_the_constants_alone() {
    let server = service(USUAL).await;
    let poll = client(&server).poll(&enis([ENI], Depth::Lists), at(7), &[]).await;
    assert_eq!(poll.at, at(7));
    assert_eq!((poll.mac, poll.macs), (None, None));
    let keys: Vec<_> = poll.enis[&ENI].keys.keys().collect();
    assert_eq!(keys, [&EniKey::LocalIpv4s]);
}

#[tokio::test]
async fn without_a_listing_no_key_is_read() {
    let server = service(USUAL).await;
    let gone = Mac([2, 0, 0, 0, 0, 9]);
    let poll = client(&server).poll(&enis([gone], Depth::Full), at(0), &[]).await;
    assert_eq!(poll.enis[&gone].listing, Answer::NotFound);
    assert!(poll.enis[&gone].keys.is_empty());
    server.script(|_| Act::status(400));
    let failed = eni(&client(&server)).await;
    assert_eq!(failed.listing, Answer::Failed(Failure::Status(400)));
    assert!(failed.keys.is_empty());
}

#[tokio::test]
async fn a_key_that_vanished_since_the_listing_is_not_found() {
    let server = service(USUAL).await;
    server.put(&format!("{MACS}{ENI}/"), "local-ipv4s\nipv6s\n");
    let read = eni(&client(&server)).await;
    assert_eq!(read.keys[&EniKey::Ipv6s], Answer::NotFound);
    assert_eq!(read.keys.len(), 2);
}

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
    let body = |seen: &support::Seen| match seen.is_token() {
        true => Act::status(404),
        false => Act::Raw(answer(200, "", "plain")),
    };
    server.script(body);
    let refused = mac(&client(&server), 0).await;
    assert_eq!(refused, Answer::Failed(Failure::NoToken(404)));
    assert!(server.seen().iter().all(support::Seen::is_token));
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

#[tokio::test]
async fn a_service_without_the_tree_is_asked_for_nothing_else() {
    let server = Server::start().await;
    server.put("instance-id", "i-1");
    let poll = client(&server).poll(&top(), at(0), &[]).await;
    assert_eq!((poll.mac, poll.macs), (Some(Answer::NotFound), Some(Answer::NotFound)));
    assert_eq!(server.seen().iter().filter(|seen| !seen.is_token()).count(), 2);
}

#[tokio::test]
async fn an_empty_text_is_not_what_is_not_there() {
    let server = service(&[(EniKey::LocalIpv4s, "10.0.1.5"), (EniKey::Ipv6s, "")]).await;
    let answers = eni(&client(&server)).await;
    assert_eq!(answers.keys[&EniKey::Ipv6s], text(""));
    assert!(!answers.keys.contains_key(&EniKey::Ipv4Prefixes));
}

#[tokio::test]
async fn version_1_0_of_http_is_understood_where_the_length_is_told() {
    let server = service(USUAL).await;
    server.script(|seen| match seen.is_token() {
        true => Act::Obey,
        false => Act::Raw(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ntext".to_vec()),
    });
    assert_eq!(mac(&client(&server), 0).await, text("text"));
    server.script(|seen| match seen.is_token() {
        true => Act::Obey,
        false => Act::Raw(b"HTTP/1.0 200 OK\r\n\r\ntext".to_vec()),
    });
    let answer = mac(&client(&server), 1).await;
    assert!(matches!(answer, Answer::Failed(Failure::Malformed(_))), "{answer:?}");
}

#[tokio::test]
async fn a_silent_service_ends_the_poll_in_time_and_every_answer_is_there() {
    let server = service(USUAL).await;
    server.script(|seen| match seen.is_token() || seen.ends_with("/") {
        true => Act::Obey,
        false => Act::Silence,
    });
    let client = Client::new(Options {
        request_timeout: Duration::from_secs(60),
        poll_timeout: Duration::from_millis(100),
        rate: 100,
        ..options(&[&server.endpoint])
    })
    .unwrap();
    let started = std::time::Instant::now();
    let read = eni(&client).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(matches!(read.listing, Answer::Text(_)));
    assert_eq!(read.keys.len(), USUAL.len());
    let timeout = Answer::Failed(Failure::Timeout);
    assert!(read.keys.values().all(|answer| *answer == timeout), "{read:?}");
    assert_eq!(client.health().last_failure.unwrap().1, Failure::Timeout);
}

#[tokio::test]
async fn a_service_that_is_silent_from_the_start_costs_three_tries_whatever_is_asked() {
    let server = service(USUAL).await;
    server.script(|_| Act::Silence);
    let client = Client::new(Options {
        request_timeout: Duration::from_millis(100),
        ..options(&[&server.endpoint])
    })
    .unwrap();
    let ask =
        Ask { top: true, ..enis((0..64).map(|last| Mac([2, 0, 0, 0, 1, last])), Depth::Full) };
    let poll = client.poll(&ask, at(0), &[]).await;
    let timeout = Answer::Failed(Failure::Timeout);
    assert_eq!((poll.mac, poll.macs), (Some(timeout.clone()), Some(timeout.clone())));
    assert_eq!(poll.enis.len(), 64);
    assert!(poll.enis.values().all(|eni| eni.listing == timeout));
    assert_eq!(client.requests(), 3);
}

#[tokio::test]
async fn a_silent_eni_does_not_keep_the_others_from_being_read() {
    let server = service(USUAL).await;
    let others: Vec<_> = (2..10).map(|last| Mac([2, 0, 0, 0, 0, last])).collect();
    for mac in &others {
        put_eni(&server, *mac, USUAL);
    }
    let silent = EniKey::CONSTANTS.map(|key| (key, "x"));
    put_eni(&server, ENI, &silent);
    let stuck = ENI.to_string();
    server.script(move |seen| match seen.target.contains(&stuck) && !seen.ends_with("/") {
        true => Act::Silence,
        false => Act::Obey,
    });
    let client = Client::new(Options {
        request_timeout: Duration::from_millis(150),
        poll_timeout: Duration::from_secs(1),
        ..options(&[&server.endpoint])
    })
    .unwrap();
    let macs = others.iter().copied().chain([ENI]);
    let poll = client.poll(&enis(macs, Depth::Full), at(0), &[]).await;
    let timeout = Answer::Failed(Failure::Timeout);
    assert!(poll.enis[&ENI].keys.values().all(|answer| *answer == timeout));
    for mac in others {
        let keys = &poll.enis[&mac].keys;
        assert!(keys.values().all(|answer| matches!(answer, Answer::Text(_))), "{keys:?}");
    }
}

#[tokio::test]
async fn a_503_that_passes_is_survived_within_the_poll() {
    let server = service(USUAL).await;
    let mut gets = 0;
    server.script(move |seen| {
        gets += usize::from(!seen.is_token());
        if gets == 1 { Act::status(503) } else { Act::Obey }
    });
    assert_eq!(eni(&client(&server)).await.keys.len(), USUAL.len());
}

#[tokio::test]
async fn a_lasting_503_fails_after_two_retries() {
    let server = service(USUAL).await;
    server.script(|seen| if seen.is_token() { Act::Obey } else { Act::status(503) });
    assert_eq!(eni(&client(&server)).await.listing, Answer::Failed(Failure::Status(503)));
    assert_eq!(server.seen().len(), 1 + 3);
}

#[tokio::test]
async fn a_cut_off_answer_is_a_failure_and_never_a_short_list() {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
    for cut in [
        format!("{head}Content-Length: 30\r\n\r\n10.0.1.5\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n9\r\n10.0.1.5\n\r\n"),
        format!("{head}\r\n10.0.1.5\n"),
        "HTTP/1.0 200 OK\r\n\r\n10.0.1.5\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Le".to_owned(),
        String::new(),
    ] {
        let server = service(USUAL).await;
        let bytes = cut.clone().into_bytes();
        server.script(move |seen| match seen.ends_with("local-ipv4s") {
            true => Act::Raw(bytes.clone()),
            false => Act::Obey,
        });
        let read = eni(&client(&server)).await;
        let answer = &read.keys[&EniKey::LocalIpv4s];
        assert!(matches!(answer, Answer::Failed(_)), "{cut:?}: {answer:?}");
        assert_eq!(read.keys[&EniKey::DeviceNumber], text("1"));
    }
}

#[tokio::test]
async fn an_over_long_answer_is_refused_and_the_longest_is_not() {
    let server = service(USUAL).await;
    let longest = "1".repeat(64 * 1024);
    server.put("mac", &longest);
    server.put(MACS, &format!("{longest}1"));
    let poll = client(&server).poll(&top(), at(0), &[]).await;
    assert_eq!(poll.mac, Some(text(&longest)));
    assert_eq!(poll.macs, Some(Answer::Failed(Failure::TooLong)));
    server.script(|seen| match seen.is_token() {
        true => Act::Obey,
        false => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            Act::Raw([head.as_bytes(), "a\r\n0123456789\r\n".repeat(9000).as_bytes()].concat())
        }
    });
    assert_eq!(mac(&client(&server), 0).await, Answer::Failed(Failure::TooLong));
}

#[tokio::test]
async fn what_is_not_text_or_follows_the_answer_does_not_count() {
    let server = service(USUAL).await;
    server.script(|seen| match seen.is_token() {
        true => Act::Obey,
        false if seen.ends_with(MACS) => {
            Act::Raw([&answer(200, "", "02:00:00:00:00:01/\n")[..], b"more text"].concat())
        }
        false => Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec()),
    });
    let poll = client(&server).poll(&top(), at(0), &[]).await;
    let no_text = Failure::Malformed("it is not UTF-8".to_owned());
    assert_eq!(poll.mac, Some(Answer::Failed(no_text)));
    assert_eq!(poll.macs, Some(text("02:00:00:00:00:01/\n")));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = service(USUAL).await;
    let elsewhere = service(USUAL).await;
    let location = format!("Location: {}/latest/meta-data/mac\r\n", elsewhere.endpoint);
    server.script(move |seen| match seen.is_token() {
        true => Act::Obey,
        false => Act::Raw(answer(302, &location, "")),
    });
    assert_eq!(mac(&client(&server), 0).await, Answer::Failed(Failure::Status(302)));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn proxies_in_the_environment_are_ignored() {
    // A process may not change its own environment safely: the test runs itself again.
    if std::env::var_os("ENID_IMDS_TEST_PROXIED").is_some() {
        let server = service(USUAL).await;
        assert_eq!(mac(&client(&server), 0).await, text("02:00:00:00:00:01"));
        return;
    }
    let nobody = unused_endpoint().await;
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "proxies_in_the_environment_are_ignored"])
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, &nobody)))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .env_remove("REQUEST_METHOD")
        .env("ENID_IMDS_TEST_PROXIED", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test]
async fn at_most_eight_requests_are_under_way_at_once() {
    let server = service(USUAL).await;
    let macs: Vec<_> = (1..=12).map(|last| Mac([2, 0, 0, 0, 0, last])).collect();
    for mac in &macs {
        put_eni(&server, *mac, USUAL);
    }
    server.script(|seen| match seen.is_token() {
        true => Act::Obey,
        false => Act::Late(Duration::from_millis(20)),
    });
    let ask = Ask { top: true, ..enis(macs, Depth::Full) };
    let poll = client(&server).poll(&ask, at(0), &[]).await;
    assert!(poll.enis.values().all(|eni| eni.keys.len() == USUAL.len()));
    assert_eq!(server.most_at_once(), 8);
}

#[tokio::test]
async fn the_budget_holds_across_polls_and_no_answer_is_lost_to_it() {
    let server = service(USUAL).await;
    let client =
        Client::new(Options { burst: 5, rate: 100, ..options(&[&server.endpoint]) }).unwrap();
    let now = Instant::default();
    let started = std::time::Instant::now();
    for _ in 0..5 {
        let passed = started.elapsed();
        let poll = client.poll(&enis([ENI], Depth::Full), now + passed, &[]).await;
        assert!(poll.enis[&ENI].keys.values().all(|answer| matches!(answer, Answer::Text(_))));
    }
    assert_eq!(client.requests(), 21);
    assert!(started.elapsed() >= Duration::from_millis(10) * (21 - 5));
}

/// An endpoint where nobody listens.
async fn unused_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn the_second_endpoint_serves_when_the_first_refuses_and_is_remembered() {
    let server = service(USUAL).await;
    let nobody = unused_endpoint().await;
    let client = Client::new(options(&[&nobody, &server.endpoint])).unwrap();
    assert_eq!(mac(&client, 0).await, text("02:00:00:00:00:01"));
    let before = client.requests();
    assert_eq!(mac(&client, 1).await, text("02:00:00:00:00:01"));
    assert_eq!(client.requests() - before, 2, "the refusing endpoint is left alone");
    let health = client.health();
    assert_eq!(health.endpoint.as_ref(), Some(&server.endpoint));
    assert_eq!(health.via, Some(Via::Any));
    assert_eq!(health.last_failure, None);
}

/// An endpoint that drops what is sent to it; what keeps it so comes along.
async fn black_hole() -> (String, (TcpListener, Vec<TcpStream>)) {
    // A backlog of one that is full drops what comes next.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = socket.listen(1).unwrap();
    let address = hole.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        fill.push(stream);
    }
    (format!("http://{address}"), (hole, fill))
}

#[tokio::test]
async fn a_black_hole_costs_one_connect_timeout_and_the_second_endpoint_serves() {
    let (hole, _full) = black_hole().await;
    let server = service(USUAL).await;
    let client = Client::new(options(&[&hole, &server.endpoint])).unwrap();
    assert_eq!(mac(&client, 0).await, text("02:00:00:00:00:01"));
    let alone = Client::new(options(&[&hole])).unwrap();
    let many = enis((0..64).map(|last| Mac([2, 0, 0, 0, 1, last])), Depth::Full);
    let started = std::time::Instant::now();
    let poll = alone.poll(&many, at(0), &[]).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let cause = format!("{hole}: no connection within 250ms");
    let failed = Answer::Failed(Failure::Unreachable(cause));
    assert!(
        poll.enis.values().all(|eni| eni.listing == failed),
        "{:?}",
        poll.enis[&Mac([2, 0, 0, 0, 1, 0])]
    );
    assert_eq!(alone.requests(), 3);
}

#[tokio::test]
async fn when_time_is_up_the_answer_names_what_failed_before() {
    let (hole, _full) = black_hole().await;
    let poll_timeout = Duration::from_millis(600);
    let client = Client::new(Options { poll_timeout, ..options(&[&hole]) }).unwrap();
    let cause = format!("{hole}: no connection within 250ms");
    assert_eq!(mac(&client, 0).await, Answer::Failed(Failure::Unreachable(cause)));
}

#[tokio::test]
async fn another_link_is_tried_when_the_first_gives_no_connection() {
    let server = service(USUAL).await;
    let client = client(&server);
    let lo = Via::Device("lo".to_owned());
    let via = [Via::Device("nosuchlink0".to_owned()), lo.clone()];
    let poll = client.poll(&top(), at(0), &via).await;
    assert_eq!(poll.mac, Some(text("02:00:00:00:00:01")));
    assert_eq!(client.health().via, Some(lo));
    let poll = client.poll(&top(), at(100), &via[..1]).await;
    let Some(Answer::Failed(Failure::Unreachable(cause))) = poll.mac else {
        panic!("{poll:?}");
    };
    assert!(cause.starts_with(&server.endpoint) && cause.contains("os error 19"), "{cause}");
}

#[tokio::test]
async fn when_nothing_listens_each_answer_names_the_endpoint_and_the_cause() {
    let nobody = unused_endpoint().await;
    let read = eni(&Client::new(options(&[&nobody])).unwrap()).await;
    let cause = format!("{nobody}: Connection refused (os error 111)");
    assert_eq!(read.listing, Answer::Failed(Failure::Unreachable(cause)));
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
    let _default = tracing::subscriber::set_default(journal.clone());
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

#[tokio::test]
async fn a_poll_may_run_in_a_spawned_task_beside_another() {
    let server = service(USUAL).await;
    let client = Arc::new(client(&server));
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.poll(&top(), at(0), &[Via::Any]).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().mac, Some(text("02:00:00:00:00:01")));
    }
    assert_eq!(client.requests(), 7);
}
