//! A service that is slow, broken or wrong, and how much it is asked.

use std::time::Duration;

use enid_core::metadata::{Answer, Ask, Depth, EniKey, Failure};
use enid_core::object::Mac;
use enid_core::time::Instant;
use enid_imds::{Client, Options};

use crate::support::{Act, answer};
use crate::{ENI, MACS, USUAL, at, client, eni, enis, mac, options, put_eni, service, text, top};

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
