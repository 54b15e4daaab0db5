//! Promise: whatever the metadata service does, everything that it granted answers throughout,
//! nothing is removed on a reading that is not complete, and what changed meanwhile follows when it
//! is well again.

use std::time::Duration;

use anyhow::{Context as _, bail};
use integration::imds::{Action, Fault};
use integration::vpc::MetadataWay;
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::metadata_stage::{At, IMPATIENT, Stage, refresh};
use crate::users::{PATIENCE, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metadata_faults::a_silent_service_costs_nothing", || live_through(&SILENT)),
        trial("metadata_faults::a_service_that_refuses_costs_nothing", || live_through(&REFUSING)),
        trial("metadata_faults::a_service_that_grants_no_tokens_costs_nothing", || {
            live_through(&TOKENS)
        }),
        trial("metadata_faults::answers_that_break_off_or_are_none_cost_nothing", || {
            live_through(&BROKEN)
        }),
        trial("metadata_faults::lists_of_enis_that_cannot_be_right_cost_nothing", || {
            live_through(&LISTS)
        }),
        trial("metadata_faults::another_instances_answers_cost_nothing", || live_through(&MIXED)),
    ]
}

/// What goes wrong.
struct Trouble {
    name: &'static str,
    begin: fn(&Stage) -> anyhow::Result<()>,
    /// A word of what the status says of it.
    says: &'static str,
    /// Where nothing may be removed while it lasts.
    holds: &'static [At],
}

impl Trouble {
    const fn new(
        name: &'static str,
        says: &'static str,
        begin: fn(&Stage) -> anyhow::Result<()>,
    ) -> Trouble {
        Trouble { name, begin, says, holds: &[At::Second, At::Third] }
    }

    /// Trouble with one ENI only; what is proven of others may happen.
    const fn at(mut self, holds: &'static [At]) -> Trouble {
        self.holds = holds;
        self
    }
}

/// Makes all that is asked for end like this.
fn all(stage: &Stage, action: Action) -> anyhow::Result<()> {
    stage.fault("*", action);
    Ok(())
}

/// The same, but tokens are granted.
fn data(stage: &Stage, action: Action) -> anyhow::Result<()> {
    stage.fault("*/meta-data/*", action);
    Ok(())
}

fn lists(stage: &Stage, action: &Action) -> anyhow::Result<()> {
    for list in ["local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix"] {
        stage.fault(&format!("*/{list}"), action.clone());
    }
    Ok(())
}

/// Tokens that were granted do not count any more, and new ones are not to be had.
fn tokens(stage: &Stage, action: Action) -> anyhow::Result<()> {
    let metadata = stage.vpc.metadata();
    metadata.fault(Fault::on("*/api/token", action).method("PUT").instance(&stage.instance.id));
    metadata.expire_tokens();
    Ok(())
}

/// The top-level key `mac` has another text.
fn mac(stage: &Stage, text: String) -> anyhow::Result<()> {
    stage.fault("*/meta-data/mac", Action::Body(text));
    Ok(())
}

/// The list of MAC addresses has another text.
fn macs(stage: &Stage, text: String) -> anyhow::Result<()> {
    stage.fault("*/interfaces/macs", Action::Body(text));
    Ok(())
}

const SILENT: [Trouble; 4] = [
    Trouble::new("no answers", "no answer in time", |stage| all(stage, Action::Silence)),
    Trouble::new("lost packets", "not reachable", |stage| {
        stage.vpc.set_metadata_way(MetadataWay::Lost)
    }),
    Trouble::new("refused connections", "not reachable", |stage| {
        stage.vpc.set_metadata_way(MetadataWay::Refused)
    }),
    Trouble::new("closed connections", "not reachable", |stage| all(stage, Action::Close)),
];

const REFUSING: [Trouble; 6] = [
    Trouble::new("500", "500", |stage| all(stage, Action::Status(500))),
    Trouble::new("503", "503", |stage| all(stage, Action::Status(503))),
    Trouble::new("429", "429", |stage| all(stage, Action::Status(429))),
    Trouble::new("403", "403", |stage| all(stage, Action::Status(403))),
    Trouble::new("404 for everything", "metadata", |stage| data(stage, Action::Status(404))),
    Trouble::new("redirects", "302", |stage| {
        data(stage, Action::Redirect("/latest/meta-data/instance-id".to_owned()))
    }),
];

const TOKENS: [Trouble; 6] = [
    Trouble::new("403 for tokens", "403", |stage| tokens(stage, Action::Status(403))),
    Trouble::new("500 for tokens", "500", |stage| tokens(stage, Action::Status(500))),
    Trouble::new("no answer to who wants a token", "no answer in time", |stage| {
        tokens(stage, Action::Silence)
    }),
    Trouble::new("an empty token", "token", |stage| tokens(stage, Action::Body(String::new()))),
    Trouble::new("half a token", "not reachable", |stage| tokens(stage, Action::Truncate(9))),
    Trouble::new("tokens that are never good", "401", |stage| data(stage, Action::Status(401))),
];

const BROKEN: [Trouble; 7] = [
    Trouble::new("lists that end in the middle of an address", "local-ipv4s", |stage| {
        // 10.0.2.4, 10.0.2.1 and no more of 10.0.2.15.
        lists(stage, &Action::Truncate("10.0.2.4\n10.0.2.1".len()))
    }),
    Trouble::new("resets in the middle of an address", "local-ipv4s", |stage| {
        lists(stage, &Action::Reset("10.0.2.4\n10.0.2.1".len()))
    }),
    Trouble::new("lists of unknown length that end early", "local-ipv4s", |stage| {
        lists(stage, &Action::Unmeasured("10.0.2.4\n".len()))
    }),
    Trouble::new("answers that end early", "not reachable", |stage| {
        data(stage, Action::Truncate(1))
    }),
    Trouble::new("empty answers", "metadata", |stage| data(stage, Action::Body(String::new()))),
    Trouble::new("empty lists", "local-ipv4s", |stage| lists(stage, &Action::Body(String::new()))),
    Trouble::new("a page of a proxy", "metadata", |stage| {
        data(stage, Action::Body("<html><body>Log in</body></html>".to_owned()))
    }),
];

const LISTS: [Trouble; 10] = [
    Trouble::new("a list without the primary ENI", "lacks the primary", |stage| {
        macs(stage, format!("{}/\n{}/\n", stage.mac(At::Second)?, stage.mac(At::Third)?))
    }),
    Trouble::new("an attached ENI that is not listed", "no longer lists it", |stage| {
        stage.vpc.metadata().hide(stage.eni(At::Second));
        Ok(())
    })
    .at(&[At::Second]),
    Trouble::new("a list of nobody", "lacks the primary", |stage| macs(stage, String::new())),
    Trouble::new("a list that cannot be read", "", |stage| {
        stage.fault("*/interfaces/macs", Action::Status(500));
        Ok(())
    }),
    Trouble::new("a list that is not there", "", |stage| {
        stage.fault("*/interfaces/macs", Action::Status(404));
        Ok(())
    }),
    Trouble::new("no primary ENI", "", |stage| {
        stage.fault("*/meta-data/mac", Action::Status(404));
        Ok(())
    }),
    Trouble::new("a primary ENI without a name", "", |stage| mac(stage, String::new())),
    Trouble::new("another primary ENI", "names another ENI", |stage| {
        mac(stage, stage.mac(At::Second)?)
    }),
    Trouble::new("a primary ENI that is nowhere", "names another ENI", |stage| {
        mac(stage, "0e:ff:ff:ff:ff:01".to_owned())
    }),
    Trouble::new("device numbers that turn to 0", "device-number still reads 0", |stage| {
        stage.vpc.metadata().device_zero(stage.eni(At::Second));
        stage.vpc.metadata().device_zero(stage.eni(At::Third));
        Ok(())
    }),
];

const MIXED: [Trouble; 3] = [
    Trouble::new("another instance's view", "names another ENI", |stage| foreign(stage, "*", 1)),
    Trouble::new("every second answer from another instance", "", |stage| foreign(stage, "*", 2)),
    Trouble::new("another instance's list", "names another ENI", |stage| {
        foreign(stage, "*/mac", 1)?;
        foreign(stage, "*/macs", 1)
    }),
];

/// Answers as another instance's service does.
fn foreign(stage: &Stage, pattern: &str, every: u32) -> anyhow::Result<()> {
    let metadata = stage.vpc.metadata();
    let view = metadata.view(&stage.host.id).context("the host has no metadata")?;
    let fault = Fault::on(pattern, Action::View(view)).instance(&stage.instance.id);
    metadata.fault(fault.every(every));
    Ok(())
}

/// Whatever is wrong, everything stays that was there, and what came and went meanwhile follows
/// when it is over.
fn live_through(troubles: &[Trouble]) -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(IMPATIENT)?;
    let places = [At::Second, At::Third];
    let mut there = Vec::new();
    for at in places {
        there.push((at, stage.comes(at)?));
    }
    let addresses = |list: &[(At, _)]| list.iter().map(|(_, address)| *address).collect::<Vec<_>>();
    stage.recovers("addresses come", &daemon, &addresses(&there), &[])?;
    for trouble in troubles {
        let name = trouble.name;
        (trouble.begin)(&stage).context(name)?;
        refresh(&daemon)?;
        let mut coming = Vec::new();
        for at in places {
            coming.push((at, stage.comes(at)?));
        }
        for (at, address) in &there {
            stage.goes(*at, *address)?;
        }
        is_told(trouble, &daemon)?;
        refresh(&daemon)?;
        let held: Vec<_> =
            there.iter().filter(|(at, _)| trouble.holds.contains(at)).copied().collect();
        stage.stays(Duration::from_millis(500), name, &daemon, &addresses(&held))?;
        stage.mend()?;
        stage.recovers(name, &daemon, &addresses(&coming), &addresses(&there))?;
        there = coming;
    }
    daemon.terminate()
}

/// The status says what is wrong, and that something is waited for.
fn is_told(trouble: &Trouble, daemon: &Daemon) -> anyhow::Result<()> {
    eventually(PATIENCE, &format!("{}: the status tells", trouble.name), daemon, || {
        let said = status(daemon)?;
        if !said.to_string().contains(trouble.says) || said["verdict"] != "waiting" {
            refresh(daemon)?;
            bail!("{said}");
        }
        Ok(())
    })
}
