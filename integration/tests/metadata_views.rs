//! Promise: a view that lags behind is believed only after the grace, one that changes its mind is not
//! believed at all, and what is wrong is told in a few lines and asked for ever more rarely.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::metadata_stage::{At, IMPATIENT, Stage, refresh};
use crate::pair::Pair;
use crate::users::{PATIENCE, answers};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metadata_views::what_an_older_view_lacks_goes_only_after_the_grace", older_view),
        trial("metadata_views::what_a_frozen_view_shows_stays", frozen_view),
        trial("metadata_views::what_every_second_reading_shows_stays", alternating),
        trial("metadata_views::keys_of_different_age_are_each_believed", ages),
        trial("metadata_views::what_is_wrong_is_told_in_a_few_lines", few_lines),
    ]
}

const GRACE: Duration = Duration::from_secs(8);
const PATIENT: &str = "prefixes = \"local\"\npoll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 3\ngrace = \"8s\"\nmass_grace = \"8s\"\n";
/// Every reading that lacks something counts, and three in a row are enough.
const COUNTING: &str = "prefixes = \"local\"\npoll_interval = \"100ms\"\n\
    [removal]\nconfirmations = 3\ngrace = \"0s\"\nmass_grace = \"0s\"\n";

/// Tells the instance what was so, of what the pattern matches.
fn tell(stage: &Stage, pattern: &str, action: Action, every: u32) {
    let fault = Fault::on(pattern, action).instance(&stage.instance.id).every(every);
    stage.vpc.metadata().fault(fault);
}

fn view(stage: &Stage) -> anyhow::Result<Action> {
    let view = stage.vpc.metadata().view(&stage.instance.id);
    Ok(Action::View(view.context("the instance has no metadata")?))
}

fn older_view() -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(PATIENT)?;
    let old = view(&stage)?;
    let later = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.recovers("addresses come", &daemon, &later, &[])?;
    let pingers = later.map(|address| stage.pinger(address));

    // Shorter than the grace, twice: the second starts the count anew.
    for _ in 0..2 {
        tell(&stage, "*/meta-data/*", old.clone(), 1);
        stage.stays(GRACE / 2, "an older view", &daemon, &later)?;
        stage.mend()?;
        refresh(&daemon)?;
        stage.stays(Duration::from_millis(100), "the newest view", &daemon, &later)?;
    }
    stage.recovers("the view is new", &daemon, &later, &[])?;
    for pinger in pingers {
        let report = pinger?.stop();
        ensure!(report.lost == 0 && report.refused == 0, "{report:?}");
    }

    let began = Instant::now();
    tell(&stage, "*/meta-data/*", old, 1);
    eventually(PATIENCE, "what it lacks goes", &daemon, || {
        stage.untouched()?;
        for address in later {
            ensure!(!stage.has(address)?, "{address} is still there");
        }
        Ok(())
    })?;
    ensure!(began.elapsed() >= GRACE, "gone after {:?}", began.elapsed());
    stage.none_missed()?;
    stage.mend()?;
    stage.recovers("the view is new again", &daemon, &later, &[])?;
    daemon.terminate()
}

fn frozen_view() -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(IMPATIENT)?;
    let leaving = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.recovers("addresses come", &daemon, &leaving, &[])?;
    stage.vpc.metadata().freeze(&stage.instance.id);
    let coming = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.goes(At::Second, leaving[0])?;
    stage.goes(At::Third, leaving[1])?;
    for _ in 0..3 {
        refresh(&daemon)?;
        stage.stays(Duration::from_millis(500), "a frozen view", &daemon, &leaving)?;
    }
    for address in coming {
        ensure!(!stage.has(address)?, "nobody can know {address}");
    }
    stage.mend()?;
    stage.recovers("the view is true", &daemon, &coming, &leaving)?;
    daemon.terminate()
}

/// Readings that are complete and lack something come between others that show it.
fn alternating() -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(COUNTING)?;
    let old = view(&stage)?;
    let there = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.recovers("addresses come", &daemon, &there, &[])?;
    let pingers = there.map(|address| stage.pinger(address));
    let second = format!("*/macs/{}", stage.mac(At::Second)?);
    let third = format!("*/macs/{}", stage.mac(At::Third)?);

    tell(&stage, &format!("{second}/local-ipv4s"), old.clone(), 2);
    tell(&stage, &format!("{third}/ipv6s"), old, 2);
    outlasts(&stage, &daemon, &format!("{third}/ipv6s"), &there)?;
    stage.mend()?;
    stage.recovers("every list is new", &daemon, &there, &[])?;

    // The listing itself lacks the family, or the prefixes, every second time.
    let listing = "device-number\ninterface-id\nlocal-ipv4s\nmac\nsubnet-id\n\
        subnet-ipv4-cidr-block\nsubnet-ipv6-cidr-blocks\nvpc-id\nvpc-ipv4-cidr-blocks\n\
        vpc-ipv6-cidr-blocks\n";
    tell(&stage, &second, Action::Body(listing.to_owned()), 2);
    outlasts(&stage, &daemon, &second, &there)?;
    stage.mend()?;
    stage.recovers("every listing is whole", &daemon, &there, &[])?;
    for pinger in pingers {
        let report = pinger?.stop();
        ensure!(report.lost == 0 && report.refused == 0, "{report:?}");
    }
    daemon.terminate()
}

/// Addresses stay while this is read so often that every second reading alone would be proof enough.
fn outlasts(stage: &Stage, daemon: &Daemon, path: &str, there: &[IpAddr]) -> anyhow::Result<()> {
    let read = || stage.vpc.metadata().requests_of(&stage.instance.id, path).len();
    let before = read();
    while read() < before + 12 {
        refresh(daemon)?;
        stage.untouched()?;
        there.iter().try_for_each(|address| stage.keeps(*address))?;
    }
    Ok(())
}

/// One list is old, the others are new.
fn ages() -> anyhow::Result<()> {
    let (mut stage, mut daemon) = Stage::set(IMPATIENT)?;
    let leaving = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.recovers("addresses come", &daemon, &leaving, &[])?;
    let old = view(&stage)?;
    let list = format!("*/macs/{}/local-ipv4s", stage.mac(At::Second)?);
    tell(&stage, &list, old, 1);
    let coming = [stage.comes(At::Second)?, stage.comes(At::Third)?];
    stage.goes(At::Second, leaving[0])?;
    stage.goes(At::Third, leaving[1])?;
    eventually(PATIENCE, "the new lists are followed", &daemon, || {
        refresh(&daemon)?;
        ensure!(!stage.has(leaving[1])?, "{} is still there", leaving[1]);
        answers(&stage.host, coming[1])
    })?;
    stage.stays(Duration::from_secs(1), "the old one is, too", &daemon, &leaving[..1])?;
    ensure!(!stage.has(coming[0])?, "nobody can know {}", coming[0]);
    stage.mend()?;
    stage.recovers("all lists are new", &daemon, &coming, &leaving)?;
    daemon.terminate()
}

/// Called every second while trouble lasts.
type Trouble = fn(&Pair, u32);

/// Lines that an outage may cost: one, and one for each ENI of which a reading that was under way
/// when it began got only a part.
const OUTAGE: usize = 3;

/// What a service does for half a minute, a word of what is said of it, and how many lines that may
/// be: ten of metadata and of each ENI where it changes all the time.
const NOISES: [(&str, Trouble, &str, usize); 8] = [
    ("silence", |pair, n| once(pair, n, "*", Action::Silence), "no answer in time", OUTAGE),
    ("500", |pair, n| once(pair, n, "*", Action::Status(500)), "status 500", OUTAGE),
    ("403", |pair, n| once(pair, n, "*", Action::Status(403)), "403", OUTAGE),
    ("closed", |pair, n| once(pair, n, "*", Action::Close), "not reachable", OUTAGE),
    (
        "one list that fails at both ENIs",
        |pair, n| once(pair, n, "*/local-ipv4s", Action::Close),
        "local-ipv4s",
        2,
    ),
    (
        "failing and not failing in turn",
        |pair, n| toggle(pair, n, "*", Action::Close),
        "once a minute at most",
        30,
    ),
    (
        "one list failing and not failing in turn",
        |pair, n| toggle(pair, n, "*/local-ipv4s", Action::Status(500)),
        "once a minute at most",
        20,
    ),
    (
        "a garbled entry that is another one every time",
        |pair, n| {
            pair.vpc.metadata().clear_all();
            set(pair, "*/local-ipv4s", Action::Body(format!("10.0.2.4\nx{n}\n")));
        },
        "refused \"x",
        20,
    ),
];

fn set(pair: &Pair, pattern: &str, action: Action) {
    pair.vpc.metadata().fault(Fault::on(pattern, action).instance(&pair.instance.id));
}

fn once(pair: &Pair, n: u32, pattern: &str, action: Action) {
    if n == 0 {
        set(pair, pattern, action);
    }
}

fn toggle(pair: &Pair, n: u32, pattern: &str, action: Action) {
    pair.vpc.metadata().clear_all();
    if n.is_multiple_of(2) {
        set(pair, pattern, action);
    }
}

fn few_lines() -> anyhow::Result<()> {
    let scenes: Vec<(Pair, Daemon)> = NOISES
        .iter()
        .map(|_| Pair::managed("poll_interval = \"500ms\"\n"))
        .collect::<Result<_, _>>()?;
    let lines = |daemon: &Daemon| daemon.log().lines().map(str::to_owned).collect::<Vec<_>>();
    let before: Vec<usize> = scenes.iter().map(|(_, daemon)| lines(daemon).len()).collect();
    let (began, mut n) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(30) {
        for ((_, trouble, _, most), (pair, daemon)) in NOISES.iter().zip(&scenes) {
            trouble(pair, n);
            if *most > OUTAGE {
                // Left to itself, enid asks ever more rarely and sees few of the changes.
                refresh(daemon)?;
            }
        }
        n += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    ensure!(n >= 8, "it changed {n} times only");
    for ((noise, (pair, daemon)), before) in NOISES.iter().zip(&scenes).zip(before) {
        let (name, _, word, most) = *noise;
        let asked = pair.vpc.metadata().requests_of(&pair.instance.id, "*");
        let asked = asked.iter().filter(|request| request.at >= began).count();
        // Polls after 1, 3, 7, 15 s and so on, each of a few tries.
        ensure!(most != OUTAGE || asked <= 60, "{name}: asked {asked} times in half a minute");
        let said = lines(daemon).split_off(before);
        ensure!(said.iter().any(|line| line.contains(word)), "{name}: {said:#?}");
        ensure!(said.len() <= most, "{name}: {} lines: {said:#?}", said.len());
    }
    for (_, mut daemon) in scenes {
        daemon.terminate()?;
    }
    Ok(())
}
