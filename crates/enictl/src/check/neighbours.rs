//! Other programs that manage the network, recognised from what runs and from what they leave.

use std::collections::BTreeSet;
use std::net::IpAddr;

use enid_control::check::{Finding, FindingId, Severity};
use enid_core::object::{Protocol, Rule, RuleAction, TableId};

use super::host::Host;
use super::scene::{Scene, Subject, about};
use super::settings::publishes;

const NETWORKD: &str = "systemd-networkd";
/// Where enid's own drop-in would be, had the package not brought it.
const DROP_IN: &str = "/etc/systemd/networkd.conf.d/50-enid.conf";

/// The programs that are looked for; tailscale keeps to tables and priorities of its own.
pub(super) const LOOKED_FOR: u64 = 8;

/// Everybody who is found.
pub(super) fn find(scene: &Scene, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(networkd(host));
    findings.extend(network_manager(scene, host));
    findings.extend(nm_cloud_setup(scene, host));
    findings.extend(vpc_cni(scene, host));
    findings.extend(cilium(scene));
    findings.extend(cloud_netconfig(scene, host));
    findings.extend(ec2_net_utils(scene, host));
    findings.extend(published_ports(scene, host));
    findings
}

fn finding(id: FindingId, severity: Severity, what: &str, remedy: &[&str]) -> Finding {
    let remedy = remedy.iter().map(|&line| line.to_owned()).collect();
    Finding { remedy, ..about(id, severity, what.to_owned()) }
}

/// It removes rules of all links, and routes of those that it configures, when it starts.
fn networkd(host: &Host) -> Option<Finding> {
    const KEYS: [&str; 2] = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"];
    if !host.runs(NETWORKD) {
        return None;
    }
    let no = |value: &str| ["no", "n", "false", "f", "0", "off"].contains(&&*value.to_lowercase());
    let said = KEYS.map(|key| host.setting("networkd.conf", "Network", key));
    let wrong = KEYS
        .iter()
        .zip(&said)
        .filter(|(_, said)| !said.as_ref().is_some_and(|(value, _)| no(value)));
    let wrong: Vec<&str> = wrong.map(|(key, _)| *key).collect();
    if !wrong.is_empty() {
        let what = format!(
            "systemd-networkd removes enid's routes and rules whenever it starts or configures a \
             link anew: {} is not set to no",
            wrong.join(", ")
        );
        // The one that says yes by itself would win over a drop-in of ours that sorts before it.
        let says =
            said.iter().flatten().find(|(value, _)| !no(value)).map(|(_, path)| host.shown(path));
        let remedy = [
            "mkdir -p /etc/systemd/networkd.conf.d".to_owned(),
            format!("printf '[Network]\\n{}=no\\n{}=no\\n' > {DROP_IN}", KEYS[0], KEYS[1]),
            "systemctl restart systemd-networkd".to_owned(),
        ];
        let first = says.iter().map(|file| format!("take {} out of {file}", wrong.join(", ")));
        let finding = about(FindingId::Networkd, Severity::Risk, what);
        return Some(Finding { remedy: first.chain(remedy).collect(), file: says, ..finding });
    }
    let started = host.started(NETWORKD)?;
    let later = said
        .iter()
        .flatten()
        .find(|(_, path)| Host::changed(path).is_some_and(|changed| changed > started));
    let (_, path) = later?;
    let what = "systemd-networkd has not read this file yet: it does so when it starts, and once \
                more takes enid's rules away then";
    let id = FindingId::NetworkdNotRestarted;
    let finding = finding(id, Severity::Risk, what, &["systemctl restart systemd-networkd"]);
    Some(Finding { file: Some(host.shown(path)), ..finding })
}

/// It leaves a link that enid configured alone until somebody tells it to configure it.
fn network_manager(scene: &Scene, host: &Host) -> Vec<Finding> {
    if !host.runs("NetworkManager") {
        return Vec::new();
    }
    let others = scene.subjects.iter().filter(|subject| subject.primary == Some(false));
    let managed = others.filter(|subject| {
        let file = format!("run/NetworkManager/devices/{}", subject.link.index.0);
        host.says(&file, "managed=true")
    });
    let of = |subject: &Subject| {
        let link = &subject.link.name;
        let what = "NetworkManager manages this ENI, too: `nmcli connection up` or `device reapply` \
                    takes enid's addresses away for a moment";
        let finding = subject.finding(FindingId::NetworkManager, Severity::Note, what.to_owned());
        Finding { remedy: vec![format!("nmcli device set {link} managed no")], ..finding }
    };
    managed.map(of).collect()
}

fn nm_cloud_setup(scene: &Scene, host: &Host) -> Option<Finding> {
    const TIMER: &str = "nm-cloud-setup.timer";
    let rules = foreign(scene).any(|rule| (30_200..30_500).contains(&rule.priority.0));
    if !rules && !host.enabled(TIMER) {
        return None;
    }
    let what = "nm-cloud-setup manages addresses and rules, too (priorities 30200 to 30499): it \
                reads metadata every five minutes and configures links anew";
    let remedy = ["systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service"];
    Some(finding(FindingId::NmCloudSetup, Severity::Risk, what, &remedy))
}

fn vpc_cni(scene: &Scene, host: &Host) -> Option<Finding> {
    let rules = foreign(scene).any(|rule| rule.mark == Some((0x80, 0x80)));
    // To a pod, and from one; the rule about marks is there only with external SNAT.
    let main = RuleAction::Lookup(TableId::MAIN);
    let to_pod = foreign(scene).any(|rule| {
        rule.priority.0 == 512
            && rule.action == main
            && rule.destination.is_some_and(|net| net.prefix_len() == net.max_prefix_len())
    });
    if !rules && !to_pod && !host.runs("aws-k8s-agent") {
        return None;
    }
    let what = "the VPC CNI is at work here: ENIs and secondary addresses are its, for pods";
    let remedy = [
        "systemctl disable --now enid",
        "or tag each ENI that is to be enid's with node.k8s.amazonaws.com/no_manage=true and set \
         ignore_addresses to the pods' subnets in /etc/enid/enid.toml",
    ];
    Some(finding(FindingId::VpcCni, Severity::Risk, what, &remedy))
}

fn cilium(scene: &Scene) -> Option<Finding> {
    let link = scene.snapshot.links.iter().find(|link| link.name == "cilium_host")?;
    let what = "Cilium is at work here: with its ENI mode secondary addresses are its, for pods";
    let remedy = [
        "systemctl disable --now enid",
        "or, where Cilium does not use the ENI mode, set neighbours.cni = \"ignore\" in \
         /etc/enid/enid.toml",
    ];
    let finding = finding(FindingId::Cilium, Severity::Risk, what, &remedy);
    Some(Finding { link: Some(link.name.clone()), ..finding })
}

/// Its tables are numbered by the links.
fn cloud_netconfig(scene: &Scene, host: &Host) -> Option<Finding> {
    let its: BTreeSet<TableId> =
        scene.subjects.iter().map(|subject| TableId(30_000 + subject.link.index.0)).collect();
    let rules = foreign(scene).any(|rule| match rule.action {
        RuleAction::Lookup(table) => its.contains(&table),
        RuleAction::Other(_) => false,
    });
    let routes = scene.snapshot.routes.iter().any(|seen| its.contains(&seen.route.table));
    if !rules && !routes && !host.enabled("cloud-netconfig.timer") {
        return None;
    }
    let what = "cloud-netconfig manages addresses and rules, too (tables 30000 and the link's \
                number): one failed answer of metadata and it removes every secondary address";
    let remedy = ["systemctl disable --now cloud-netconfig.timer cloud-netconfig.service"];
    Some(finding(FindingId::CloudNetconfig, Severity::Risk, what, &remedy))
}

/// Its rules have the number of their table, and it writes files for systemd-networkd.
fn ec2_net_utils(scene: &Scene, host: &Host) -> Option<Finding> {
    const TABLES: std::ops::Range<u32> = 10_000..20_000;
    let rules = foreign(scene).any(|rule| match rule.action {
        RuleAction::Lookup(table) => TABLES.contains(&table.0) && table.0 == rule.priority.0,
        RuleAction::Other(_) => false,
    });
    let file = host.files("run/systemd/network", "70-", ".network").into_iter().next();
    let units = ["policy-routes@", "refresh-policy-routes@"].iter().any(|unit| host.has_unit(unit));
    if !rules && !units {
        return None;
    }
    let what = "amazon-ec2-net-utils manages addresses and rules, too (tables and priorities from \
                10000): when addresses change it has systemd-networkd configure the link anew";
    let remedy = [
        "systemctl mask policy-routes@.service refresh-policy-routes@.service \
         refresh-policy-routes@.timer",
        "systemctl stop 'refresh-policy-routes@*'",
        "then docs/neighbours.md, \"Handing over from amazon-ec2-net-utils\", from step 2",
    ];
    let finding = finding(FindingId::Ec2NetUtils, Severity::Risk, what, &remedy);
    Some(Finding { file, ..finding })
}

/// Docker's proxies say on which address each port is published.
fn published_ports(scene: &Scene, host: &Host) -> Vec<Finding> {
    let ports: BTreeSet<(IpAddr, u16)> = host
        .arguments("docker-proxy")
        .iter()
        .filter_map(|words| {
            let after = |flag: &str| {
                let place = words.iter().position(|word| word == flag)?;
                words.get(place + 1)
            };
            Some((after("-host-ip")?.parse().ok()?, after("-host-port")?.parse().ok()?))
        })
        .collect();
    let others = scene.subjects.iter().filter(|subject| subject.primary == Some(false));
    let of = |subject: &Subject| {
        let own = |ip: &IpAddr| subject.addresses.iter().any(|net| net.addr() == *ip);
        // Docker translates IPv6 only where it is told to; a proxy answers otherwise.
        let here = ports.iter().filter(|(ip, _)| ip.is_ipv4() && (ip.is_unspecified() || own(ip)));
        let here: Vec<&(IpAddr, u16)> = here.collect();
        let first = here.first()?;
        if publishes(scene, subject) {
            return None;
        }
        let numbers: BTreeSet<u16> = here.iter().map(|(_, port)| *port).collect();
        let numbers: Vec<String> = numbers.iter().map(u16::to_string).collect();
        let what = format!(
            "containers' ports are published on this ENI and answer nobody there, because the \
             answers leave by the primary ENI: {}",
            numbers.join(", ")
        );
        // Who published it on this address wants it there.
        let meant = here.iter().any(|(ip, _)| own(ip));
        let severity = if meant { subject.severity() } else { Severity::Note };
        let finding = subject.finding(FindingId::PublishedPorts, severity, what);
        let file = "/etc/enid/enid.d/published-ports.toml".to_owned();
        let remedy = vec![
            format!(
                "printf '[[eni]]\\nmatch = {{ id = \"{}\" }}\\npublished_ports = true\\n' >> {file}",
                subject.name
            ),
            "enictl reload".to_owned(),
        ];
        let address = Some(first.0).filter(|_| meant);
        Some(Finding { address, file: Some(file), remedy, ..finding })
    };
    others.filter_map(of).collect()
}

/// Rules that enid did not make.
fn foreign(scene: &Scene) -> impl Iterator<Item = &Rule> {
    let rules = scene.snapshot.rules.iter().filter(|seen| seen.protocol != Protocol::ENID);
    rules.map(|seen| &seen.rule)
}
