//! What the guard refuses, and what it lets pass.

use super::*;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::metadata::facts::{EniFacts, Metadata};
use crate::object::{LinkGroup, LinkIndex, Priority, Sysctl};
use crate::observed::{Observed, SeenRoute, SeenRule, Snapshot};
use crate::time::Instant;

const ETH0: LinkIndex = LinkIndex(2);
const ETH1: LinkIndex = LinkIndex(3);
const TABLE: TableId = TableId(20_000);

fn mac(link: LinkIndex) -> Mac {
    Mac([2, 0, 0, 0, 0, link.0.to_le_bytes()[0]])
}

fn link(index: LinkIndex, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        alternative_names: Vec::new(),
        kind: None,
        driver: None,
        mac: Some(mac(index)),
        up: true,
        carrier: true,
        mtu: 9001,
        group: LinkGroup::default(),
        master: None,
        ipv6: true,
        sysctls: std::collections::BTreeMap::new(),
    }
}

fn address(link: LinkIndex, address: &str) -> Address {
    let address = address.parse().unwrap();
    Address { link, address, prefix_length: 32, prefix_route: false, preferred: true }
}

fn route(destination: &str, table: TableId, link: LinkIndex) -> Route {
    Route {
        table,
        destination: destination.parse().unwrap(),
        kind: RouteKind::Unicast,
        gateway: None,
        link: Some(link),
        on_link: false,
        source: None,
        metric: 0,
    }
}

fn rule(source: Option<&str>, oif: Option<&str>, table: TableId) -> Rule {
    Rule {
        source: source.map(|source| source.parse().unwrap()),
        oif: oif.map(str::to_owned),
        ..Rule::lookup(Family::V4, 20_020, table)
    }
}

/// Two ENIs: 10.0.1.4 on the primary one; 10.0.2.4 (ours), 10.0.2.5 (ours, with a lifetime)
/// and 10.0.2.6 (somebody else's) on the other; the primary's table and rule are made.
fn kernel() -> Snapshot {
    let seen = |link, text, protocol, permanent| SeenAddress {
        address: address(link, text),
        protocol,
        permanent,
    };
    let ours = Some(Protocol::ENID);
    let by = |route, protocol| SeenRoute { route, protocol, complete: true };
    let known = |rule, protocol| SeenRule { rule, protocol, complete: true };
    Snapshot {
        links: vec![link(ETH0, "eth0"), link(ETH1, "eth1")],
        addresses: vec![
            seen(ETH0, "10.0.1.4", None, false),
            seen(ETH1, "10.0.2.4", ours, true),
            seen(ETH1, "10.0.2.5", ours, false),
            seen(ETH1, "10.0.2.6", None, true),
        ],
        routes: vec![
            by(route("0.0.0.0/0", TABLE, ETH0), Protocol::ENID),
            by(route("10.9.0.0/16", TABLE, ETH0), Protocol(4)),
            by(route("0.0.0.0/0", TableId::MAIN, ETH0), Protocol::ENID),
        ],
        routers: std::collections::BTreeMap::new(),
        markings: Vec::new(),
        rules: vec![
            known(rule(Some("10.0.1.0/24"), None, TABLE), Protocol::ENID),
            known(rule(Some("10.0.9.0/24"), None, TABLE), Protocol(4)),
        ],
        address_protocols: true,
    }
}

fn judge(snapshot: &Snapshot, metadata: &Metadata, steps: Vec<Step>) -> Option<&'static str> {
    let (config, ledger, udev) = (Config::default(), Ledger::default(), BTreeSet::new());
    let observed = Observed { snapshot, ledger: &ledger };
    let now = Instant::default();
    let facts = Facts { now, config: &config, metadata, observed, udev: &udev };
    check(&Plan::of(steps), &facts).err().map(|refused| refused.why)
}

fn metadata() -> Metadata {
    let eni = |ips: &[&str]| {
        let mut facts = EniFacts::default();
        facts.keys.ipv4s = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        facts
    };
    Metadata {
        primary: Some(mac(ETH0)),
        enis: [(mac(ETH0), eni(&["10.0.1.4"])), (mac(ETH1), eni(&["10.0.2.4", "127.0.0.9"]))]
            .into(),
        ..Metadata::default()
    }
}

fn refused(step: Step, why: &str) {
    assert_eq!(judge(&kernel(), &metadata(), vec![step.clone()]), Some(why), "{step:?}");
}

fn allowed(steps: Vec<Step>) {
    assert_eq!(judge(&kernel(), &metadata(), steps), None);
}

#[test]
fn the_primarys_first_address_is_neither_removed_nor_added() {
    let first = || Object::Address(address(ETH0, "10.0.1.4"));
    refused(Step::Delete(first()), "it removes the primary ENI's first address");
    refused(
        Step::Create(first()),
        "it adds the primary ENI's first address, which is its boot's business",
    );
    let mut marked = kernel();
    marked.addresses[0].protocol = Some(Protocol::ENID);
    marked.addresses[0].permanent = true;
    assert_eq!(
        judge(&marked, &metadata(), vec![Step::Delete(first())]),
        Some("it removes the primary ENI's first address"),
        "whoever made it"
    );
}

#[test]
fn only_own_permanent_addresses_are_removed_and_only_when_the_primary_is_known() {
    let delete = |text| Step::Delete(Object::Address(address(ETH1, text)));
    allowed(vec![delete("10.0.2.4")]);
    let foreign = "it removes an address that enid did not make";
    refused(delete("10.0.2.5"), foreign);
    refused(delete("10.0.2.6"), foreign);
    refused(delete("10.0.2.7"), foreign);
    let unknown = Metadata { primary: None, ..metadata() };
    assert_eq!(
        judge(&kernel(), &unknown, vec![delete("10.0.2.4")]),
        Some("which ENI is the primary one is not known")
    );
}

#[test]
fn an_address_is_added_only_where_metadata_grants_it() {
    let create = |link, text| Step::Create(Object::Address(address(link, text)));
    allowed(vec![create(ETH1, "10.0.2.4")]);
    let granted = "it adds an address that metadata does not grant to this ENI";
    refused(create(ETH0, "10.0.2.4"), granted);
    refused(create(ETH1, "10.0.2.99"), granted);
    refused(create(ETH1, "127.0.0.9"), "it adds an address that no host can have");
}

#[test]
fn routes_and_rules_of_others_are_not_touched() {
    let foreign = || Object::Route(route("10.9.0.0/16", TABLE, ETH0));
    let why = "it changes a route that enid did not make";
    refused(Step::Delete(foreign()), why);
    let new = Object::Route(route("10.9.0.0/16", TABLE, ETH1));
    refused(Step::Replace { old: foreign(), new }, why);
    refused(
        Step::Delete(Object::Rule(rule(Some("10.0.9.0/24"), None, TABLE))),
        "it removes a rule that enid did not make",
    );
}

#[test]
fn tables_that_everybody_shares_are_not_touched_whoever_made_the_route() {
    let why = "it changes a routing table that everybody shares";
    for table in [TableId(0), TableId(253), TableId::MAIN, TableId::LOCAL] {
        refused(Step::Create(Object::Route(route("10.7.0.0/16", table, ETH0))), why);
    }
    let own = Object::Route(route("0.0.0.0/0", TableId::MAIN, ETH0));
    refused(Step::Delete(own), why);
}

#[test]
fn a_rule_that_catches_everybodys_packets_is_not_made() {
    let create = |rule| Step::Create(Object::Rule(rule));
    let catches = "it adds a rule that catches everybody's packets";
    refused(create(rule(None, None, TABLE)), catches);
    refused(create(rule(Some("0.0.0.0/0"), None, TABLE)), catches);
    refused(
        create(rule(Some("10.0.2.0/24"), None, TableId::MAIN)),
        "it adds a rule that sends everything to main",
    );
    refused(
        create(Rule { priority: Priority(100), ..rule(Some("10.0.2.0/24"), None, TABLE) }),
        "it adds a rule outside enid's priorities",
    );
    let blackhole = RuleAction::Other(6);
    refused(
        create(Rule { action: blackhole, ..rule(Some("10.0.2.0/24"), None, TABLE) }),
        "it adds a rule that looks nothing up",
    );
}

#[test]
fn the_path_to_metadata_is_not_cut() {
    let why = "it cuts the primary ENI off from metadata";
    let default = || Object::Route(route("0.0.0.0/0", TABLE, ETH0));
    refused(Step::Delete(default()), why);
    let elsewhere = Object::Route(route("0.0.0.0/0", TABLE, ETH1));
    refused(Step::Replace { old: default(), new: elsewhere }, why);
    let half = Object::Route(route("128.0.0.0/1", TABLE, ETH1));
    refused(Step::Create(half), why);
    let empty = TableId(20_001);
    refused(Step::Create(Object::Rule(rule(Some("10.0.1.4/32"), None, empty))), why);
    refused(Step::Create(Object::Rule(rule(None, Some("eth0"), empty))), why);
    allowed(vec![Step::Create(Object::Rule(rule(Some("10.0.2.0/24"), None, empty)))]);
    allowed(vec![
        Step::Delete(Object::Rule(rule(Some("10.0.1.0/24"), None, TABLE))),
        Step::Delete(default()),
    ]);
}

#[test]
fn a_path_that_others_cut_stops_nothing() {
    let mut cut = kernel();
    cut.routes.retain(|seen| seen.protocol != Protocol::ENID);
    let step = Step::Create(Object::Address(address(ETH1, "10.0.2.4")));
    assert_eq!(judge(&cut, &metadata(), vec![step]), None);
}

#[test]
fn links_are_not_taken_down_and_the_primarys_is_left_as_it_is() {
    let set = |link, from, to| Step::Set { link, from, to };
    refused(set(ETH1, Some(Setting::Up), None), "it takes a link down");
    refused(set(ETH1, None, None), "it changes nothing");
    let group = Setting::Group(LinkGroup(7));
    refused(set(ETH1, None, Some(group)), "it puts a link into a group that is not enid's");
    let primary = "it changes the primary ENI's link";
    refused(set(ETH0, None, Some(Setting::Mtu(1500))), primary);
    refused(set(ETH0, None, Some(Setting::Sysctl(Sysctl::AcceptRaPrefix, 0))), primary);
    allowed(vec![set(ETH1, None, Some(Setting::Mtu(1500)))]);
}
