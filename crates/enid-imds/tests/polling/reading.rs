//! What is read, and what is not.

use std::sync::Arc;

use enid_core::metadata::{Answer, Depth, EniKey, Failure};
use enid_core::object::Mac;
use enid_imds::Via;

use crate::support::{Act, Server};
use crate::{ENI, MACS, USUAL, at, client, eni, enis, mac, service, text, top};

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
