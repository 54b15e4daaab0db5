//! Kernel settings and links that keep answers from coming or from going.

use enid_control::Status;
use enid_control::check::{Finding, FindingId, Severity};
use enid_control::status::{Health, Verdict};
use enid_core::object::{Family, Protocol, RuleAction};
use ipnet::IpNet;

use super::scene::{Scene, Settings, Subject, about, add};

/// `arp_ignore`: answer only who is in the same subnet; answer nobody.
const ARP_SAME_SUBNET: i64 = 2;
const ARP_NOBODY: i64 = 8;
/// IPv6 needs links that carry so much.
const LEAST_MTU: u32 = 1280;

/// Everything that the links and their settings say, beside what was found before.
pub(super) fn judge(scene: &Scene, settings: &mut Settings, findings: &mut Vec<Finding>) {
    for subject in &scene.subjects {
        let told = |finding: &Finding| {
            finding.id == FindingId::LinkDown && finding.link.as_ref() == Some(&subject.link.name)
        };
        if !findings.iter().any(told) {
            findings.extend(down(subject));
        }
        missing(subject, findings);
        findings.extend(mark(scene, subject, settings));
        findings.extend(ipv6_off(subject, settings));
        findings.extend(router_not_heard(subject, settings));
        arp(subject, settings, findings);
    }
    if let Some(status) = &scene.status {
        findings.extend(metadata(status, scene));
        findings.extend(not_converged(status));
    }
}

/// A link that no way was found to suffer from.
fn down(subject: &Subject) -> Option<Finding> {
    let (what, remedy) = subject.down()?;
    let finding = subject.finding(FindingId::LinkDown, subject.severity(), what.to_owned());
    Some(Finding { remedy: vec![remedy], ..finding })
}

/// What must be there and enid does not add; with a link that is down IPv6 addresses go by themselves.
fn missing(subject: &Subject, findings: &mut Vec<Finding>) {
    let name = &subject.link.name;
    let down = subject.down().is_some();
    for address in subject.missing.iter().filter(|address| address.is_ipv4() || !down) {
        let (severity, why, remedy) = if subject.managed {
            let net = IpNet::from(*address);
            let subnet = subject.subnets.iter().find(|subnet| subnet.contains(address));
            let length = subnet.map_or(net.prefix_len(), IpNet::prefix_len);
            let why =
                "it is not for enid to add: whoever configured the primary ENI at boot does that";
            (Severity::Broken, why, format!("ip address add {address}/{length} dev {name}"))
        } else {
            let remedy = format!("enictl unhold {}", subject.name);
            (Severity::Risk, "enid leaves the ENI alone", remedy)
        };
        let what = format!("metadata grants it, the link lacks it, and {why}");
        let finding = subject.finding(FindingId::AddressMissing, severity, what);
        add(findings, Finding { address: Some(*address), remedy: vec![remedy], ..finding });
    }
}

/// Answers of containers behind published ports come in by rules about marks, which the reverse
/// path filter looks at only where it is told to.
fn mark(scene: &Scene, subject: &Subject, settings: &mut Settings) -> Option<Finding> {
    let link = &subject.link.name;
    if !publishes(scene, subject) || settings.larger(link, "rp_filter") != Some(1) {
        return None;
    }
    let valid = |settings: &mut Settings, link: &str| {
        settings.get(Family::V4, link, "src_valid_mark") == Some(1)
    };
    if valid(settings, "all") || valid(settings, link) {
        return None;
    }
    let what = "connections to published ports are dropped: rp_filter is 1 and src_valid_mark is 0";
    let finding = subject.finding(FindingId::MarkNotValid, subject.severity(), what.to_owned());
    Some(Finding {
        remedy: vec![format!("sysctl -w net.ipv4.conf.{link}.src_valid_mark=1")],
        ..finding
    })
}

/// Whether answers of containers leave by this ENI where their port is published on it.
pub(super) fn publishes(scene: &Scene, subject: &Subject) -> bool {
    scene.snapshot.rules.iter().any(|seen| {
        let leads = match seen.rule.action {
            RuleAction::Lookup(table) => Some(table) == subject.table,
            RuleAction::Other(_) => false,
        };
        leads && seen.protocol == Protocol::ENID && seen.rule.mark.is_some()
    })
}

fn ipv6_off(subject: &Subject, settings: &mut Settings) -> Option<Finding> {
    let name = &subject.link.name;
    if !subject.ipv6 || subject.link.ipv6 {
        return None;
    }
    let (why, remedy) = match settings.get(Family::V6, name, "disable_ipv6") {
        _ if subject.link.mtu < LEAST_MTU => (
            format!("the link's MTU is {}", subject.link.mtu),
            format!("ip link set dev {name} mtu 1500"),
        ),
        Some(_) => (
            "disable_ipv6 is 1".to_owned(),
            format!("sysctl -w net.ipv6.conf.{name}.disable_ipv6=0"),
        ),
        None => (
            "the kernel was started without it".to_owned(),
            "take ipv6.disable=1 away from the kernel's command line and reboot".to_owned(),
        ),
    };
    let what = format!("metadata grants the ENI IPv6, which is off on its link: {why}");
    let finding = subject.finding(FindingId::Ipv6Off, subject.severity(), what);
    Some(Finding { remedy: vec![remedy], ..finding })
}

/// A kernel that forwards and is to accept advertisements itself does so only with a 2. The other
/// ENIs have a gateway whatever is advertised.
fn router_not_heard(subject: &Subject, settings: &mut Settings) -> Option<Finding> {
    let name = &subject.link.name;
    if !subject.ipv6 || subject.primary == Some(false) || !subject.link.ipv6 {
        return None;
    }
    let forwards = settings.get(Family::V6, name, "forwarding")? == 1;
    if !forwards || settings.get(Family::V6, name, "accept_ra")? != 1 {
        return None;
    }
    let what = "IPv6 is forwarded and accept_ra is 1, so the kernel hears no router here: the \
                default route that it learnt goes, and its own addresses with it";
    let finding = subject.finding(FindingId::RouterNotHeard, Severity::Risk, what.to_owned());
    Some(Finding { remedy: vec![format!("sysctl -w net.ipv6.conf.{name}.accept_ra=2")], ..finding })
}

fn arp(subject: &Subject, settings: &mut Settings, findings: &mut Vec<Finding>) {
    let name = &subject.link.name;
    let Some(ignore) = settings.larger(name, "arp_ignore") else { return };
    for own in subject.addresses.iter().filter(|own| own.addr().is_ipv4()) {
        let why = match ignore {
            ARP_NOBODY => "which answers nobody",
            ARP_SAME_SUBNET if own.prefix_len() == own.max_prefix_len() => {
                "which answers nobody for a /32: the one who asks is not in its subnet"
            }
            _ => continue,
        };
        let remedy = ["all", name].into_iter().filter(|conf| {
            settings.get(Family::V4, conf, "arp_ignore").is_some_and(|value| value > 1)
        });
        let remedy = remedy.map(|conf| format!("sysctl -w net.ipv4.conf.{conf}.arp_ignore=1"));
        let remedy = remedy.collect();
        let what = format!("nobody finds it on its network: arp_ignore is {ignore}, {why}");
        let finding = subject.finding(FindingId::ArpSilent, subject.severity(), what);
        add(findings, Finding { address: Some(own.addr()), remedy, ..finding });
    }
}

fn metadata(status: &Status, scene: &Scene) -> Option<Finding> {
    let metadata = &status.metadata;
    let severity = match (metadata.health, &metadata.endpoint) {
        (Health::Ok, _) => return None,
        (Health::NotRead, _) if metadata.reason.is_none() => return None,
        (Health::NotRead | Health::Failing, None) => Severity::Broken,
        // What was read before stays in force.
        (Health::NotRead | Health::Failing, Some(_)) => Severity::Risk,
    };
    let reason = metadata.reason.as_deref().unwrap_or("there is no answer");
    let what = format!("metadata cannot be read for {} s: {reason}", metadata.since_seconds);
    let endpoint = metadata.endpoint.as_deref().unwrap_or("http://169.254.169.254");
    let by = scene.subjects.iter().find(|subject| subject.primary == Some(true));
    let by = by.map_or_else(String::new, |subject| format!(" --interface {}", subject.link.name));
    let remedy = if reason.contains("403") {
        "aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id INSTANCE"
            .to_owned()
    } else {
        format!(
            "curl -i -m 5{by} -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
             {endpoint}/latest/api/token"
        )
    };
    let finding = about(FindingId::MetadataUnread, severity, what);
    Some(Finding { remedy: vec![remedy, "enictl refresh --wait".to_owned()], ..finding })
}

fn not_converged(status: &Status) -> Option<Finding> {
    let severity = match status.verdict {
        Verdict::Converged => return None,
        Verdict::Waiting => Severity::Note,
        Verdict::NotYet => Severity::Risk,
    };
    let reasons = status.enis.iter().flat_map(|eni| {
        let name = eni.id.as_ref().unwrap_or(&eni.mac);
        eni.reason.iter().chain(&eni.waiting).map(move |why| format!("{name}: {why}"))
    });
    let reason = reasons
        .into_iter()
        .next()
        .or_else(|| status.last_error.as_ref().map(|error| error.message.clone()));
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    let what = format!("enid is not done, for {} s{reason}", status.since_seconds);
    let finding = about(FindingId::Unfinished, severity, what);
    Some(Finding { remedy: vec!["enictl status".to_owned(), "enictl plan".to_owned()], ..finding })
}
