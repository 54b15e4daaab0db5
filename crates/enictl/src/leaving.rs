//! How far the proof for a removal is, and what keeps others from being removed at all.

use std::fmt::Write as _;

use enid_control::status::{Departure, Kept, KeptAddress, Leaving, StopKind};

use crate::status::LISTED;
use crate::text::{clean, wrap};

/// How far the proof is, in a line that leaves room for an address.
pub(crate) fn leaving(leaving: &Leaving) -> String {
    match leaving.cause {
        Departure::Moved => {
            let to = leaving.moved_to.as_deref().map_or_else(|| "another ENI".to_owned(), clean);
            return format!("leaving: moves to {to} with the next pass");
        }
        Departure::Dropped if leaving.proven => {
            return "leaving: dropped by the operator, goes with the next pass".to_owned();
        }
        Departure::Dropped => {
            return "leaving: dropped by the operator, goes when a fresh reading lacks it"
                .to_owned();
        }
        Departure::Unassigned if leaving.proven => {
            return "leaving: proven, goes with the next pass".to_owned();
        }
        Departure::Unassigned => {}
    }
    let then = if leaving.stops.is_empty() { "; then it goes" } else { "" };
    format!(
        "leaving: lacking in {} of {} readings, {} s of {} s{then}",
        leaving.confirmations.min(leaving.needed),
        leaving.needed,
        leaving.lacking_seconds.min(leaving.grace_seconds),
        leaving.grace_seconds
    )
}

/// What else there is to say of a removal, a line each.
pub(crate) fn conditions(out: &mut String, leaving: &Leaving, next_poll_ms: Option<u64>) {
    if leaving.proven {
        return;
    }
    if let (Some(going), Some(of)) = (leaving.mass_going, leaving.mass_of) {
        let text = format!(
            "{going} of its {of} secondaries and prefixes would go at once: the long grace applies"
        );
        wrap(out, "      mass removal: ", &text);
    }
    for stop in &leaving.stops {
        match stop.kind {
            StopKind::Unconfirmed => {
                let due = next_poll_ms.map(|left| format!(", due in {} s", left.div_ceil(1000)));
                let text = format!("a reading that confirms it{}", due.unwrap_or_default());
                wrap(out, "      waits for ", &text);
            }
            StopKind::Failed | StopKind::Unlisted | StopKind::Identity | StopKind::Unread => {
                wrap(out, "      stands still: ", &stop.text);
            }
        }
    }
}

/// Why an address that metadata does not show stays.
fn kept(kept: &KeptAddress) -> String {
    match (kept.why, kept.prefix) {
        (Kept::Foreign, _) => "not enid's".to_owned(),
        (Kept::Dynamic, _) => "dynamic: whoever gave it a lifetime renews it".to_owned(),
        (Kept::LinkLocal, _) => "link-local".to_owned(),
        (Kept::Primary, _) => "made as the primary address, which never changes".to_owned(),
        (Kept::Ignored, _) => "ignored by configuration".to_owned(),
        (Kept::InPrefix, Some(prefix)) => format!("inside the delegated prefix {prefix}"),
        (Kept::InPrefix, None) => "inside a delegated prefix".to_owned(),
    }
}

/// Addresses that metadata does not show and that are never removed.
pub(crate) fn kept_addresses(out: &mut String, addresses: &[KeptAddress], all: bool) {
    let listed = if all || addresses.len() <= LISTED + 1 { addresses.len() } else { LISTED };
    for address in &addresses[..listed] {
        let text = format!("not in metadata, stays: {}", kept(address));
        wrap(out, &format!("    {}  ", address.address), &text);
    }
    if listed < addresses.len() {
        let more = addresses.len() - listed;
        let _ = writeln!(out, "    and {more} more that stay (--all lists them)");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use enid_control::status::{Address, AddressState, Cidr, Eni, Role, Stop, Verdict};

    use super::*;
    use crate::status::tests::{address, plain, primary, status};

    /// In the middle of its proof.
    pub(crate) fn proof() -> Leaving {
        Leaving {
            cause: Departure::Unassigned,
            moved_to: None,
            confirmations: 2,
            needed: 3,
            lacking_seconds: 21,
            grace_seconds: 30,
            mass: false,
            mass_going: None,
            mass_of: None,
            paused: false,
            stops: Vec::new(),
            proven: false,
        }
    }

    fn stop(kind: StopKind, text: &str) -> Stop {
        Stop { kind, keys: Vec::new(), text: text.to_owned() }
    }

    pub(crate) fn unread() -> Stop {
        stop(StopKind::Unread, "ipv6s could not be read completely")
    }

    #[test]
    fn every_condition_of_a_removal_is_told() {
        let unconfirmed = stop(StopKind::Unconfirmed, "the reading that confirms it is due");
        let leaving = [
            proof(),
            Leaving { stops: vec![unread()], ..proof() },
            // More than enough of both, and still not confirmed.
            Leaving { confirmations: 8, lacking_seconds: 35, stops: vec![unconfirmed], ..proof() },
            Leaving {
                grace_seconds: 300,
                mass: true,
                mass_going: Some(4),
                mass_of: Some(6),
                ..proof()
            },
            Leaving { proven: true, ..proof() },
            Leaving {
                cause: Departure::Moved,
                moved_to: Some("02:00:00:00:00:07".to_owned()),
                proven: true,
                ..proof()
            },
            Leaving { cause: Departure::Dropped, ..proof() },
        ];
        let kept = [
            (Kept::Foreign, None),
            (Kept::Dynamic, None),
            (Kept::LinkLocal, None),
            (Kept::Primary, None),
            (Kept::Ignored, None),
            (Kept::InPrefix, Some("10.0.1.32/28".parse().unwrap())),
        ];
        let eni = Eni {
            addresses: leaving
                .iter()
                .enumerate()
                .map(|(n, leaving)| Address {
                    leaving: Some(leaving.clone()),
                    ..address(&format!("10.0.1.2{n}"), Role::Secondary, AddressState::Leaving)
                })
                .collect(),
            kept: kept
                .into_iter()
                .enumerate()
                .map(|(n, (why, prefix))| KeptAddress {
                    address: format!("10.0.1.3{n}").parse().unwrap(),
                    why,
                    prefix,
                })
                .collect(),
            cidrs: vec![Cidr { cidr: "10.9.0.0/16".parse().unwrap(), leaving: proof() }],
            ..primary()
        };
        let text = plain(&status(Verdict::Waiting, vec![eni]));
        let (_, details) = text.split_once("gateway 10.0.0.1\n    ").unwrap();
        assert_eq!(
            details,
            "\
10.0.1.20  secondary  leaving: lacking in 2 of 3 readings, 21 s of 30 s; then it goes
    10.0.1.21  secondary  leaving: lacking in 2 of 3 readings, 21 s of 30 s
      stands still: ipv6s could not be read completely
    10.0.1.22  secondary  leaving: lacking in 3 of 3 readings, 30 s of 30 s
      waits for a reading that confirms it, due in 3 s
    10.0.1.23  secondary  leaving: lacking in 2 of 3 readings, 21 s of 300 s; then it goes
      mass removal: 4 of its 6 secondaries and prefixes would go at once: the long grace applies
    10.0.1.24  secondary  leaving: proven, goes with the next pass
    10.0.1.25  secondary  leaving: moves to 02:00:00:00:00:07 with the next pass
    10.0.1.26  secondary  leaving: dropped by the operator, goes when a fresh reading lacks it
    10.0.1.30  not in metadata, stays: not enid's
    10.0.1.31  not in metadata, stays: dynamic: whoever gave it a lifetime renews it
    10.0.1.32  not in metadata, stays: link-local
    10.0.1.33  not in metadata, stays: made as the primary address, which never changes
    10.0.1.34  not in metadata, stays: ignored by configuration
    10.0.1.35  not in metadata, stays: inside the delegated prefix 10.0.1.32/28
    10.9.0.0/16  of the VPC  leaving: lacking in 2 of 3 readings, 21 s of 30 s; then it goes
"
        );
    }
}
