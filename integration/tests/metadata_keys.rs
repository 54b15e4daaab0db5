//! Promise: one key that cannot be read, whichever it is and on whichever ENI, takes nothing away
//! there, and keeps nothing from happening elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault, FaultId};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::metadata_stage::{At, IMPATIENT, Stage, refresh};
use crate::users::{PATIENCE, answers};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metadata_keys::each_key_that_removals_rest_on_may_fail_in_every_way", || {
            in_turn(&DECISIVE, &FAILING, true)
        }),
        trial("metadata_keys::each_other_key_may_fail_in_every_way", || {
            in_turn(&OTHERS, &FAILING, false)
        }),
        trial("metadata_keys::each_key_that_removals_rest_on_may_get_no_answer", || {
            in_turn(&UNANSWERED, &SILENT, true)
        }),
        trial("metadata_keys::an_eni_that_cannot_be_read_holds_up_no_other", others_go_on),
        trial("metadata_keys::an_entry_that_is_cut_short_is_no_other_address", cut_short),
    ]
}

/// The keys of each ENI that one or the other trial has fail, one after the other; "" is its listing.
type Keys = [(At, &'static [&'static str]); 3];

/// A removal takes that these are read.
const DECISIVE: Keys = [
    (At::Primary, &["", "device-number", "interface-id", "mac", "local-ipv4s", "ipv6s"]),
    (
        At::Second,
        &[
            "local-ipv4s",
            "ipv6s",
            "ipv4-prefix",
            "ipv6-prefix",
            "",
            "device-number",
            "interface-id",
            "mac",
        ],
    ),
    (At::Third, &["interface-id", "mac", "ipv6s", "", "device-number"]),
];

const OTHERS: Keys = [
    (
        At::Primary,
        &[
            "subnet-id",
            "vpc-id",
            "subnet-ipv4-cidr-block",
            "subnet-ipv6-cidr-blocks",
            "vpc-ipv4-cidr-blocks",
            "vpc-ipv6-cidr-blocks",
        ],
    ),
    (
        At::Second,
        &[
            "vpc-ipv6-cidr-blocks",
            "subnet-id",
            "vpc-id",
            "subnet-ipv4-cidr-block",
            "subnet-ipv6-cidr-blocks",
            "vpc-ipv4-cidr-blocks",
        ],
    ),
    (
        At::Third,
        &["vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks", "subnet-ipv6-cidr-blocks", "vpc-id"],
    ),
];

/// Each costs seconds: on one ENI or the other, each kind of key is among them.
const UNANSWERED: Keys = [
    (At::Primary, &["device-number", "", "local-ipv4s", "mac", "ipv6s"]),
    (At::Second, &["local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix", "interface-id"]),
    (At::Third, &["", "interface-id", "mac", "ipv6s", "device-number"]),
];

/// Metadata is read when that is asked for, so that no reading spans two faults: it might be complete.
const WHEN_ASKED: &str = "prefixes = \"local\"\npoll_interval = \"1h\"\n\
    [removal]\nconfirmations = 1\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

const FAILING: [fn() -> Action; 4] = [
    || Action::Status(404),
    || Action::Status(500),
    || Action::Body(String::new()),
    || Action::Body("<html>10.0.2.4</html>\n".to_owned()),
];

const SILENT: [fn() -> Action; 1] = [|| Action::Silence];

/// Fails one key of each ENI at a time, each in every way, while an address of each ENI is unassigned.
fn in_turn(keys: &Keys, ways: &[fn() -> Action], removes: bool) -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(WHEN_ASKED)?;
    let mut faults = Vec::new();
    let mut leaving: Vec<IpAddr> = Vec::new();
    for (at, _) in keys {
        leaving.push(stage.comes(*at)?);
    }
    stage.recovers("addresses come", &daemon, &leaving, &[])?;
    let rounds = keys.iter().map(|(_, keys)| keys.len()).max().unwrap_or_default();
    for (round, way) in (0..rounds).flat_map(|round| (0..ways.len()).map(move |way| (round, way))) {
        let failing: Vec<Failing> = keys
            .iter()
            .enumerate()
            .map(|(n, (at, keys))| {
                let way = ways[(way + n) % ways.len()]();
                Failing::new(&stage, *at, keys[round % keys.len()], way)
            })
            .collect::<Result<_, _>>()?;
        let next = failing.iter().map(|failing| failing.begin(&stage)).collect();
        for fault in std::mem::replace(&mut faults, next) {
            stage.vpc.metadata().clear(fault);
        }
        strikes(&stage, &daemon, &failing)?;
        if removes && (round, way) == (0, 0) {
            for ((at, _), address) in keys.iter().zip(&leaving) {
                stage.goes(*at, *address)?;
            }
            strikes(&stage, &daemon, &failing)?;
        }
        let what = format!("{failing:?}");
        stage.stays(Duration::from_millis(20), &what, &daemon, &leaving)?;
        stage.none_missed().context(what)?;
    }
    let mut coming = Vec::new();
    for (at, _) in keys {
        coming.push(stage.comes(*at)?);
    }
    stage.mend()?;
    let gone = if removes { leaving.as_slice() } else { &[] };
    stage.recovers("every key is read", &daemon, &coming, gone)?;
    daemon.terminate()
}

/// One key of one ENI, and what becomes of who asks for it.
#[derive(Debug)]
struct Failing {
    pattern: String,
    how: Action,
}

impl Failing {
    fn new(stage: &Stage, at: At, key: &str, how: Action) -> anyhow::Result<Failing> {
        let mac = stage.mac(at)?;
        Ok(Failing { pattern: format!("*/macs/{mac}/{key}").trim_end_matches('/').to_owned(), how })
    }

    fn begin(&self, stage: &Stage) -> FaultId {
        let fault = Fault::on(&self.pattern, self.how.clone()).instance(&stage.instance.id);
        stage.vpc.metadata().fault(fault)
    }
}

/// A whole reading has met the faults, and what follows from it has been done.
fn strikes(stage: &Stage, daemon: &Daemon, failing: &[Failing]) -> anyhow::Result<()> {
    let count = |failing: &Failing| {
        stage.vpc.metadata().requests_of(&stage.instance.id, &failing.pattern).len()
    };
    let before: Vec<usize> = failing.iter().map(count).collect();
    eventually(PATIENCE, &format!("{failing:?} is met"), daemon, || {
        let refreshed = refresh(daemon)?;
        ensure!(refreshed["timed_out"] == false, "{refreshed}");
        for (failing, before) in failing.iter().zip(&before) {
            ensure!(count(failing) > *before, "nobody asked for {}", failing.pattern);
        }
        Ok(())
    })
}

fn others_go_on() -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(IMPATIENT)?;
    let leaving = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.recovers("addresses come", &daemon, &leaving, &[])?;
    let list = Failing::new(&stage, At::Second, "local-ipv4s", Action::Status(500))?;
    let fault = list.begin(&stage);
    strikes(&stage, &daemon, &[list])?;
    let coming = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.goes(At::Second, leaving[0])?;
    stage.goes(At::Third, leaving[1])?;
    eventually(PATIENCE, "the third ENI follows", &daemon, || {
        refresh(&daemon)?;
        ensure!(!stage.has(leaving[1])?, "{} is still there", leaving[1]);
        answers(&stage.host, coming[1])
    })?;
    stage.stays(Duration::from_millis(300), "the second waits", &daemon, &leaving[..1])?;
    ensure!(!stage.has(coming[0])?, "nobody can know {}", coming[0]);
    stage.vpc.metadata().clear(fault);
    stage.recovers("the second follows", &daemon, &coming, &leaving)?;
    daemon.terminate()
}

/// What is left of a list is no shorter list, and what is left of an address may be another host's:
/// 10.0.2.1 is left of 10.0.2.15.
fn cut_short() -> anyhow::Result<()> {
    let (stage, mut daemon) = Stage::set(IMPATIENT)?;
    let list = |rest: &str| Action::Body(format!("10.0.2.4\n10.0.2.15\n{rest}"));
    let (line, part) = ("10.0.2.4\n".len(), "10.0.2.4\n10.0.2.1".len());
    for action in [
        list("10.0.2"),
        list("10.0.2."),
        list("10.0.2.1\n10.0.2."),
        list("10.0.2.300"),
        list("10.0.2.7/32"),
        list("10.0.2.07"),
        Action::Truncate(part),
        Action::Truncate(line),
        Action::Reset(part),
        Action::Reset(line),
        Action::Unmeasured(part),
        Action::Unmeasured(line),
        Action::Redirect(format!(
            "/latest/meta-data/network/interfaces/macs/{}/mac",
            stage.mac(At::Second)?
        )),
        Action::Redirect("/latest/meta-data/local-ipv4".to_owned()),
    ] {
        let failing = Failing::new(&stage, At::Second, "local-ipv4s", action)?;
        let (fault, what) = (failing.begin(&stage), format!("{failing:?}"));
        strikes(&stage, &daemon, &[failing])?;
        stage.stays(Duration::from_millis(100), &what, &daemon, &[])?;
        stage.vpc.metadata().clear(fault);
    }
    stage.recovers("the list is whole", &daemon, &[], &[])?;
    daemon.terminate()
}
