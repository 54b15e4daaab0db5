//! Promise: delegated prefixes may come, go and move, and be meant for something else, while enid runs;
//! what others made inside of them stays whatever happens.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::imds::{Action, Fault};
use integration::vpc::IpNet;
use integration::{Daemon, eventually, holds, trial};
use libtest_mimic::Trial;

use crate::pair::{comes_to_rest, picture, same};
use crate::prefixes::{Container, NONE, SECOND_PREFIXES, SIBLINGS, Stage, nth, parse};
use crate::users::{PATIENCE, is_settled};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("prefix_changes::containers_notice_what_comes_and_goes", || come_and_go(Mode::Rules)),
        trial("prefix_changes::the_host_notices_what_comes_and_goes", || come_and_go(Mode::Local)),
        trial("prefix_changes::nothing_goes_without_proof", without_proof),
        trial("prefix_changes::it_moves_to_another_eni_at_once", moves),
        trial("prefix_changes::it_may_be_meant_for_something_else", another_mode),
        trial("prefix_changes::release_takes_back_what_was_made", release),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Rules,
    Local,
}

impl Mode {
    fn text(self) -> &'static str {
        match self {
            Mode::Rules => "prefixes = \"rules\"\n",
            Mode::Local => "prefixes = \"local\"\n",
        }
    }
}

/// How many rules and routes of enid's name a prefix.
fn made(stage: &Stage, prefix: IpNet) -> anyhow::Result<usize> {
    let base = prefix.network().to_string();
    let names = |line: &&String| {
        let ours = line.contains("\"protocol\":\"233\"");
        let source =
            line.contains(&format!("\"src\":\"{base}\",\"srclen\":{},", prefix.prefix_len()));
        ours && (source || line.contains(&format!("\"dst\":\"{prefix}\"")))
    };
    // A source that enid made more compact may be the prefix itself.
    let of_sockets = |line: &&String| line.contains("\"iif\":\"lo\"");
    Ok(picture(&stage.instance)?.iter().filter(names).filter(|line| !of_sockets(line)).count())
}

fn is_gone(stage: &Stage, prefixes: &[IpNet]) -> anyhow::Result<()> {
    for prefix in prefixes {
        let made = made(stage, *prefix)?;
        ensure!(made == 0, "{made} rules and routes of {prefix} are left");
    }
    Ok(())
}

fn is_there(stage: &Stage, prefixes: &[IpNet]) -> anyhow::Result<()> {
    for prefix in prefixes {
        ensure!(made(stage, *prefix)? > 0, "nothing is made for {prefix}");
    }
    Ok(())
}

/// The addresses on all links.
fn addresses(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let all = picture(&stage.instance)?;
    Ok(all.into_iter().filter(|line| line.starts_with("address ")).collect())
}

const QUICK: &str = "poll_interval = \"200ms\"\n";
const REMOVAL: &str = "[removal]\nconfirmations = 2\ngrace = \"1s\"\n";

fn come_and_go(mode: Mode) -> anyhow::Result<()> {
    let stage = Stage::build(&NONE)?;
    let prefixes = parse(SECOND_PREFIXES)?;
    // Somebody configured addresses before the prefixes came: on the ENI and elsewhere.
    for prefix in &prefixes {
        let length = prefix.max_prefix_len();
        for (n, link) in [(12, "ens6"), (13, "lo")] {
            let nodad = if prefix.addr().is_ipv4() { "" } else { " nodad" };
            let address = format!("{}/{length}", nth(*prefix, n));
            stage.instance.ip_batch(&[format!("addr add {address} dev {link}{nodad}")])?;
        }
    }
    let container = match mode {
        Mode::Rules => Some(Container::start(&stage.instance, "br0", &prefixes)?),
        Mode::Local => None,
    };
    stage.may_bind()?;
    let works = || match &container {
        Some(container) => stage.works_with(container, &[]),
        None => stage.local_works(&prefixes),
    };
    let mut daemon = Daemon::ready(&stage.instance, &[QUICK, mode.text(), REMOVAL].concat())?;
    stage.comes_to_work(&daemon, || Ok(()))?;
    comes_to_rest(&daemon)?;
    ensure!(works().is_err(), "it works without a prefix");
    let others = addresses(&stage)?;
    let before = picture(&stage.instance)?;
    for _ in 0..2 {
        for prefix in &prefixes {
            stage.vpc.delegate(&stage.second, *prefix)?;
        }
        stage.comes_to_work(&daemon, works)?;
        is_there(&stage, &prefixes)?;
        ensure!(addresses(&stage)? == others, "addresses changed: {:?}", addresses(&stage)?);
        for prefix in &prefixes {
            stage.vpc.undelegate(&stage.second, *prefix)?;
        }
        eventually(PATIENCE, "it goes", &daemon, || is_gone(&stage, &prefixes))?;
        comes_to_rest(&daemon)?;
        eventually(PATIENCE, "all is as before", &daemon, || {
            same(&before, &picture(&stage.instance)?)
        })?;
    }
    stage.comes_to_work(&daemon, || Ok(()))?;
    daemon.terminate()
}

/// One of two prefixes of each family goes, slowly, while metadata is in trouble.
fn without_proof() -> anyhow::Result<()> {
    let stage = Stage::build(&SIBLINGS)?;
    let prefixes = stage.prefixes[1].clone();
    let container = Container::start(&stage.instance, "br0", &prefixes)?;
    let works = || stage.works_with(&container, &[]);
    let quick = [QUICK, "[removal]\nconfirmations = 3\ngrace = \"6s\"\n"].concat();
    // A list without entries would not be read.
    for prefix in parse(&["10.0.1.64/28", "2600:1f16:67f:f201:c::/80"])? {
        stage.vpc.delegate(&stage.second, prefix)?;
    }
    let mut daemon = Daemon::ready(&stage.instance, &quick)?;
    stage.comes_to_work(&daemon, works)?;
    let stays = |what: &str, daemon: &Daemon, duration| {
        holds(duration, what, daemon, || is_there(&stage, &prefixes))
    };
    // The lists cannot be read.
    let faults = ["ipv4-prefix", "ipv6-prefix"].map(|key| {
        let pattern = format!("*/macs/*/{key}*");
        stage.vpc.metadata().fault(Fault::on(&pattern, Action::Status(500)))
    });
    for prefix in &prefixes {
        stage.vpc.model().update(|state| {
            if let Some(eni) = state.enis.get_mut(&stage.second) {
                eni.prefixes_v4.retain(|other| IpNet::V4(*other) != *prefix);
                eni.prefixes_v6.retain(|other| IpNet::V6(*other) != *prefix);
            }
        });
    }
    stays("lists that fail prove nothing", &daemon, Duration::from_secs(3))?;
    works()?;
    for fault in faults {
        stage.vpc.metadata().clear(fault);
    }
    stays("a short absence proves nothing", &daemon, Duration::from_millis(1500))?;
    // The count begins anew with a restart.
    daemon.terminate()?;
    let began = Instant::now();
    daemon.restart()?;
    stays("a restart proves nothing", &daemon, Duration::from_millis(1500))?;
    works()?;
    eventually(PATIENCE, "it goes", &daemon, || is_gone(&stage, &prefixes))?;
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(6), "it was gone {took:?} after the restart");
    daemon.terminate()
}

fn moves() -> anyhow::Result<()> {
    let stage = Stage::build(&SIBLINGS)?;
    let container = Container::start(&stage.instance, "br0", &stage.prefixes[1])?;
    let works = || stage.works_with(&container, &[]);
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(&daemon, works)?;
    let enis = [&stage.second, &stage.instance.primary];
    for (from, to) in [(enis[0], enis[1]), (enis[1], enis[0])] {
        for prefix in &stage.prefixes[1] {
            stage.vpc.undelegate(from, *prefix)?;
            stage.vpc.delegate(to, *prefix)?;
        }
        ensure!(works().is_err(), "it works although it still leaves by the old ENI");
        // A removal would take a minute.
        daemon.enictl().run(&["refresh", "--wait"])?.success()?;
        stage.comes_to_work(&daemon, works)?;
        is_settled(&daemon)?;
    }
    daemon.terminate()
}

fn another_mode() -> anyhow::Result<()> {
    let stage = Stage::build(&SIBLINGS)?;
    stage.may_bind()?;
    let all = stage.prefixes.concat();
    // The other's addresses are a bridge's, and its broadcast address is not the host's.
    let local = &stage.prefixes[0];
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    let container = Container::start(&stage.instance, "br0", &stage.prefixes[1])?;
    let rules = || stage.works_with(&container, &[]);
    stage.comes_to_work(&daemon, rules)?;
    comes_to_rest(&daemon)?;
    let before = picture(&stage.instance)?;
    for edited in
        ["prefixes = \"local\"\n", "prefixes = \"ignore\"\n", "prefixes = \"local\"\n", ""]
    {
        daemon.configure(edited)?;
        daemon.hangup()?;
        match edited {
            "" => stage.comes_to_work(&daemon, rules)?,
            text if text.contains("local") => {
                stage.comes_to_work(&daemon, || stage.local_works(local))?;
                is_there(&stage, &all)?;
            }
            _ => {
                eventually(PATIENCE, "nothing is made", &daemon, || is_gone(&stage, &all))?;
                stage.comes_to_work(&daemon, || Ok(()))?;
                ensure!(rules().is_err(), "it works although it is ignored");
            }
        }
        is_settled(&daemon)?;
    }
    same(&before, &picture(&stage.instance)?)?;
    daemon.terminate()
}

fn release() -> anyhow::Result<()> {
    let stage = Stage::build(&SIBLINGS)?;
    let [first, second] = stage.prefixes.clone();
    let container = Container::start(&stage.instance, "br0", &second)?;
    let choice = "[[eni]]\nmatch = { device-number = 0 }\nprefixes = \"local\"\n";
    stage.may_bind()?;
    let works = || {
        stage.works_with(&container, &[])?;
        stage.local_works(&first)
    };
    let mut daemon = Daemon::ready(&stage.instance, choice)?;
    stage.comes_to_work(&daemon, works)?;
    let (theirs, others) = (stage.foreign()?, addresses(&stage)?);
    daemon.enictl().run(&["release", "ens6"])?.success()?;
    eventually(PATIENCE, "the second ENI's is taken back", &daemon, || is_gone(&stage, &second))?;
    is_there(&stage, &first)?;
    stage.local_works(&first)?;
    daemon.enictl().run(&["release", "--all"])?.success()?;
    eventually(PATIENCE, "all is taken back", &daemon, || is_gone(&stage, &first))?;
    let rest = picture(&stage.instance)?;
    let rest: Vec<_> = rest.iter().filter(|line| line.contains("\"protocol\":\"233\"")).collect();
    ensure!(rest.is_empty(), "{rest:#?}");
    let bridge = |lines: &[String]| -> Vec<String> {
        lines.iter().filter(|line| line.contains("br0")).cloned().collect()
    };
    ensure!(bridge(&others) == bridge(&addresses(&stage)?), "a bridge's addresses changed");
    ensure!(!theirs.is_empty());
    daemon.enictl().run(&["unhold", "--all"])?.success()?;
    stage.comes_to_work(&daemon, works)?;
    daemon.terminate()
}
