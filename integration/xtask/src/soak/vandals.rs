//! What others do to enid's objects and beside them.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use vpc::imds::Eni;

use super::cloud::{addresses, secondaries};
use super::kernel::{self, Kernel, Link};
use super::stage::Soak;

/// Objects of others at most.
const MOST_FOREIGN: usize = 24;
/// Changes in one storm; the daemon keeps fewer events.
const STORM: usize = 12_000;

/// The table of an ENI.
pub(super) fn table(eni: &Eni) -> u32 {
    20_000 + 100 * eni.card.unwrap_or_default() + eni.device
}

/// Runs a line of `ip`; whether there was something to do it to. enid is at work beside it.
fn ip(soak: &Soak, line: &str) -> anyhow::Result<bool> {
    let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
    Ok(soak.instance.output(&words)?.code == Some(0))
}

impl Soak {
    /// The link of an ENI, whatever it is called just now.
    pub(super) fn link_of(&self, eni: &Eni) -> anyhow::Result<Option<Link>> {
        let mut links = kernel::links(&self.instance)?;
        let at = links.iter().position(|link| link.mac == eni.mac.to_string());
        Ok(at.map(|at| links.swap_remove(at)))
    }

    fn other_link(&mut self) -> anyhow::Result<Option<(Eni, Link)>> {
        let others = self.others();
        let Some(eni) = self.dice.pick(&others).cloned() else { return Ok(None) };
        Ok(self.link_of(&eni)?.map(|link| (eni, link)))
    }

    /// What an ENI has may be silent for a moment: what it is granted, and what moved away but is
    /// still on its link.
    pub(super) fn disturb_link(&mut self, why: &'static str, eni: &Eni, link: &Link) {
        self.targets.disturb(why, |target| {
            target.eni == eni.id || link.addresses.contains_key(&target.address)
        });
    }

    /// Everything of ENIs beside the primary one may be silent for a moment; nothing excuses that
    /// one.
    fn disturb_others(&mut self, why: &'static str) {
        let primary = self.instance.primary.clone();
        self.targets.disturb(why, |target| target.eni != primary);
    }
}

/// An address that enid made.
pub(super) fn address(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let primary = eni.id == soak.instance.primary;
    let may = if primary { secondaries(&eni) } else { addresses(&eni) };
    let Some(victim) = soak.dice.pick(&may).copied() else { return Ok(false) };
    let Some(link) = soak.link_of(&eni)? else { return Ok(false) };
    let Some(length) = link.addresses.get(&victim) else { return Ok(false) };
    soak.note(format!("vandal: {victim} deleted from {}", link.name));
    let first = addresses(&eni).first() == Some(&victim);
    // With the last address of a family its routes go.
    let whole = first || link.addresses.len() < 3;
    let id = eni.id.clone();
    soak.targets.disturb("its address was deleted", |target| {
        target.address == victim || (whole && target.eni == id)
    });
    let done = ip(soak, &format!("addr del {victim}/{length} dev {}", link.name))?;
    soak.taken.remove(&(eni.id, victim));
    Ok(done)
}

/// A route of enid's.
pub(super) fn route(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((eni, link)) = soak.other_link()? else { return Ok(false) };
    let table = table(&eni);
    let kernel = Kernel::read(&soak.instance)?;
    let routes: Vec<String> = kernel
        .routes()
        .filter(|(own, _)| *own == table)
        .map(|(_, route)| {
            let family =
                if route["dst"].to_string().contains(':') || is_six(route) { "-6" } else { "-4" };
            let kind = route["type"].as_str().filter(|kind| *kind != "unicast").unwrap_or_default();
            let kind = if kind.is_empty() { String::new() } else { format!("{kind} ") };
            let to = route["dst"].as_str().unwrap_or_default();
            format!("{family} route del {kind}{to} table {table} proto 233")
        })
        .collect();
    let Some(line) = soak.dice.pick(&routes).cloned() else { return Ok(false) };
    soak.note(format!("vandal: {line}"));
    soak.disturb_link("a route of it was deleted", &eni, &link);
    ip(soak, &line)
}

fn is_six(route: &Value) -> bool {
    ["gateway", "prefsrc"].iter().any(|name| route[name].to_string().contains(':'))
        || !route["pref"].is_null()
}

/// All that enid has in an ENI's table.
pub(super) fn flush_table(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((eni, link)) = soak.other_link()? else { return Ok(false) };
    let family = if soak.dice.one_in(2) { "-4" } else { "-6" };
    let line = format!("{family} route flush table {} proto 233", table(&eni));
    soak.note(format!("vandal: {line}"));
    soak.disturb_link("its table was flushed", &eni, &link);
    ip(soak, &line)
}

/// A rule of enid's.
pub(super) fn rule(soak: &mut Soak) -> anyhow::Result<bool> {
    let kernel = Kernel::read(&soak.instance)?;
    let rules: Vec<String> = kernel.rules().map(rule_line).collect();
    let Some(line) = soak.dice.pick(&rules).cloned() else { return Ok(false) };
    soak.note(format!("vandal: {line}"));
    soak.disturb_others("a rule was deleted");
    ip(soak, &line)
}

fn rule_line(rule: &Value) -> String {
    let mut line = String::from("rule del");
    let mut add = |word: &str, value: &Value| {
        if let Some(text) = value.as_str() {
            line.push_str(&format!(" {word} {text}"));
        }
    };
    add("iif", &rule["iif"]);
    add("oif", &rule["oif"]);
    add("lookup", &rule["table"]);
    if let (Some(from), Some(length)) = (rule["src"].as_str(), rule["srclen"].as_u64()) {
        line.push_str(&format!(" from {from}/{length}"));
    } else if let Some(from) = rule["src"].as_str().filter(|from| *from != "all") {
        line.push_str(&format!(" from {from}"));
    }
    let family = if rule["src"].to_string().contains(':') { "-6 " } else { "" };
    format!("{family}{line} pref {}", rule["priority"])
}

/// All rules of enid's.
pub(super) fn flush_rules(soak: &mut Soak) -> anyhow::Result<bool> {
    let family = if soak.dice.one_in(2) { "-4" } else { "-6" };
    let line = format!("{family} rule flush proto 233");
    soak.note(format!("vandal: {line}"));
    soak.disturb_others("all rules were deleted");
    ip(soak, &line)
}

/// A link goes down, and up again by that hand or by enid's.
pub(super) fn down(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((eni, link)) = soak.other_link()? else { return Ok(false) };
    let up = soak.dice.one_in(2);
    soak.note(format!("vandal: {} set down{}", link.name, if up { " and up" } else { "" }));
    soak.disturb_link("its link was set down", &eni, &link);
    let done = ip(soak, &format!("link set {} down", link.name))?;
    if up {
        ip(soak, &format!("link set {} up", link.name))?;
    }
    Ok(done)
}

/// A link gets another name; nothing may be lost by that.
pub(super) fn rename(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((_, link)) = soak.other_link()? else { return Ok(false) };
    let name = format!("net{}", soak.names);
    soak.names += 1;
    soak.note(format!("vandal: {} renamed to {name}", link.name));
    ip(soak, &format!("link set {} name {name}", link.name))
}

/// All addresses of a link, whoever made them.
pub(super) fn flush_addresses(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((eni, link)) = soak.other_link()? else { return Ok(false) };
    soak.note(format!("vandal: {} loses all addresses", link.name));
    soak.disturb_link("its addresses were flushed", &eni, &link);
    soak.foreign.retain(|line| {
        !(line.starts_with("address") && line.ends_with(&format!(" on {}", link.index)))
    });
    let done = ip(soak, &format!("addr flush dev {} scope global", link.name))?;
    soak.taken.retain(|(id, _)| *id != eni.id);
    Ok(done)
}

/// The group or the MTU of a link; nothing may be lost by that.
pub(super) fn property(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((_, link)) = soak.other_link()? else { return Ok(false) };
    let what = if soak.dice.one_in(2) { "group 0" } else { "mtu 1400" };
    soak.note(format!("vandal: {} gets {what}", link.name));
    ip(soak, &format!("link set {} {what}", link.name))
}

/// An address of enid's is replaced by the same one without a mark: it is somebody else's then.
pub(super) fn replace_address(soak: &mut Soak) -> anyhow::Result<bool> {
    let Some((eni, link)) = soak.other_link()? else { return Ok(false) };
    let Some(victim) = soak.dice.pick(&secondaries(&eni)).copied() else { return Ok(false) };
    let (true, IpAddr::V4(_)) = (link.addresses.contains_key(&victim), victim) else {
        return Ok(false);
    };
    soak.note(format!("vandal: {victim} replaced on {}", link.name));
    soak.targets.disturb("its address was replaced", |target| target.address == victim);
    let done = ip(soak, &format!("addr replace {victim}/32 dev {}", link.name))?;
    if done {
        soak.taken.insert((eni.id, victim));
    }
    Ok(done)
}

/// Something of somebody else's comes where it is least expected; it must stay.
pub(super) fn foreign(soak: &mut Soak) -> anyhow::Result<bool> {
    if soak.foreign.len() >= MOST_FOREIGN {
        return Ok(false);
    }
    let number = 1 + soak.dice.below(120);
    let attached = soak.attached();
    let Some(eni) = soak.dice.pick(&attached).cloned() else { return Ok(false) };
    let table = table(&eni);
    let line = match soak.dice.below(6) {
        0 => match soak.link_of(&eni)? {
            Some(link) => format!("addr add 192.0.2.{}/32 dev {}", 128 + number, link.name),
            None => return Ok(false),
        },
        1 => format!("rule add pref 20015 from 192.0.2.{number} lookup 77 proto 99"),
        2 => format!("rule add pref 20020 from 192.0.2.{number} lookup {table} proto 99"),
        3 => format!("-6 rule add pref 20010 from 2001:db8:77::{number} lookup main proto 99"),
        4 => format!("route add unreachable 192.0.2.{number}/32 table {table} proto 99"),
        _ => format!("-6 route add 2001:db8:77::{number}/128 dev lab0 table {table} proto 99"),
    };
    soak.note(format!("somebody else: {line}"));
    let done = ip(soak, &line)?;
    soak.foreign = soak.expect_foreign()?;
    Ok(done)
}

impl Soak {
    /// What somebody else made is there, all of it; and what there is now.
    fn expect_foreign(&mut self) -> anyhow::Result<BTreeSet<String>> {
        let there = Kernel::read(&self.instance)?.foreign();
        let lost: Vec<String> = self.foreign.difference(&there).cloned().collect();
        if !lost.is_empty() {
            self.violation(&format!("what somebody else made is gone: {lost:#?}"), None)?;
        }
        Ok(there)
    }
}

/// More events than the daemon keeps, and something of enid's goes among them.
pub(super) fn storm(soak: &mut Soak) -> anyhow::Result<bool> {
    let stopped = soak.dice.one_in(2);
    storm_while(soak, stopped)
}

/// A storm that enid cannot keep up with: what goes among it is lost.
pub(super) fn unheard(soak: &mut Soak) -> anyhow::Result<bool> {
    storm_while(soak, true)
}

fn storm_while(soak: &mut Soak, stopped: bool) -> anyhow::Result<bool> {
    soak.note(format!("a storm of events{}", if stopped { " while enid is stopped" } else { "" }));
    let signal = |soak: &mut Soak, signal| match stopped {
        true => soak.signal(signal),
        false => Ok(()),
    };
    signal(soak, Signal::SIGSTOP)?;
    let lines = (0..STORM).flat_map(|number| {
        let [_, _, high, low] = u32::try_from(number).unwrap_or_default().to_be_bytes();
        let to = format!("198.18.{high}.{low}");
        [
            format!("route add {to} dev lab0 table 77 proto 98"),
            format!("route del {to} dev lab0 table 77 proto 98"),
        ]
    });
    soak.instance.ip_batch(&lines.collect::<Vec<_>>())?;
    match soak.dice.below(4) {
        0 => flush_rules(soak)?,
        1 => flush_table(soak)?,
        2 => address(soak)?,
        _ => down(soak)?,
    };
    if soak.lost_events()? > 0 {
        soak.count("storms of which the kernel dropped events");
    }
    signal(soak, Signal::SIGCONT)?;
    Ok(true)
}
