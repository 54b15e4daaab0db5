//! Promise: when the kernel refuses a step, for whatever reason, everything else converges; the error
//! names the object and is said once, and the step is tried again, ever more rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, Launch, at_once, cpu_time, eventually, trial};
use libtest_mimic::Trial;

use crate::cut::{IMPATIENT, PARTS, Stage, State, Watchers, errors, said_once, v4, v6};
use crate::pair::same;
use crate::users::{PATIENCE, answers, is_silent, status};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("kernel_faults::each_step_is_refused_once", || at_once(PARTS, each_once)),
        trial("kernel_faults::what_is_refused_for_ever_holds_up_nothing_else", for_ever),
        trial("kernel_faults::a_link_that_cannot_be_raised_holds_up_nothing_else", not_raised),
        trial("kernel_faults::without_the_capability_nothing_breaks", without_capability),
        trial("kernel_faults::settings_that_cannot_be_written_are_named", read_only_settings),
        trial("kernel_faults::somebody_is_quicker_at_each_step", || at_once(PARTS, quicker)),
        trial("kernel_faults::looks_and_sockets_fail", looks_fail),
    ]
}

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ENOBUFS: i32 = 105;

const REASONS: [i32; 7] = [EPERM, ENOMEM, EEXIST, ENODEV, EINVAL, ENOSPC, ENOBUFS];

/// A daemon that fails as it is told to, not started yet, and what it would come to.
fn prepared(stage: &Stage) -> anyhow::Result<(Daemon, State, BTreeSet<String>)> {
    let before = stage.picture()?;
    let mut daemon = Daemon::ready(&stage.instance, IMPATIENT)?;
    stage.gets_well(&daemon)?;
    let well = stage.look(&daemon)?;
    from_nothing(stage, &mut daemon, &before)?;
    daemon.set_launch(&Launch::faulty());
    Ok((daemon, well, before))
}

/// Everything is as before the first start.
fn from_nothing(
    stage: &Stage,
    daemon: &mut Daemon,
    before: &BTreeSet<String>,
) -> anyhow::Result<()> {
    daemon.faults().script("")?;
    stage.release(daemon, before)?;
    daemon.kill()?;
    std::fs::remove_file(daemon.runtime_directory().join("ledger.json"))?;
    Ok(())
}

fn each_once(part: usize) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let (mut daemon, well, before) = prepared(&stage)?;
    for step in (part..200).step_by(PARTS) {
        let reason = REASONS[step % REASONS.len()];
        daemon.faults().script(&format!("refuse {reason} 1 step {step}"))?;
        let log = daemon.log().len();
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        well.comes(&stage, &daemon).with_context(|| format!("step {step}, errno {reason}"))?;
        let points = daemon.faults().points();
        let rounds: Vec<_> = points.split(|point| point == "after the last step").collect();
        let said = &daemon.log()[log..];
        said_once(said)?;
        let refused = rounds[0].iter().filter(|point| point.starts_with("before ")).nth(step);
        let Some(refused) = refused else {
            ensure!(step >= 30, "only {step} steps");
            return watchers.saw_nothing();
        };
        // A rule that is there already, as far as the kernel says, is made when the look shows that
        // it is not.
        // A link that was away for a moment gets another try before anything is said.
        let silent = (reason == EEXIST && refused.contains(" rule add ")) || reason == ENODEV;
        let errors = errors(said);
        let named = errors.iter().any(|line| line.contains("failed: "));
        ensure!(named != silent, "{refused}, errno {reason}: {errors:#?}");
        from_nothing(&stage, &mut daemon, &before)?;
    }
    anyhow::bail!("there is no end of steps")
}

fn number(stage: &Stage, link: &str) -> anyhow::Result<u64> {
    let links = stage.instance.ip_json(&["link", "show", link])?;
    links[0]["ifindex"].as_u64().with_context(|| format!("{link} has no number: {links}"))
}

const REFUSED: [(i32, &str); 6] = [
    (ENOSPC, "address add 10.0.2.6/32"),
    (ENOMEM, "route add 10.0.0.0/16 via 10.0.2.1"),
    (ENOBUFS, "-6 rule add pref 20000 from all oif ens6"),
    (EINVAL, "link set dev LINK mtu 9001"),
    (EPERM, "altname device-number-2.0"),
    (ENODEV, "address add 2600:1f16:67f:f202::5/128"),
];

fn for_ever() -> anyhow::Result<()> {
    let stage = Stage::of_siblings()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let mut daemon = Daemon::prepare(&stage.instance, &Launch::faulty(), IMPATIENT)?;
    let number = format!("if{}", number(&stage, "ens6")?);
    let line = |(errno, text): &(i32, &str)| {
        format!("refuse {errno} always like {}\n", text.replace("LINK", &number))
    };
    daemon.faults().script(&REFUSED.iter().map(line).collect::<String>())?;
    daemon.restart()?;
    let rest = || {
        let all = stage.granted().into_iter().map(|(_, address)| address);
        let rest = all.filter(|address| ![v4(2, 6), v6(2, 5)].contains(address));
        rest.into_iter().try_for_each(|address| answers(&stage.host, address))
    };
    eventually(PATIENCE, "all else works", &daemon, rest)?;
    is_silent(&stage.host, v4(2, 6))?;
    // Beginning with a tenth of a second and doubling, five more passes take three seconds; each may
    // try twice, since one of the refusals says that there is no such link.
    let before = cpu_time(daemon.pid()?)?;
    std::thread::sleep(Duration::from_secs(3));
    let spent = cpu_time(daemon.pid()?)? - before;
    ensure!(spent < Duration::from_millis(600), "{spent:?} on a CPU");
    let (points, log) = (daemon.faults().points(), daemon.log());
    for (_, text) in REFUSED {
        let step = text.replace("LINK", &number);
        let tries = points.iter().filter(|point| point.contains(&step)).count();
        ensure!((2..=30).contains(&tries), "{tries} tries of `{text}`: {points:#?}");
        let text = text.replace("LINK", "ens6");
        let said: Vec<_> = errors(&log).into_iter().filter(|line| line.contains(&text)).collect();
        ensure!(!said.is_empty(), "nothing is said of `{text}`\n{log}");
    }
    said_once(&log)?;
    let said = status(&daemon)?;
    ensure!(said["verdict"] != "converged", "{said}");
    rest()?;
    recovers(&stage, daemon, &watchers)
}

/// Once nothing is refused any more, all is well, and nobody was cut off.
fn recovers(stage: &Stage, mut daemon: Daemon, watchers: &Watchers) -> anyhow::Result<()> {
    daemon.faults().script("")?;
    stage.gets_well(&daemon)?;
    watchers.saw_nothing()?;
    daemon.terminate()
}

fn not_raised() -> anyhow::Result<()> {
    let stage = Stage::of_siblings()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let second = number(&stage, "ens6")?;
    let mut daemon = Daemon::prepare(&stage.instance, &Launch::faulty(), IMPATIENT)?;
    daemon.faults().script(&format!("refuse {EPERM} always like link set dev if{second} up"))?;
    daemon.restart()?;
    let rest = || {
        [v4(1, 5), v4(2, 132), v6(2, 132)]
            .into_iter()
            .try_for_each(|address| answers(&stage.host, address))
    };
    eventually(PATIENCE, "all else works", &daemon, rest)?;
    std::thread::sleep(Duration::from_secs(1));
    rest()?;
    let log = daemon.log();
    said_once(&log)?;
    ensure!(log.contains("`ip link set dev ens6 up` failed: "), "{log}");
    recovers(&stage, daemon, &watchers)
}

fn without_capability() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let before = stage.picture()?;
    let weak = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let how = Launch::default().under(&weak);
    let mut daemon = Daemon::prepare(&stage.instance, &how, IMPATIENT)?;
    daemon.restart()?;
    eventually(PATIENCE, "it is said", &daemon, || {
        let log = daemon.log();
        let all = errors(&log);
        let named = all.iter().any(|line| {
            line.contains("`ip -4 address add 10.0.2.4/24 dev ens6")
                && line.contains("CAP_NET_ADMIN")
        });
        ensure!(named, "{all:#?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(2));
    said_once(&daemon.log())?;
    // Files are opened by root, too.
    let without_settings = |picture: &BTreeSet<String>| -> BTreeSet<String> {
        picture.iter().filter(|line| !line.starts_with("net.")).cloned().collect()
    };
    same(&without_settings(&before), &without_settings(&stage.picture()?))?;
    // The same ledger with the capability.
    daemon.set_launch(&Launch::default());
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.gets_well(&daemon)?;
    watchers.saw_nothing()?;
    stage.release(&daemon, &before)?;
    daemon.terminate()
}

fn read_only_settings() -> anyhow::Result<()> {
    let stage = Stage::of_siblings()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let before = stage.picture()?;
    let script = "mount --bind /proc/sys /proc/sys && \
        mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let how = Launch::default().under(&["unshare", "--mount", "sh", "-c", script]);
    let mut daemon = Daemon::prepare(&stage.instance, &how, IMPATIENT)?;
    daemon.restart()?;
    eventually(PATIENCE, "all works all the same", &daemon, || {
        let mut all = stage.granted().into_iter();
        all.try_for_each(|(_, address)| answers(&stage.host, address))
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let log = daemon.log();
    for link in ["ens6", "ens7"] {
        let file =
            format!("/proc/sys/net/ipv6/conf/{link}/accept_ra_defrtr: Read-only file system");
        ensure!(errors(&log).iter().any(|line| line.contains(&file)), "{log}");
    }
    said_once(&log)?;
    daemon.set_launch(&Launch::default());
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    stage.gets_well(&daemon)?;
    watchers.saw_nothing()?;
    stage.release(&daemon, &before)?;
    daemon.terminate()
}

/// The command of a step that makes something that others can make, too.
fn twin(point: &str) -> Option<String> {
    let command = point.strip_prefix("before ip ")?;
    let made = [" address add ", " route add ", " rule add "];
    made.iter().any(|made| command.contains(made)).then(|| command.to_owned())
}

fn quicker(part: usize) -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let (mut daemon, _, before) = prepared(&stage)?;
    let links = stage.instance.ip_json(&["link"])?;
    let names: Vec<(String, String)> = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| {
            Some((format!(" if{} ", link["ifindex"]), format!(" {} ", link["ifname"].as_str()?)))
        })
        .collect();
    let mut twins = 0;
    for point in (part..400).step_by(PARTS) {
        daemon.faults().script(&format!("pause {point}"))?;
        daemon.restart()?;
        if !stage.pauses(&daemon)? {
            ensure!(twins >= 20 / PARTS, "only {twins} twins");
            ensure!(point > 40, "only {point} points");
            daemon.wait_ready(PATIENCE)?;
            from_nothing(&stage, &mut daemon, &before)?;
            return watchers.saw_nothing();
        }
        let paused = daemon.faults().paused().unwrap_or_default();
        let Some(twin) = twin(&paused) else {
            daemon.faults().go_on()?;
            daemon.wait_ready(PATIENCE)?;
            from_nothing(&stage, &mut daemon, &before)?;
            continue;
        };
        twins += 1;
        let with_name = |command: String, (number, name): &(String, String)| {
            format!("{command} ").replace(number, name).trim_end().to_owned()
        };
        let twin = names.iter().fold(twin, with_name);
        let others = || crate::pair::foreign(&stage.picture().unwrap_or_default(), &[]);
        let there = others();
        stage.instance.run(&[&["ip"][..], &twin.split(' ').collect::<Vec<_>>()].concat())?;
        let theirs: BTreeSet<String> = others().difference(&there).cloned().collect();
        ensure!(!theirs.is_empty(), "`{twin}` made nothing");
        daemon.faults().go_on()?;
        eventually(PATIENCE, "all works all the same", &daemon, || stage.works())
            .with_context(|| twin.clone())?;
        let stays = |when: &str| -> anyhow::Result<()> {
            let left = stage.picture()?;
            let gone: Vec<&String> = theirs.difference(&left).collect();
            ensure!(gone.is_empty(), "{when}, `{twin}`: theirs went: {gone:#?}\n{}", daemon.log());
            Ok(())
        };
        stays("beside ours")?;
        daemon.faults().script("")?;
        daemon.enictl().run(&["release", "--all"])?;
        // The kernel takes what had one of our addresses as its source.
        if !twin.contains(" src ") {
            stays("after the release")?;
        }
        let undo = twin.replacen(" add ", " del ", 1);
        stage.instance.output(&[&["ip"][..], &undo.split(' ').collect::<Vec<_>>()].concat())?;
        stage.is_as(&before, &daemon).with_context(|| twin.clone())?;
        daemon.kill()?;
        std::fs::remove_file(daemon.runtime_directory().join("ledger.json"))?;
    }
    anyhow::bail!("there is no end of points")
}

fn looks_fail() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let watchers = Watchers::of_the_primary(&stage)?;
    let (mut daemon, well, before) = prepared(&stage)?;
    for script in [
        format!("look {ENOBUFS} 3"),
        format!("look {ENOMEM} 1"),
        "lose 1".to_owned(),
        "lose 7".to_owned(),
        // All together are always interrupted, those of one link are not.
        "interrupt 8 like addresses".to_owned(),
    ] {
        daemon.faults().script(&script)?;
        let log = daemon.log().len();
        daemon.restart()?;
        daemon.wait_ready(PATIENCE)?;
        well.comes(&stage, &daemon).with_context(|| script.clone())?;
        said_once(&daemon.log()[log..])?;
        from_nothing(&stage, &mut daemon, &before)?;
    }
    // As long as nothing can be seen, nothing is done, and it is said once.
    daemon.faults().script(&format!("look {ENOBUFS} always"))?;
    let log = daemon.log().len();
    daemon.restart()?;
    std::thread::sleep(Duration::from_secs(3));
    same(&before, &stage.picture()?)?;
    let said = daemon.log()[log..].to_owned();
    said_once(&said)?;
    ensure!(errors(&said).len() == 1 && said.contains("looking at the kernel"), "{said}");
    daemon.faults().script("")?;
    well.comes(&stage, &daemon)?;
    watchers.saw_nothing()?;
    daemon.terminate()
}
