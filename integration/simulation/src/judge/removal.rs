//! Whether an address may go, and why.

use std::net::IpAddr;
use std::time::Duration;

use enid_core::object::{Address, Family, Mac};
use enid_core::time::Instant;

use crate::counts::Counts;
use crate::judge::{Judge, Promise, Scene, Verdict, broken};

/// How long an operator waits for an address to be dropped.
const DROP: Duration = Duration::from_secs(9);

/// Why an address may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Released,
    Moved,
    Dropped,
    Proven(Duration),
}

impl Judge {
    /// An own address is about to be deleted.
    pub(super) fn removal(
        &mut self,
        scene: &Scene<'_>,
        address: &Address,
        counts: &mut Counts,
    ) -> Verdict {
        let ip = address.address;
        let no = |why: &str| broken(Promise::Removed, format!("{ip} goes although {why}"));
        if scene.vanished(address.link) {
            return Ok(());
        }
        let Some(mac) = scene.mac(address.link) else { return no("its link is no ENI's") };
        if self.primary.is_some_and(|(_, link, first)| (link, first) == (address.link, ip)) {
            return broken(Promise::Primary, format!("{ip} goes"));
        }
        let unmarked = !scene.kernel.state.address_protocols;
        let reason = self.reason(scene, mac, ip);
        counts.situation_if(
            unmarked && reason.is_ok(),
            "an owned address on a kernel without marks is removed",
        );
        match reason {
            Err(why) => no(&why),
            Ok(Reason::Released) => {
                counts.situation("removed: released");
                Ok(())
            }
            Ok(Reason::Moved) => {
                counts.situation("removed: moved");
                Ok(())
            }
            Ok(Reason::Dropped) => {
                counts.situation("removed: dropped");
                Ok(())
            }
            Ok(Reason::Proven(lacking)) => {
                if address.prefix_length < Family::of(ip).host_length() {
                    return no("it was made as the ENI's primary address");
                }
                let prefixes = &self.readings[&mac].latest.prefixes;
                if prefixes.iter().any(|prefix| prefix.contains(&ip)) {
                    return no("it lies in a delegated prefix");
                }
                if scene.config.ignore_addresses.iter().any(|net| net.contains(&ip)) {
                    return no("the configuration says to leave it alone");
                }
                counts.situation(match ip {
                    IpAddr::V4(_) => "removed: proven",
                    IpAddr::V6(_) => "removed: proven (IPv6)",
                });
                self.plan.proven.entry(address.link).or_default().push(lacking);
                Ok(())
            }
        }
    }

    fn reason(&self, scene: &Scene<'_>, mac: Mac, ip: IpAddr) -> Result<Reason, String> {
        if scene.ledger.is_released(mac) {
            return Ok(Reason::Released);
        }
        let Some(readings) = self.readings.get(&mac) else {
            return Err("its ENI was never read".to_owned());
        };
        let family = Family::of(ip);
        let latest = &readings.latest;
        if latest.shown.contains(&ip) {
            return Err("metadata shows it".to_owned());
        }
        let link = |mac: Mac| scene.kernel.state.links.iter().any(|link| link.mac == Some(mac));
        let moved = self.readings.iter().any(|(other, theirs)| {
            *other != mac
                && link(*other)
                && !scene.ledger.is_released(*other)
                && theirs.latest.shown.contains(&ip)
                && theirs.latest.complete.contains(&family)
        });
        if moved && latest.told.contains(&family) {
            return Ok(Reason::Moved);
        }
        let complete = readings.complete.get(&family);
        let granted = readings.granted.get(&ip).copied().unwrap_or_default();
        let after = |from: Instant| complete.into_iter().flatten().filter(move |at| **at > from);
        // A word that was refused must not come true later.
        if let Some(asked) = self.drops.get(&ip).copied()
            && scene.now - asked <= DROP
            && after(asked.max(granted)).next().is_some()
        {
            return Ok(Reason::Dropped);
        }
        readings.proven(ip, &scene.config.removal).map(Reason::Proven)
    }
}
