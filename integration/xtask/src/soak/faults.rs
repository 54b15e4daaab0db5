//! What metadata does wrong for a while.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vpc::imds::{Action, Eni, Fault};

use super::readings::{GRACE, key};
use super::stage::Soak;

/// A fault of the service lasts from one to the other, in milliseconds.
const TIMES: (usize, usize) = (300, 9000);
/// The keys of an ENI that may fail each by itself.
const KEYS: [&str; 11] = [
    "",
    "/device-number",
    "/interface-id",
    "/mac",
    "/local-ipv4s",
    "/ipv6s",
    "/ipv4-prefix",
    "/ipv6-prefix",
    "/subnet-ipv4-cidr-block",
    "/vpc-ipv4-cidr-blocks",
    "/vpc-ipv6-cidr-blocks",
];

/// Sets a fault and takes it back after a while.
fn strike(
    soak: &mut Soak,
    what: &'static str,
    pattern: &str,
    action: Action,
) -> anyhow::Result<bool> {
    if soak.goes_on(what) {
        return Ok(false);
    }
    soak.readings.absorb(&soak.vpc, &soak.instance);
    let time = soak.dice.millis(TIMES.0, TIMES.1);
    soak.note(format!("{what} for {time:?}: {pattern} {action:?}"));
    let garbles = matches!(action, Action::Truncate(_) | Action::Body(_) | Action::Delay(_));
    soak.readings.garbled += usize::from(garbles);
    soak.slow |= action == Action::Status(403);
    let fault = Fault::on(pattern, action).instance(&soak.instance.id);
    let id = soak.vpc.metadata().fault(fault);
    soak.after(time, what, move |soak| {
        soak.vpc.metadata().clear(id);
        soak.readings.absorb(&soak.vpc, &soak.instance);
        soak.readings.garbled -= usize::from(garbles);
        Ok(())
    });
    Ok(true)
}

/// The whole service fails.
pub(super) fn service(soak: &mut Soak) -> anyhow::Result<bool> {
    let (what, pattern, action) = match soak.dice.below(8) {
        0 | 1 => ("metadata answers 503", "*", Action::Status(503)),
        2 => ("metadata is silent", "*", Action::Silence),
        3 => ("metadata closes connections", "*", Action::Close),
        4 => ("metadata refuses with 403", "*", Action::Status(403)),
        5 => ("metadata refuses every token", "*meta-data*", Action::Status(401)),
        6 => ("metadata gives no token", "*/api/token", Action::Status(503)),
        _ => ("metadata is slow", "*", Action::Delay(Duration::from_millis(700))),
    };
    strike(soak, what, pattern, action)
}

/// One key of one ENI, or of all, fails.
pub(super) fn one_key(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let Some(name) = soak.dice.pick(&KEYS).copied() else { return Ok(false) };
    let whose = if soak.dice.one_in(4) { "*".to_owned() } else { eni.mac.to_string() };
    let action = match soak.dice.below(7) {
        0 => Action::Truncate(soak.dice.below(9)),
        1 => Action::Body("<html>Welcome</html>".to_owned()),
        2 => Action::Body(String::new()),
        3 => Action::Silence,
        4 => Action::Close,
        5 => Action::Status(404),
        _ => Action::Status(500),
    };
    // A listing that says nothing, or a key that the listing has and that is not there, is no
    // proof of anything.
    strike(soak, "metadata fails at one key", &format!("*/macs/{whose}{name}"), action)
}

/// The list of ENIs lacks one, perhaps the primary.
pub(super) fn listing(soak: &mut Soak) -> anyhow::Result<bool> {
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    if eni.id == soak.instance.primary {
        let macs = all.iter().filter(|other| other.id != eni.id);
        let body: String = macs.map(|eni| format!("{}/\n", eni.mac)).collect();
        let what = "metadata does not list the primary ENI";
        return strike(soak, what, "*/interfaces/macs", Action::Body(body));
    }
    view(soak, "metadata does not tell of an ENI", eni, |soak, eni| {
        soak.vpc.metadata().hide(&eni.id);
    })
}

/// An ENI is told of like one that has just been attached.
pub(super) fn unsettled(soak: &mut Soak) -> anyhow::Result<bool> {
    let others = soak.others();
    let Some(eni) = soak.dice.pick(&others).cloned() else { return Ok(false) };
    if soak.dice.one_in(2) {
        return view(soak, "metadata says device-number 0", eni, |soak, eni| {
            soak.vpc.metadata().device_zero(&eni.id);
        });
    }
    view(soak, "metadata lacks most keys of an ENI", eni, |soak, eni| {
        let keys = ["device-number", "interface-id", "mac", "vpc-id"];
        soak.vpc.metadata().only_keys(&eni.id, &keys);
    })
}

fn view(
    soak: &mut Soak,
    what: &'static str,
    eni: Eni,
    begin: impl FnOnce(&mut Soak, &Eni),
) -> anyhow::Result<bool> {
    // One view an ENI: ending one would end the other.
    if soak.later.iter().any(|later| later.what.starts_with("metadata ")) {
        return Ok(false);
    }
    let time = soak.dice.millis(TIMES.0, TIMES.1);
    soak.note(format!("{what} for {time:?}: {}", eni.id));
    begin(soak, &eni);
    soak.after(time, what, move |soak| {
        soak.vpc.metadata().reveal(&eni.id);
        Ok(())
    });
    Ok(true)
}

/// What is told is what was true a while ago.
pub(super) fn stale(soak: &mut Soak) -> anyhow::Result<bool> {
    const WHAT: &str = "metadata is stale";
    if soak.goes_on(WHAT) || soak.goes_on("metadata forges a list") {
        return Ok(false);
    }
    let time = soak.dice.millis(500, 12_000);
    soak.note(format!("{WHAT} for {time:?}"));
    soak.change(|soak| {
        soak.vpc.metadata().freeze(&soak.instance.id);
        soak.readings.freeze();
        Ok(())
    })?;
    soak.after(time, WHAT, |soak| {
        soak.change(|soak| {
            soak.vpc.metadata().thaw(&soak.instance.id);
            soak.readings.thaw();
            Ok(())
        })
    });
    Ok(true)
}

/// A list lacks an address that is granted: for less than the grace, or for longer.
pub(super) fn forged(soak: &mut Soak) -> anyhow::Result<bool> {
    const WHAT: &str = "metadata forges a list";
    if soak.goes_on(WHAT) || soak.goes_on("metadata is stale") {
        return Ok(false);
    }
    let all = soak.attached();
    let Some(eni) = soak.dice.pick(&all).cloned() else { return Ok(false) };
    let told: Vec<IpAddr> = soak.readings.of(&eni.id).into_iter().collect();
    let first =
        [eni.ipv4.first().map(|a| IpAddr::V4(*a)), eni.ipv6.first().map(|a| IpAddr::V6(*a))];
    let may_lack: Vec<IpAddr> =
        told.iter().copied().filter(|address| !first.contains(&Some(*address))).collect();
    let Some(lacking) = soak.dice.pick(&may_lack).copied() else { return Ok(false) };
    let name = key(lacking);
    let list: BTreeSet<IpAddr> = told
        .iter()
        .copied()
        .filter(|address| key(*address) == name && *address != lacking)
        .collect();
    // The order matters: the first is the primary one.
    let truth = super::cloud::addresses(&eni);
    let body: Vec<String> =
        truth.iter().filter(|address| list.contains(address)).map(ToString::to_string).collect();
    let short = usize::try_from(GRACE.as_millis())?;
    let time = match soak.dice.below(3) {
        0 => soak.dice.millis(short, 2 * short),
        _ => soak.dice.millis(200, short),
    };
    soak.note(format!("{WHAT} for {time:?}: {} lacks {lacking}", eni.id));
    let fault = Fault::on(&format!("*/macs/{}/{name}", eni.mac), Action::Body(body.join("\n")));
    let fault = fault.instance(&soak.instance.id);
    let mut id = None;
    soak.change(|soak| {
        id = Some(soak.vpc.metadata().fault(fault));
        soak.readings.forge(&eni.id, name, list);
        Ok(())
    })?;
    soak.after(time, WHAT, move |soak| {
        soak.change(|soak| {
            if let Some(id) = id {
                soak.vpc.metadata().clear(id);
            }
            soak.readings.unforge(&eni.id, name);
            Ok(())
        })
    });
    Ok(true)
}

/// No token is good any more.
pub(super) fn expired(soak: &mut Soak) -> anyhow::Result<bool> {
    soak.note("all tokens expire");
    soak.vpc.metadata().expire_tokens();
    Ok(true)
}

/// An hour-long outage in small: nothing is told until quiet is asked for.
pub(super) fn outage(soak: &mut Soak) -> anyhow::Result<bool> {
    const WHAT: &str = "metadata is away";
    if soak.goes_on(WHAT) {
        return Ok(false);
    }
    soak.note(WHAT);
    let from = Instant::now();
    let fault = Fault::on("*", Action::Status(503)).instance(&soak.instance.id);
    let id = soak.vpc.metadata().fault(fault);
    soak.after(Duration::from_secs(3600), WHAT, move |soak| {
        soak.vpc.metadata().clear(id);
        soak.note(format!("metadata was away for {:?}", from.elapsed()));
        Ok(())
    });
    Ok(true)
}
