//! The metadata service on loopback: what EC2 promises, and what it does on its bad days.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use imds::{Action, Eni, EniId, Fault, Flavour, Instance, InstanceId, Mac, Model, Server};

const MACS: &str = "/latest/meta-data/network/interfaces/macs/";
const SECOND: &str = "/latest/meta-data/network/interfaces/macs/0e:00:00:00:00:02";

struct Service {
    server: Server,
    at: SocketAddr,
}

fn instance() -> InstanceId {
    InstanceId("i-0123456789abcdef0".to_owned())
}

fn eni(number: u8) -> Eni {
    Eni {
        id: EniId(format!("eni-{number:017x}")),
        mac: Mac([0x0e, 0, 0, 0, 0, number]),
        device: u32::from(number) - 1,
        card: None,
        owner: "123456789012".to_owned(),
        subnet: format!("subnet-{number:017x}"),
        vpc: "vpc-00000000000000001".to_owned(),
        subnet_v4: Some(format!("10.0.{number}.0/24").parse().unwrap()),
        subnet_v6: vec![format!("2600:1f16:67f:f20{number}::/64").parse().unwrap()],
        vpc_v4: vec!["10.0.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
        vpc_v6: vec!["2600:1f16:67f:f200::/56".parse().unwrap()],
        ipv4: vec![
            format!("10.0.{number}.4").parse().unwrap(),
            format!("10.0.{number}.3").parse().unwrap(),
        ],
        link_local: None,
        ipv6: vec![],
        prefixes_v4: vec![],
        prefixes_v6: vec![],
        public: [(
            format!("10.0.{number}.4").parse().unwrap(),
            format!("203.0.113.{number}").parse().unwrap(),
        )]
        .into(),
    }
}

fn service() -> Service {
    let model = Model::default();
    model.update(|state| {
        state.enis = [eni(1), eni(2)].into_iter().map(|eni| (eni.id.clone(), eni)).collect();
        let instance = Instance {
            id: instance(),
            kind: "m7i.large".to_owned(),
            primary: Some(eni(1).id),
            enis: vec![eni(1).id, eni(2).id],
        };
        state.instances.insert(instance.id.clone(), instance);
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    Service { server: Server::start(model, vec![listener], Some(instance())).unwrap(), at }
}

impl Service {
    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            Ok(_) => text,
            Err(error) if error.kind() == ErrorKind::WouldBlock => "timeout".to_owned(),
            Err(error) => panic!("{error}"),
        }
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let text = self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"));
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }

    fn token(&self) -> String {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
        let (status, token) = self.ask("PUT", "/latest/api/token", ttl);
        assert_eq!(status, 200);
        token
    }

    fn get(&self, path: &str) -> (u16, String) {
        let token = self.token();
        self.ask("GET", path, &format!("X-aws-ec2-metadata-token: {token}\r\n"))
    }

    /// A request with a token, as bytes.
    fn request(&self, path: &str) -> String {
        let token = self.token();
        format!("GET {path} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n")
    }
}

#[test]
fn a_token_is_required_and_has_a_lifetime_in_range() {
    let service = service();
    for ttl in [
        "",
        "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n",
        "X-aws-ec2-metadata-token-ttl-seconds: 21601\r\n",
    ] {
        assert_eq!(service.ask("PUT", "/latest/api/token", ttl).0, 400, "{ttl}");
    }
    let forwarded = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 10.0.0.1\r\n";
    assert_eq!(service.ask("PUT", "/latest/api/token", forwarded).0, 403);
    let mac = "/latest/meta-data/mac";
    assert_eq!(service.ask("GET", mac, "").0, 401);
    assert_eq!(service.ask("GET", mac, "X-aws-ec2-metadata-token: wrong\r\n").0, 401);
    assert_eq!(service.get(mac), (200, "0e:00:00:00:00:01".to_owned()));
    service.server.set_v1(true);
    assert_eq!(service.ask("GET", mac, "").0, 200);
}

#[test]
fn expired_tokens_are_refused() {
    let service = service();
    let header = format!("X-aws-ec2-metadata-token: {}\r\n", service.token());
    assert_eq!(service.ask("GET", "/latest/meta-data/mac", &header).0, 200);
    service.server.expire_tokens();
    assert_eq!(service.ask("GET", "/latest/meta-data/mac", &header).0, 401);
}

#[test]
fn an_answer_looks_like_the_real_one() {
    let service = service();
    service.server.set_v1(true);
    let text = service.raw("GET /latest/meta-data/mac HTTP/1.1\r\nHost: x\r\n\r\n");
    for part in [
        "HTTP/1.1 200 OK\r\n",
        "Server: EC2ws\r\n",
        "Connection: close\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Length: 17\r\n",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn every_key_of_an_eni_is_there_with_and_without_a_slash() {
    let service = service();
    let expected = [
        ("device-number", "1"),
        ("interface-id", "eni-00000000000000002"),
        ("mac", "0e:00:00:00:00:02"),
        ("owner-id", "123456789012"),
        ("local-ipv4s", "10.0.2.4\n10.0.2.3"),
        ("subnet-ipv4-cidr-block", "10.0.2.0/24"),
        ("subnet-ipv6-cidr-blocks", "2600:1f16:67f:f202:0:0:0:0/64"),
        ("vpc-ipv4-cidr-block", "10.0.0.0/16"),
        ("vpc-ipv4-cidr-blocks", "10.0.0.0/16\n10.1.0.0/16"),
        ("public-ipv4s", "203.0.113.2"),
        ("ipv4-associations/203.0.113.2", "10.0.2.4"),
        ("ipv4-associations", "203.0.113.2"),
    ];
    for (key, value) in expected {
        assert_eq!(service.get(&format!("{SECOND}/{key}")), (200, value.to_owned()));
        assert_eq!(service.get(&format!("{SECOND}/{key}/")), (200, value.to_owned()));
    }
    for absent in ["ipv6s", "ipv4-prefix", "ipv6-prefix", "network-card", "gateway"] {
        assert_eq!(service.get(&format!("{SECOND}/{absent}")).0, 404, "{absent}");
    }
    let macs = "0e:00:00:00:00:01/\n0e:00:00:00:00:02/".to_owned();
    assert_eq!(service.get(MACS), (200, macs));
    assert!(service.get(SECOND).1.contains("ipv4-associations/\n"));
    assert_eq!(service.get("/latest/meta-data/instance-id").1, "i-0123456789abcdef0");
    assert_eq!(service.get("/2021-03-23/meta-data/local-ipv4").1, "10.0.1.4");
    let identity = service.get("/latest/dynamic/instance-identity/document").1;
    assert!(identity.contains(r#""instanceId": "i-0123456789abcdef0""#), "{identity}");
    assert_eq!(service.get("/latest/meta-data/network/").1, "interfaces/");
}

#[test]
fn ipv6_networks_are_spelled_either_way() {
    let service = service();
    service.server.model().update(|state| {
        let eni = state.enis.get_mut(&eni(2).id).unwrap();
        eni.prefixes_v6 = vec!["2600:1f16:67f:f202:4a0::/80".parse().unwrap()];
        eni.ipv6 = vec!["2600:1f16:67f:f202::5".parse().unwrap()];
    });
    let told = |key| service.get(&format!("{SECOND}/{key}")).1;
    assert_eq!(told("subnet-ipv6-cidr-blocks"), "2600:1f16:67f:f202:0:0:0:0/64");
    assert_eq!(told("ipv6-prefix"), "2600:1f16:67f:f202:4a0:0:0:0/80");
    service.server.set_uncompressed(false);
    assert_eq!(told("subnet-ipv6-cidr-blocks"), "2600:1f16:67f:f202::/64");
    assert_eq!(told("vpc-ipv6-cidr-blocks"), "2600:1f16:67f:f200::/56");
    assert_eq!(told("ipv6-prefix"), "2600:1f16:67f:f202:4a0::/80");
    assert_eq!(told("ipv6s"), "2600:1f16:67f:f202::5");
    service.server.set_uncompressed(true);
    assert_eq!(told("vpc-ipv6-cidr-blocks"), "2600:1f16:67f:f200:0:0:0:0/56");
}

#[test]
fn a_fault_strikes_where_and_as_often_as_it_should() {
    let service = service();
    let key = format!("{SECOND}/local-ipv4s");
    service.server.fault(Fault::on("*/local-ipv4s", Action::Status(503)).times(2));
    assert_eq!(service.get(&key).0, 503);
    assert_eq!(service.get(&format!("{key}/")).0, 503);
    assert_eq!(service.get(&key).0, 200);

    let elsewhere = InstanceId("i-other".to_owned());
    service.server.fault(Fault::on("*", Action::Status(500)).instance(&elsewhere));
    assert_eq!(service.get(&key).0, 200);

    let id = service.server.fault(Fault::on("*/mac", Action::Body("nonsense".to_owned())));
    assert_eq!(service.get("/latest/meta-data/mac").1, "nonsense");
    service.server.clear(id);
    assert_eq!(service.get("/latest/meta-data/mac").1, "0e:00:00:00:00:01");

    service.server.fault(Fault::on("*/token", Action::Status(403)).method("PUT"));
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    assert_eq!(service.ask("PUT", "/latest/api/token", ttl).0, 403);
    service.server.clear_all();
    service.token();
}

#[test]
fn answers_can_be_late_cut_short_or_missing() {
    let service = service();
    service.server.set_v1(true);
    let path = "/latest/meta-data/mac";
    let late = service.server.fault(Fault::on(path, Action::Delay(Duration::from_millis(60))));
    let start = std::time::Instant::now();
    assert_eq!(service.ask("GET", path, "").0, 200);
    assert!(start.elapsed() >= Duration::from_millis(60));
    service.server.clear(late);

    service.server.fault(Fault::on(path, Action::Truncate(5)).times(1));
    let cut = service.raw(&format!("GET {path} HTTP/1.1\r\n\r\n"));
    assert!(cut.contains("Content-Length: 17\r\n") && cut.ends_with("\r\n\r\n0e:00"), "{cut}");

    service.server.fault(Fault::on(path, Action::Close).times(1));
    assert_eq!(service.raw(&format!("GET {path} HTTP/1.1\r\n\r\n")), "");

    service.server.fault(Fault::on(path, Action::Silence).times(1));
    assert_eq!(service.raw(&format!("GET {path} HTTP/1.1\r\n\r\n")), "timeout");
    assert_eq!(service.ask("GET", path, "").0, 200);
    let silent = service.server.requests().into_iter().filter(|r| r.status.is_none()).count();
    assert_eq!(silent, 2);
}

#[test]
fn answers_can_break_off_in_every_way() {
    let service = service();
    let request = service.request(&format!("{SECOND}/local-ipv4s"));
    let break_off = |action| {
        service.server.clear_all();
        service.server.fault(Fault::on("*/local-ipv4s", action));
    };
    break_off(Action::Unmeasured(8));
    let answer = service.raw(&request);
    assert!(answer.ends_with("\r\n\r\n10.0.2.4"), "{answer}");
    assert!(!answer.contains("Content-Length"), "{answer}");
    break_off(Action::Redirect("/latest/meta-data/mac".to_owned()));
    let answer = service.raw(&request);
    assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
    assert!(answer.contains("Location: /latest/meta-data/mac\r\n"), "{answer}");
    break_off(Action::Reset(3));
    let mut stream = TcpStream::connect(service.at).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn an_older_view_may_answer_for_some_keys() {
    let service = service();
    let before = service.server.view(&instance()).unwrap();
    service.server.model().update(|state| {
        let eni = state.enis.get_mut(&eni(2).id).unwrap();
        eni.ipv4.push("10.0.2.9".parse().unwrap());
        eni.ipv6.push("2600:1f16:67f:f202::9".parse().unwrap());
    });
    service.server.fault(Fault::on("*/local-ipv4s", Action::View(before)));
    assert!(!service.get(&format!("{SECOND}/local-ipv4s")).1.contains("10.0.2.9"));
    assert_eq!(service.get(&format!("{SECOND}/ipv6s")).1, "2600:1f16:67f:f202::9");
}

#[test]
fn a_frozen_view_is_stale_until_it_is_thawed() {
    let service = service();
    let key = format!("{SECOND}/local-ipv4s");
    service.server.freeze(&instance());
    service.server.model().update(|state| {
        state.enis.get_mut(&eni(2).id).unwrap().ipv4.push("10.0.2.9".parse().unwrap());
    });
    assert_eq!(service.get(&key).1, "10.0.2.4\n10.0.2.3");
    service.server.thaw(&instance());
    assert_eq!(service.get(&key).1, "10.0.2.4\n10.0.2.3\n10.0.2.9");
}

#[test]
fn a_new_eni_can_be_late_and_arrive_key_by_key() {
    let service = service();
    let id = eni(2).id;
    service.server.hide(&id);
    assert_eq!(service.get(MACS).1, "0e:00:00:00:00:01/");
    assert_eq!(service.get(&format!("{SECOND}/mac")).0, 404);

    service.server.reveal(&id);
    service.server.hide_for(&id, Duration::from_millis(80));
    assert_eq!(service.get(SECOND).0, 404);
    std::thread::sleep(Duration::from_millis(90));
    assert_eq!(service.get(SECOND).0, 200);

    service.server.only_keys(&id, &["mac", "device-number", "ipv4-associations"]);
    service.server.device_zero(&id);
    assert_eq!(service.get(SECOND).1, "device-number\nipv4-associations/\nmac");
    assert_eq!(service.get(&format!("{SECOND}/device-number")).1, "0");
    assert_eq!(service.get(&format!("{SECOND}/local-ipv4s")).0, 404);
    service.server.reveal(&id);
    assert_eq!(service.get(&format!("{SECOND}/device-number")).1, "1");
}

#[test]
fn a_network_card_can_be_there_late_or_never() {
    let service = service();
    let card = |number: u8| {
        let mac = format!("0e:00:00:00:00:{number:02x}");
        service.get(&format!("{MACS}{mac}/network-card"))
    };
    service.server.model().update(|state| {
        state.enis.get_mut(&eni(2).id).unwrap().card = Some(1);
    });
    assert_eq!((card(1).0, card(2)), (404, (200, "1".to_owned())));
    service.server.omit(&eni(2).id, &["network-card"]);
    assert_eq!(card(2).0, 404);
    let listing = service.get(SECOND).1;
    assert!(!listing.contains("network-card") && listing.contains("device-number"), "{listing}");
    service.server.reveal(&eni(2).id);
    assert_eq!(card(2), (200, "1".to_owned()));
}

#[test]
fn every_request_is_logged() {
    let service = service();
    service.get("/latest/meta-data/nowhere");
    let log = service.server.requests();
    let seen: Vec<_> = log.iter().map(|r| (r.method.as_str(), r.path.as_str(), r.status)).collect();
    assert_eq!(
        seen,
        [("PUT", "/latest/api/token", Some(200)), ("GET", "/latest/meta-data/nowhere", Some(404))]
    );
    assert_eq!(service.server.requests_of(&instance(), "*/nowhere").len(), 1);
    service.server.forget_requests();
    assert!(service.server.requests().is_empty());
}

#[test]
fn a_stranger_is_told_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let server = Server::start(Model::default(), vec![listener], None).unwrap();
    let service = Service { server, at };
    assert_eq!(service.get("/latest/meta-data/mac").0, 404);
}

impl Service {
    fn get_v1(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "")
    }

    fn put(&self) -> u16 {
        self.ask("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n").0
    }
}

#[test]
fn where_there_are_no_tokens_nobody_needs_one() {
    let service = service();
    let key = format!("{SECOND}/local-ipv4s");
    for refusal in [404, 405, 501] {
        service.server.set_flavour(Flavour::OnlyV1(refusal));
        assert_eq!(service.put(), refusal);
        assert_eq!(service.get_v1(&key), (200, "10.0.2.4\n10.0.2.3".to_owned()));
        let header = "X-aws-ec2-metadata-token: of-another-cloud\r\n";
        assert_eq!(service.ask("GET", &key, header).0, 200);
    }
    service.server.set_flavour(Flavour::Ec2);
    assert_eq!((service.put(), service.get_v1(&key).0), (200, 401));
}

#[test]
fn openstack_tells_nothing_about_enis() {
    let service = service();
    service.server.set_flavour(Flavour::OpenStack(405));
    assert_eq!(service.put(), 405);
    assert_eq!(service.get_v1("/latest/meta-data/local-ipv4"), (200, "10.0.1.4".to_owned()));
    assert_eq!(service.get_v1("/2009-04-04/meta-data/instance-id").0, 200);
    for absent in ["mac", "network", "network/interfaces/macs/", "ipv6"] {
        assert_eq!(service.get_v1(&format!("/latest/meta-data/{absent}")).0, 404, "{absent}");
    }
    assert_eq!(service.get_v1(SECOND).0, 404);
    assert_eq!(service.get_v1("/latest/dynamic/instance-identity/document").0, 404);
    assert_eq!(service.get_v1("/").1, "1.0\n2009-04-04\nlatest");
}

#[test]
fn snowball_tells_little_with_and_without_a_token() {
    let service = service();
    service.server.set_flavour(Flavour::Snowball);
    let all = "local-hostname\nlocal-ipv4s\nmac\npublic-ipv4s".to_owned();
    assert_eq!(service.get(SECOND), (200, all.clone()));
    assert_eq!(service.get_v1(SECOND), (200, all));
    assert_eq!(service.get(&format!("{SECOND}/device-number")).0, 404);
    assert_eq!(service.get("/latest/meta-data/mac"), (200, "0e:00:00:00:00:01".to_owned()));
    let text = service.raw("GET /latest/meta-data/mac HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
}

#[test]
fn outscale_has_keys_without_values() {
    let service = service();
    service.server.set_flavour(Flavour::Outscale);
    assert_eq!(service.put(), 404);
    for empty in ["ipv6s", "ipv4-prefix", "network-card", "public-hostname"] {
        assert_eq!(service.get_v1(&format!("{SECOND}/{empty}")), (200, String::new()), "{empty}");
        assert!(service.get_v1(SECOND).1.lines().any(|key| key == empty), "{empty}");
    }
    assert_eq!(service.get_v1(&format!("{SECOND}/local-ipv4s")).1, "10.0.2.4\n10.0.2.3");
    assert_eq!(service.get_v1(&format!("{SECOND}/gateway-ipv4")).1, "10.0.2.1");
    assert_eq!(service.get_v1(&format!("{SECOND}/tags")).0, 404);
    // What is hidden stays hidden.
    service.server.hide(&eni(2).id);
    assert_eq!(service.get_v1(&format!("{SECOND}/ipv6s")).0, 404);
}
