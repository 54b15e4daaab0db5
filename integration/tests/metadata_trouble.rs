//! Promise: an ENI that comes while metadata fails or is not settled is configured as soon as it is
//! described completely, nothing wrong is made, and the status says what is waited for.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::ensure;
use integration::imds::{Action, Fault};
use integration::vpc::{Config, EniSpec, Pinger, Vpc};
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::metadata_stage::{v4, v6};
use crate::pair::{FIRST, PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metadata_trouble::expired_tokens_are_not_even_noticed", expired_tokens),
        trial("metadata_trouble::a_stale_view_is_caught_up_with", stale_view),
        trial("metadata_trouble::an_eni_attached_while_it_fails_works_afterwards", || {
            works_afterwards(&FAILING)
        }),
        trial("metadata_trouble::an_eni_attached_to_wrong_answers_works_afterwards", || {
            works_afterwards(&WRONG)
        }),
        trial("metadata_trouble::an_eni_that_is_not_settled_works_afterwards", || {
            works_afterwards(&UNSETTLED)
        }),
        trial("metadata_trouble::an_answer_that_was_asked_for_ends_the_pause", pause_ends),
        trial("metadata_trouble::keys_that_arrive_one_by_one_are_named", one_by_one),
        trial("metadata_trouble::an_eni_that_is_listed_late_works_by_itself", listed_late),
        trial("metadata_trouble::ipv6_addresses_that_come_late_keep_nothing_waiting", ipv6_late),
        trial("metadata_trouble::older_links_and_a_vpn_do_not_hide_it", older_links),
    ]
}

const LATER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 6);

/// Removals need no patience: only completeness protects.
pub(crate) const IMPATIENT: &str = "poll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n\
    [links]\nudev = \"never\"\nvirtual = true\n";

/// Nobody has told yet which link is the primary ENI's: two others are older, and a VPN takes what is
/// not bound.
fn older_links() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    pair.instance.ip_batch(&[
        "link add v0 index 2 type veth peer name v1 index 3".to_owned(),
        "link set v0 up".to_owned(),
        "link set v1 up".to_owned(),
        "route add 0.0.0.0/1 dev v0".to_owned(),
        "route add 128.0.0.0/1 dev v0".to_owned(),
    ])?;
    let daemon = Daemon::ready(&pair.instance, "")?;
    comes_to_rest(&daemon)?;
    answers(&pair.host, SECOND)
}

/// The simulation's links are virtual; an ENI that is listed late is expected like hardware.
const EXPECTING: &str = "[links]\nudev = \"never\"\nvirtual = true\n";

/// What goes wrong, and a word of what the status says of it.
struct Trouble {
    name: &'static str,
    begin: fn(&Pair),
    says: &'static str,
}

fn fault(pair: &Pair, pattern: &str, action: Action) {
    let fault = Fault::on(pattern, action).instance(&pair.instance.id);
    pair.vpc.metadata().fault(fault);
}

fn fault_on_second(pair: &Pair, key: &str, body: &str) {
    let mac = pair.vpc.eni(&pair.second).map(|eni| eni.mac.to_string()).unwrap_or_default();
    fault(pair, &format!("*/macs/{mac}{key}"), Action::Body(body.to_owned()));
}

const FAILING: [Trouble; 5] = [
    Trouble {
        name: "silence",
        begin: |pair| fault(pair, "*", Action::Silence),
        says: "no answer in time",
    },
    Trouble { name: "503", begin: |pair| fault(pair, "*", Action::Status(503)), says: "503" },
    Trouble { name: "403", begin: |pair| fault(pair, "*", Action::Status(403)), says: "403" },
    Trouble {
        name: "401 for every token",
        begin: |pair| fault(pair, "*meta-data*", Action::Status(401)),
        says: "401",
    },
    Trouble {
        name: "connections that close",
        begin: |pair| fault(pair, "*", Action::Close),
        says: "not reachable",
    },
];

const WRONG: [Trouble; 6] = [
    Trouble {
        name: "truncated addresses",
        begin: |pair| fault(pair, "*/local-ipv4s", Action::Truncate(4)),
        says: "local-ipv4s",
    },
    Trouble {
        name: "empty addresses",
        begin: |pair| fault(pair, "*/local-ipv4s", Action::Body(String::new())),
        says: "local-ipv4s",
    },
    Trouble {
        name: "empty answers",
        begin: |pair| fault(pair, "*meta-data*", Action::Body(String::new())),
        says: "metadata",
    },
    Trouble {
        name: "a page of a proxy",
        begin: |pair| {
            fault(pair, "*/local-ipv4s", Action::Body("<html>Welcome</html>".to_owned()));
        },
        says: "local-ipv4s",
    },
    Trouble {
        name: "one garbled entry",
        begin: |pair| fault_on_second(pair, "/local-ipv4s", "10.0.2.4\n10.0.2,5\n"),
        says: "10.0.2,5",
    },
    Trouble {
        name: "addresses of nobody",
        begin: |pair| {
            let body = "10.0.2.4\n127.0.0.1\n169.254.169.254\n224.0.0.1\n10.0.2.1\n10.9.9.9\nx\n";
            fault_on_second(pair, "/local-ipv4s", body);
        },
        says: "127.0.0.1",
    },
];

const UNSETTLED: [Trouble; 4] = [
    Trouble {
        name: "a MAC address that is not listed",
        begin: |pair| pair.vpc.metadata().hide(&pair.second),
        // "no longer lists it", or "does not list it yet".
        says: "list",
    },
    Trouble {
        name: "a list without the primary ENI",
        begin: |pair| {
            let mac = pair.vpc.eni(&pair.second).map(|eni| eni.mac.to_string());
            let body = format!("{}/\n", mac.unwrap_or_default());
            fault(pair, "*/interfaces/macs", Action::Body(body));
        },
        says: "lacks the primary",
    },
    Trouble {
        name: "a listing without addresses",
        begin: |pair| {
            let keys = ["device-number", "interface-id", "mac", "subnet-ipv4-cidr-block", "vpc-id"];
            pair.vpc.metadata().only_keys(&pair.second, &keys);
        },
        says: "local-ipv4s",
    },
    Trouble {
        name: "device-number 0",
        begin: |pair| pair.vpc.metadata().device_zero(&pair.second),
        says: "device-number",
    },
];

fn end(pair: &Pair) {
    pair.vpc.metadata().clear_all();
    pair.vpc.metadata().reveal(&pair.second);
}

pub(crate) fn refresh(daemon: &Daemon) -> anyhow::Result<()> {
    // Whether it converges is looked at elsewhere.
    daemon.enictl().run(&["refresh"]).map(drop)
}

/// Every request so far was answered.
pub(crate) fn none_missed(pinger: &Pinger) -> anyhow::Result<()> {
    let report = pinger.until_now();
    ensure!(report.lost == 0 && report.refused == 0 && report.answered > 0, "{report:?}");
    Ok(())
}

/// An ENI that comes meanwhile is left alone, and configured when it is described completely.
fn works_afterwards(troubles: &[Trouble]) -> anyhow::Result<()> {
    for trouble in troubles {
        let (pair, name) = (Pair::build()?, trouble.name);
        let mut daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
        let pinger = pair.ping_from_host(FIRST)?;
        (trouble.begin)(&pair);
        pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
        eventually(PATIENCE, &format!("{name}: the status tells"), &daemon, || {
            let said = status(&daemon)?;
            ensure!(said.to_string().contains(trouble.says), "{said}");
            ensure!(said["verdict"] == "waiting", "{said}");
            Ok(())
        })?;
        let shown = daemon.enictl().run(&["status"])?;
        ensure!(shown.code == Some(3), "{shown:?}");
        let partly = matches!(name, "one garbled entry" | "addresses of nobody");
        if partly {
            let links = pair.instance.run(&["ip", "addr"])?;
            for wrong in ["169.254.169.254", "10.9.9.9", "224.0.0.1", "10.0.2.1/", "10.0.2.5"] {
                ensure!(!links.contains(wrong), "{links}");
            }
        } else {
            holds(Duration::from_millis(500), name, &daemon, || {
                ensure!(pair.table()?.is_empty(), "it has routes");
                let link = pair.instance.ip_json(&["addr", "show", "ens6"])?;
                let list = link[0]["addr_info"].to_string();
                ensure!(!list.contains("10.0.2."), "it has an address: {list}");
                Ok(())
            })?;
        }
        end(&pair);
        refresh(&daemon)?;
        pair.comes_to_work("ens6", &daemon)?;
        comes_to_rest(&daemon)?;
        none_missed(&pinger)?;
        daemon.terminate()?;
    }
    Ok(())
}

/// After a 403 enid asks again after minutes only, but not once an operator had an answer.
fn pause_ends() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed(IMPATIENT)?;
    let is = |health: &str| {
        eventually(PATIENCE, &format!("metadata is {health}"), &daemon, || {
            let said = status(&daemon)?;
            ensure!(said["metadata"]["health"] == health, "{said}");
            Ok(())
        })
    };
    fault(&pair, "*", Action::Status(403));
    is("failing")?;
    end(&pair);
    refresh(&daemon)?;
    is("ok")?;
    pair.vpc.assign(&pair.second, LATER, None)?;
    eventually(PATIENCE, "an address comes by itself", &daemon, || answers(&pair.host, LATER))?;
    daemon.terminate()
}

fn expired_tokens() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed(IMPATIENT)?;
    let before = picture(&pair.instance)?;
    for n in 5..10 {
        pair.vpc.metadata().expire_tokens();
        let address = Ipv4Addr::new(10, 0, 2, n);
        pair.vpc.assign(&pair.second, address, None)?;
        eventually(PATIENCE, "an address comes", &daemon, || answers(&pair.host, address))?;
        pair.vpc.unassign(&pair.second, address)?;
        eventually(PATIENCE, "it goes", &daemon, || same(&before, &picture(&pair.instance)?))?;
    }
    ensure!(!daemon.log().contains("cannot be read"), "{}", daemon.log());
    daemon.terminate()
}

fn stale_view() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed(IMPATIENT)?;
    let before = picture(&pair.instance)?;
    pair.vpc.metadata().freeze(&pair.instance.id);
    pair.vpc.assign(&pair.second, LATER, None)?;
    holds(Duration::from_secs(1), "nothing is guessed", &daemon, || {
        same(&before, &picture(&pair.instance)?)
    })?;
    pair.vpc.metadata().thaw(&pair.instance.id);
    eventually(PATIENCE, "the address comes", &daemon, || answers(&pair.host, LATER))?;
    pair.vpc.metadata().freeze(&pair.instance.id);
    pair.vpc.unassign(&pair.second, LATER)?;
    std::thread::sleep(Duration::from_secs(1));
    pair.vpc.metadata().thaw(&pair.instance.id);
    eventually(PATIENCE, "it goes", &daemon, || same(&before, &picture(&pair.instance)?))?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn one_by_one() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, IMPATIENT)?;
    let keys =
        ["mac", "vpc-id", "device-number", "interface-id", "local-ipv4s", "subnet-ipv4-cidr-block"];
    pair.vpc.metadata().only_keys(&pair.second, &keys[..1]);
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    for shown in 1..keys.len() {
        pair.vpc.metadata().only_keys(&pair.second, &keys[..shown]);
        eventually(PATIENCE, &format!("{:?} are known", &keys[..shown]), &daemon, || {
            let waiting = pair.second_status(&daemon)?["waiting"].to_string();
            ensure!(waiting.contains("metadata still lacks"), "{waiting}");
            for lacking in keys[shown..].iter().filter(|key| **key != "vpc-id") {
                ensure!(waiting.contains(lacking), "{waiting}");
            }
            for there in &keys[..shown] {
                ensure!(!waiting.contains(&format!("{there},")), "{waiting}");
            }
            Ok(())
        })?;
        ensure!(pair.table()?.is_empty(), "it was configured too early");
    }
    pair.vpc.metadata().only_keys(&pair.second, &keys);
    pair.comes_to_work("ens6", &daemon)?;
    pair.vpc.metadata().reveal(&pair.second);
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

fn listed_late() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, EXPECTING)?;
    let pinger = pair.ping_from_host(FIRST)?;
    pair.vpc.metadata().hide_for(&pair.second, Duration::from_secs(4));
    pair.vpc.attach(&pair.second, &pair.instance, "ens6")?;
    ensure!(pair.works("ens6").is_err(), "nobody can know it yet");
    let waits = pair.second_status(&daemon)?["waiting"].to_string();
    ensure!(waits.contains("does not list it yet"), "{waits}");
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    none_missed(&pinger)?;
    daemon.terminate()
}

/// At the event everything of a new ENI is there but its IPv6 addresses.
fn ipv6_late() -> anyhow::Result<()> {
    let config = Config::default()
        .dual_subnet("10.0.1.0/24", "2600:1f16:67f:f201::/64")
        .dual_subnet("10.0.2.0/24", "2600:1f16:67f:f202::/64");
    let vpc = Vpc::new(config)?;
    let instance = vpc.instance("main", EniSpec::new([v4(1, 4), v6(1, 4)]))?;
    let host = vpc.instance("host", EniSpec::new([v4(1, 99), v6(1, 99)]))?;
    let second = vpc.create_eni(EniSpec::new([v4(2, 4), v6(2, 4)]))?;
    let mut daemon = Daemon::ready(&instance, IMPATIENT)?;
    vpc.metadata().omit(&second, &["ipv6s"]);
    vpc.attach(&second, &instance, "ens6")?;
    eventually(PATIENCE, "IPv4 works", &daemon, || answers(&host, v4(2, 4)))?;
    comes_to_rest(&daemon)?;
    ensure!(answers(&host, v6(2, 4)).is_err(), "nobody can know it yet");
    vpc.metadata().reveal(&second);
    eventually(PATIENCE, "IPv6 works by itself", &daemon, || answers(&host, v6(2, 4)))?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}
