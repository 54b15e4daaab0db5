//! The same steps as the daemon's without a daemon: what it costs to tell the kernel, at least.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use enid_core::object::{LinkIndex, Object, Setting};
use enid_core::observed::{Link, Snapshot};
use enid_core::plan::Step;
use enid_kernel::Kernel;
use tokio::runtime::{Builder, Runtime};
use vpc::Netns;

use super::process;

/// What the kernel of a namespace has now.
pub(super) fn snapshot(netns: &Netns) -> anyhow::Result<Snapshot> {
    with_kernel(netns, |runtime, kernel| Ok(runtime.block_on(kernel.snapshot(false))?))
}

/// Takes steps in one call; wall time and time on a CPU.
pub(super) fn apply(netns: &Netns, steps: &[Step]) -> anyhow::Result<(Duration, Duration)> {
    with_kernel(netns, |runtime, kernel| {
        let (start, before) = (Instant::now(), process::own_cpu()?);
        let outcomes = runtime.block_on(kernel.apply(steps));
        let spent = (start.elapsed(), process::own_cpu()?.saturating_sub(before));
        for (step, outcome) in steps.iter().zip(outcomes) {
            outcome.with_context(|| step.command(&|index| format!("if{}", index.0)))?;
        }
        Ok(spent)
    })
}

/// A kernel belongs to the thread, and so to the namespace, in which it was opened.
fn with_kernel<T: Send>(
    netns: &Netns,
    work: impl FnOnce(&Runtime, &mut Kernel) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    netns.within(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut kernel = runtime.block_on(async { Kernel::open() })?;
        work(&runtime, &mut kernel)
    })?
}

/// The steps that lead back from `raw` to `whole`, in the order of a plan.
pub(super) fn steps(raw: &Snapshot, whole: &Snapshot) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for link in &whole.links {
        let before = raw.links.iter().find(|before| before.index == link.index);
        settings(before.context("a link has gone")?, link, &mut steps);
    }
    let there: BTreeSet<_> = raw.addresses.iter().map(|seen| seen.address).collect();
    let addresses = whole.addresses.iter().map(|seen| seen.address);
    let addresses = addresses.filter(|address| address.address.is_ipv4());
    let missing = addresses.filter(|address| !there.contains(address));
    let (first, then): (Vec<_>, Vec<_>) = missing.partition(|address| address.prefix_length < 32);
    let own = enid_core::object::Protocol::ENID;
    let routes = whole.routes.iter().filter(|seen| seen.protocol == own).map(|seen| seen.route);
    let mut routes: Vec<_> = routes.collect();
    routes.sort_by_key(|route| (route.kind, route.gateway.is_some(), *route));
    let rules = whole.rules.iter().filter(|seen| seen.protocol == own).map(|seen| &seen.rule);
    let objects = first.into_iter().map(Object::Address);
    let objects = objects.chain(routes.into_iter().map(Object::Route));
    let objects = objects.chain(rules.cloned().map(Object::Rule));
    steps.extend(objects.chain(then.into_iter().map(Object::Address)).map(Step::Create));
    ensure!(raw.rules.iter().all(|seen| seen.protocol != own), "own rules are left");
    Ok(steps)
}

fn settings(raw: &Link, whole: &Link, steps: &mut Vec<Step>) {
    let link = whole.index;
    let mut set = |from, to| steps.push(Step::Set { link, from, to: Some(to) });
    for (key, value) in &whole.sysctls {
        if let Some(before) = raw.sysctls.get(key).filter(|before| *before != value) {
            set(Some(Setting::Sysctl(*key, *before)), Setting::Sysctl(*key, *value));
        }
    }
    if raw.mtu != whole.mtu {
        set(Some(Setting::Mtu(raw.mtu)), Setting::Mtu(whole.mtu));
    }
    for name in whole.alternative_names.iter().filter(|name| !raw.alternative_names.contains(name))
    {
        set(None, Setting::AlternativeName(name.clone()));
    }
    if raw.group != whole.group {
        set(Some(Setting::Group(raw.group)), Setting::Group(whole.group));
    }
    if whole.up && !raw.up {
        set(None, Setting::Up);
    }
}

/// The steps as lines of `ip -batch`, without those that are none of `ip`'s.
pub(super) fn lines(steps: &[Step], whole: &Snapshot) -> Vec<String> {
    let name_of = |index: LinkIndex| {
        let link = whole.links.iter().find(|link| link.index == index);
        link.map_or_else(String::new, |link| link.name.clone())
    };
    let line = |step: &Step| {
        let command = step.command(&name_of);
        let line = command.strip_prefix("ip ")?;
        let line = line.strip_prefix("-4 ").unwrap_or(line);
        // This `ip` may not know the protocol of addresses.
        let marked = matches!(step, Step::Create(Object::Route(_) | Object::Rule(_)));
        Some(if marked { format!("{line} proto 233") } else { line.to_owned() })
    };
    steps.iter().filter_map(line).collect()
}
