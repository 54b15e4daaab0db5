//! Which endpoint is asked by which link, and who is never asked.

use std::time::Duration;

use enid_core::metadata::{Answer, Depth, Failure};
use enid_core::object::Mac;
use enid_imds::{Client, Options, Via};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Act, answer};
use crate::{USUAL, at, client, eni, enis, mac, options, service, text, top};

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
        .args(["--exact", "routes::proxies_in_the_environment_are_ignored"])
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
