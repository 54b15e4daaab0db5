//! Whether what a script waits for has come about, and what is still in the way.

use std::net::IpAddr;

use enid_control::Awaited;
use enid_control::convert::{self, find, label};
use enid_core::object::Mac;
use enid_core::report::{AddressState, EniReport, EniState, Waiting};
use enid_core::time::Instant;

use crate::pass::Looked;

/// What is still in the way, in sentences; nothing once it has come about.
pub(super) fn missing(what: &Awaited, now: Instant, looked: &Looked) -> Vec<String> {
    match what {
        Awaited::Address(address) => address_missing(*address, now, looked),
        Awaited::Absent(address) => {
            let all = enis(looked, |eni| eni.link.is_some());
            let unread = all.filter_map(|eni| unread(eni, true)).collect::<Vec<_>>();
            if unread.is_empty() { address_present(*address, looked) } else { unread }
        }
        Awaited::Eni(name) => match find(&looked.decision.report, &[], name) {
            Ok(mac) => enis(looked, |eni| eni.mac == mac)
                .flat_map(|eni| incomplete(eni, now, looked))
                .collect(),
            Err(refused) => vec![refused.to_string()],
        },
        Awaited::Online => {
            let held = |eni: &EniReport| matches!(eni.state, EniState::Held(_));
            let here = enis(looked, |eni| eni.link.is_some() && !held(eni));
            let mut waiting: Vec<String> =
                here.flat_map(|eni| incomplete(eni, now, looked)).collect();
            if !enis(looked, |eni| eni.primary).any(|_| true) {
                waiting.push("metadata has not named the primary ENI yet".to_owned());
            }
            waiting
        }
    }
}

fn enis(looked: &Looked, meant: impl Fn(&EniReport) -> bool) -> impl Iterator<Item = &EniReport> {
    looked.decision.report.enis.iter().filter(move |eni| meant(eni))
}

fn address_missing(address: IpAddr, now: Instant, looked: &Looked) -> Vec<String> {
    let granted = enis(looked, |_| true).find_map(|eni| {
        let mut known = eni.addresses.iter();
        let known = known.find(|known| known.address == address)?;
        (!matches!(known.state, AddressState::Leaving(_))).then_some((eni, &known.state))
    });
    let Some((eni, state)) = granted else {
        return vec![format!("metadata does not show {address} on an ENI here")];
    };
    let name = label(eni);
    match state {
        AddressState::Ours | AddressState::Theirs | AddressState::TakenOver => {
            incomplete(eni, now, looked)
        }
        AddressState::Adding => vec![format!("{name}: {address} is not there yet")],
        AddressState::Missing => vec![format!(
            "{name}: {address} is missing; who configures the primary ENI must bring it back"
        )],
        AddressState::Ignored => {
            vec![format!("{name}: {address} is left alone by configuration")]
        }
        AddressState::Elsewhere { link } => vec![format!(
            "{name}: {address} is not added, a route to it leaves by {}",
            looked.name_of(*link)
        )],
        // It was taken out above.
        AddressState::Leaving(_) => Vec::new(),
    }
}

fn address_present(address: IpAddr, looked: &Looked) -> Vec<String> {
    let mut waiting = Vec::new();
    for eni in enis(looked, |_| true) {
        for known in eni.addresses.iter().filter(|known| known.address == address) {
            waiting.push(match &known.state {
                AddressState::Leaving(_) => format!(
                    "{}: {address} leaves when it is proven that metadata lacks it",
                    label(eni)
                ),
                AddressState::Ours
                | AddressState::Theirs
                | AddressState::TakenOver
                | AddressState::Adding
                | AddressState::Missing
                | AddressState::Ignored
                | AddressState::Elsewhere { .. } => {
                    format!("{}: metadata still grants {address}", label(eni))
                }
            });
        }
    }
    if waiting.is_empty() {
        let there = looked.snapshot.addresses.iter().map(|seen| seen.address);
        let links = there.filter(|seen| seen.address == address).map(|seen| seen.link);
        waiting.extend(links.map(|link| format!("{} still has {address}", looked.name_of(link))));
    }
    waiting
}

/// Why the last reading of an ENI says nothing of what the cloud was told before it; one that was not
/// complete still shows what it granted, and not what it did not (`absence`).
fn unread(eni: &EniReport, absence: bool) -> Option<String> {
    let unread = eni.waiting.iter().find(|waiting| match waiting {
        Waiting::Reading(_) => true,
        Waiting::Incomplete(_) | Waiting::FirstReading | Waiting::Unlisted => absence,
        Waiting::Keys(_)
        | Waiting::DeviceNumber
        | Waiting::PrimaryAddress(_)
        | Waiting::NotListed { .. }
        | Waiting::Udev { .. }
        | Waiting::Removals(_)
        | Waiting::Fight { .. } => false,
    });
    unread.map(|why| format!("{}: {why}", label(eni)))
}

/// What keeps an ENI from having all that metadata grants it.
fn incomplete(eni: &EniReport, now: Instant, looked: &Looked) -> Vec<String> {
    let name = label(eni);
    let name_of = |index| looked.name_of(index);
    let why = || {
        let mut why = eni.waiting.iter().map(|waiting| convert::waiting(waiting, now, &name_of));
        why.next().unwrap_or_else(|| "it is not configured yet".to_owned())
    };
    match &eni.state {
        EniState::Managed => {}
        EniState::Held(hold) => return vec![format!("{name}: {hold}")],
        EniState::NoLink => return vec![format!("{name}: no link has its MAC address")],
        EniState::Pending => return vec![format!("{name}: {}", why())],
    }
    if let Some(unread) = unread(eni, false) {
        return vec![unread];
    }
    let lacks =
        |state: &AddressState| matches!(state, AddressState::Adding | AddressState::Missing);
    let mut waiting: Vec<String> = eni
        .addresses
        .iter()
        .filter(|address| lacks(&address.state))
        .map(|address| format!("{name}: {} is not there yet", address.address))
        .collect();
    let remaining = steps_for(eni.mac, looked);
    if waiting.is_empty() && remaining > 0 {
        waiting.push(format!("{name}: {remaining} steps remain"));
    }
    waiting
}

fn steps_for(mac: Mac, looked: &Looked) -> usize {
    let steps = looked.decision.plan.steps().iter();
    steps.filter(|planned| planned.mac == Some(mac)).count()
}
