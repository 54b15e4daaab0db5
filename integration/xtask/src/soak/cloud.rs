//! What the cloud does: ENIs, addresses, delegated prefixes and CIDRs come, go and move.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use vpc::imds::Eni;
use vpc::{EniId, IpNet};

use super::stage::{Soak, v4, v6};

/// Attached beside the primary ENI at most.
const MOST_ENIS: usize = 5;
/// Pinged at most.
const MOST_ADDRESSES: usize = 36;
/// The last parts of secondary addresses.
const FIRST_SECONDARY: u8 = 20;
const SECONDARIES: usize = 24;

/// The number of an ENI's subnet in its addresses.
pub(super) fn subnet(eni: &Eni) -> u8 {
    let four = eni.subnet_v4.map(|net| net.network().octets()[2]);
    let six = || eni.subnet_v6.first().map(|net| (net.network().segments()[3] & 0xff) as u8);
    four.or_else(six).unwrap_or_default()
}

/// The addresses of an ENI, the first of each family first.
pub(super) fn addresses(eni: &Eni) -> Vec<IpAddr> {
    let v4 = eni.ipv4.iter().map(|address| IpAddr::V4(*address));
    v4.chain(eni.ipv6.iter().map(|address| IpAddr::V6(*address))).collect()
}

/// Those that may be taken away.
pub(super) fn secondaries(eni: &Eni) -> Vec<IpAddr> {
    let v4 = eni.ipv4.iter().skip(1).map(|address| IpAddr::V4(*address));
    v4.chain(eni.ipv6.iter().skip(1).map(|address| IpAddr::V6(*address))).collect()
}

/// What is new on an ENI that enid was told to leave alone does not answer.
fn released(soak: &mut Soak, id: &EniId) {
    if soak.released.contains(id) {
        soak.targets.begin_new("released", |target| target.eni == *id);
    }
}

pub(super) fn attach(soak: &mut Soak) -> anyhow::Result<bool> {
    let others = soak.others();
    let free: Vec<_> =
        soak.pool.iter().filter(|id| others.iter().all(|eni| eni.id != **id)).cloned().collect();
    let Some(id) = soak.dice.pick(&free).cloned() else { return Ok(false) };
    if others.len() >= MOST_ENIS {
        return Ok(false);
    }
    let name = format!("ens{}", soak.names);
    soak.names += 1;
    let late = soak.dice.one_in(3).then(|| soak.dice.millis(200, 4000));
    soak.note(format!("{id} is attached as {name}, metadata late by {late:?}"));
    if let Some(late) = late {
        soak.vpc.metadata().hide_for(&id, late);
    }
    soak.change(|soak| soak.vpc.attach(&id, &soak.instance, &name).map(drop))?;
    for address in addresses(&soak.vpc.eni(&id)?) {
        soak.targets.add(address, &id)?;
    }
    released(soak, &id);
    Ok(true)
}

pub(super) fn detach(soak: &mut Soak) -> anyhow::Result<bool> {
    let others = soak.others();
    let Some(eni) = soak.dice.pick(&others).cloned() else { return Ok(false) };
    soak.note(format!("{} is detached", eni.id));
    soak.targets.remove(|target| target.eni == eni.id);
    let link = soak.link_of(&eni)?;
    if let Some(link) = &link {
        soak.disturb_link("its link went", &eni, link);
    }
    soak.change(|soak| soak.vpc.detach(&eni.id))?;
    if let Some(link) = link {
        soak.foreign.retain(|line| !line.ends_with(&format!(" on {}", link.index)));
    }
    soak.taken.retain(|(id, _)| *id != eni.id);
    Ok(true)
}

pub(super) fn assign(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let mut wanted = Vec::new();
    for _ in 0..=soak.dice.below(3) {
        let last = FIRST_SECONDARY + u8::try_from(soak.dice.below(SECONDARIES))?;
        let six = match (eni.subnet_v4.is_some(), eni.subnet_v6.is_empty()) {
            (true, true) => false,
            (false, _) => true,
            (true, false) => soak.dice.one_in(2),
        };
        let address = if six { v6(subnet(&eni), last) } else { v4(subnet(&eni), last) };
        let owned = soak.vpc.model().read(|state| {
            // What is inside a delegated prefix, too.
            state.enis.values().any(|eni| eni.owns(address))
        });
        // An address that is about to go from here may come back; one that was replaced is not
        // enid's to make.
        let taken = soak.taken.iter().any(|(_, taken)| *taken == address);
        if !owned && !taken && !wanted.contains(&address) {
            wanted.push(address);
        }
    }
    if wanted.is_empty() || soak.targets.all.len() + wanted.len() > MOST_ADDRESSES {
        return Ok(false);
    }
    soak.note(format!("{wanted:?} assigned to {}", eni.id));
    soak.change(|soak| soak.vpc.assign_all(&eni.id, &wanted))?;
    for address in wanted {
        soak.targets.add(address, &eni.id)?;
    }
    released(soak, &eni.id);
    Ok(true)
}

pub(super) fn unassign(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let Some(address) = soak.dice.pick(&secondaries(&eni)).copied() else { return Ok(false) };
    soak.note(format!("{address} unassigned from {}", eni.id));
    soak.targets.remove(|target| target.address == address);
    soak.change(|soak| soak.vpc.unassign(&eni.id, address))?;
    Ok(true)
}

pub(super) fn move_address(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(from) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let near: Vec<_> =
        all.iter().filter(|eni| eni.id != from.id && eni.subnet == from.subnet).collect();
    let Some(to) = soak.dice.pick(&near).map(|eni| eni.id.clone()) else { return Ok(false) };
    let Some(address) = soak.dice.pick(&secondaries(&from)).copied() else { return Ok(false) };
    if soak.taken.contains(&(from.id.clone(), address)) {
        return Ok(false);
    }
    soak.note(format!("{address} moves from {} to {to}", from.id));
    soak.targets.moved(address, &to);
    soak.change(|soak| soak.vpc.move_address(address, &from.id, &to))?;
    // Once more: nothing of the time in between may count for the new place.
    soak.targets.moved(address, &to);
    released(soak, &to);
    Ok(true)
}

pub(super) fn delegate(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let held = eni.prefixes_v4.iter().map(|net| IpNet::V4(*net));
    let held: Vec<IpNet> = held.chain(eni.prefixes_v6.iter().map(|net| IpNet::V6(*net))).collect();
    if let Some(prefix) = soak.dice.pick(&held).copied() {
        soak.note(format!("{prefix} is no longer delegated to {}", eni.id));
        soak.change(|soak| soak.vpc.undelegate(&eni.id, prefix))?;
        return Ok(true);
    }
    let number = u8::try_from(1 + soak.dice.below(6))?;
    let six = eni.subnet_v4.is_none() || (!eni.subnet_v6.is_empty() && soak.dice.one_in(2));
    let prefix: IpNet = match (six, v6(subnet(&eni), 0)) {
        (true, IpAddr::V6(base)) => {
            let base = u128::from(base) | u128::from(number) << 48;
            format!("{}/80", Ipv6Addr::from(base)).parse()?
        }
        (true, IpAddr::V4(_)) | (false, _) => {
            let base = Ipv4Addr::new(10, 0, subnet(&eni), 96 + 16 * number);
            format!("{base}/28").parse()?
        }
    };
    let first = prefix.addr();
    if soak.vpc.model().read(|state| state.enis.values().any(|eni| eni.owns(first))) {
        return Ok(false);
    }
    soak.note(format!("{prefix} is delegated to {}", eni.id));
    soak.change(|soak| soak.vpc.delegate(&eni.id, prefix))?;
    Ok(true)
}

pub(super) fn cidr(soak: &mut Soak) -> anyhow::Result<bool> {
    const ALL: [&str; 4] =
        ["10.77.0.0/16", "100.64.0.0/16", "2600:1f16:67f:e100::/56", "2600:1f16:67f:e200::/56"];
    let cidr: IpNet = soak.dice.pick(&ALL).context("there are some")?.parse()?;
    soak.slow = true;
    if soak.cidrs.remove(&cidr) {
        soak.note(format!("the VPC loses {cidr}"));
        soak.change(|soak| soak.vpc.remove_cidr(cidr))?;
    } else {
        soak.note(format!("the VPC gets {cidr}"));
        soak.change(|soak| soak.vpc.add_cidr(cidr))?;
        soak.cidrs.insert(cidr);
    }
    Ok(true)
}

/// The router advertises itself to nobody for a while.
pub(super) fn silent_router(soak: &mut Soak) -> anyhow::Result<bool> {
    const WHAT: &str = "the router is silent";
    if soak.goes_on(WHAT) {
        return Ok(false);
    }
    soak.note(WHAT);
    soak.vpc.router().silence();
    let time = soak.dice.millis(2000, 20_000);
    soak.after(time, WHAT, |soak| {
        soak.vpc.router().speak();
        Ok(())
    });
    Ok(true)
}

/// The cable of an ENI is pulled for a moment.
pub(super) fn cable(soak: &mut Soak) -> anyhow::Result<bool> {
    let others = soak.others();
    let Some(eni) = soak.dice.pick(&others).cloned() else { return Ok(false) };
    let Some(link) = soak.link_of(&eni)? else { return Ok(false) };
    // The fabric knows it by the name that it had at first.
    if link.name != soak.vpc.name_of(&eni.id)? || !link.up {
        return Ok(false);
    }
    soak.note(format!("the cable of {} is pulled", eni.id));
    soak.disturb_link("its cable was pulled", &eni, &link);
    soak.vpc.set_carrier(&eni.id, false)?;
    std::thread::sleep(soak.dice.millis(50, 1500));
    soak.disturb_link("its cable was pulled", &eni, &link);
    soak.vpc.set_carrier(&eni.id, true)?;
    soak.note(format!("the cable of {} is back", eni.id));
    Ok(true)
}
