//! What a poll promises, against a service that misbehaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::collections::BTreeMap;
use std::time::Duration;

use enid_core::metadata::{Answer, Ask, Depth, EniAnswers, EniKey};
use enid_core::object::Mac;
use enid_core::time::Instant;
use enid_imds::{Client, Options};
use support::Server;

mod reading;
mod routes;
mod support;
mod tokens;
mod trouble;

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
