//! `enictl check`: what breaks the network, or will, with the remedy of each; nothing is changed.

mod host;
mod neighbours;
mod probe;
mod scene;
mod settings;
mod ways;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use enid_control::check::{Check, Checked, Finding, Probe, Severity};
use enid_control::{ClientError, Status};
use enid_core::object::{RouteKind, TableId};
use enid_core::observed::Snapshot;
use enid_kernel::Kernel;
use enid_kernel::lookup::Lookup;
use tokio::time::sleep;

use self::host::Host;
use self::scene::{Scene, Settings};
use self::ways::Ways;
use crate::cli::{self, Cli};
use crate::text::{Paint, Tone, clean, print, print_json, wrap};
use crate::{Exit, socket};

/// How often addresses that came just now are looked at again, and how long after: two seconds are as
/// long as the kernel waits for somebody else who has the address.
const SETTLING: u32 = 20;
const MOMENT: Duration = Duration::from_millis(100);

pub(crate) async fn run(cli: &Cli, arguments: &cli::Check) -> anyhow::Result<Exit> {
    let status = match socket::connect(cli).await? {
        Ok(mut client) => client.status().await,
        Err(error) => Err(error),
    };
    // Whatever is the matter with the daemon: just then the kernel is to be looked at.
    let (status, mut unchecked) = match status {
        Ok(status) => (Some(status), Vec::new()),
        Err(error) => (None, vec![without(&error)]),
    };
    let check = look(status, arguments, &mut unchecked).await?;
    if cli.json {
        print_json(&check)?;
    } else {
        print(&render(&check, Paint::detect()))?;
    }
    Ok(if check.worst == Some(Severity::Broken) { Exit::NotYet } else { Exit::Done })
}

fn without(error: &ClientError) -> String {
    format!(
        "what metadata grants, and whether it answers: {error}. Checked is what the links have; \
         `enictl plan` also reads metadata where no enid runs"
    )
}

async fn look(
    status: Option<Status>,
    arguments: &cli::Check,
    unchecked: &mut Vec<String>,
) -> anyhow::Result<Check> {
    let daemon = status.is_some();
    let scene = Scene::new(status, snapshot().await?);
    if scene.subjects.is_empty() {
        unchecked.push("addresses: no link here is an ENI, as far as can be told".to_owned());
    }
    unchecked.extend(limits(&scene));
    let mut settings = Settings::default();
    let lookup = Lookup::open().context("opening a netlink socket")?;
    let mut ways = Ways { scene: &scene, lookup, asked: 0, findings: Vec::new() };
    let reverse_paths = ways.judge(&mut settings).await?;
    let (asked, mut findings) = (ways.asked, ways.findings);
    settings::judge(&scene, &mut settings, &mut findings);
    findings.extend(neighbours::find(&scene, &Host::look(&arguments.root)));
    let probes = probe::all(&scene, &arguments.probe).await?;
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let checked = Checked {
        enis: count(scene.subjects.len()),
        addresses: count(scene.subjects.iter().map(|subject| subject.addresses.len()).sum()),
        ways: asked,
        settings: settings.read,
        neighbours: neighbours::LOOKED_FOR,
        reverse_paths,
    };
    Ok(Check::new(daemon, checked, std::mem::take(unchecked), findings, probes))
}

async fn snapshot() -> anyhow::Result<Snapshot> {
    let mut kernel = Kernel::open().context("opening netlink sockets")?;
    let mut snapshot = kernel.snapshot(false).await.context("reading what the kernel has")?;
    for _ in 0..SETTLING {
        if is_settled(&snapshot) {
            break;
        }
        sleep(MOMENT).await;
        snapshot = kernel.snapshot(false).await.context("reading what the kernel has")?;
    }
    Ok(snapshot)
}

/// Whether every IPv6 address has the route by which the kernel delivers, which comes after it: at
/// once, or when nobody has answered to the address.
fn is_settled(snapshot: &Snapshot) -> bool {
    let delivers: BTreeSet<IpAddr> = snapshot
        .routes
        .iter()
        .map(|seen| seen.route)
        .filter(|route| route.table == TableId::LOCAL && route.kind == RouteKind::Local)
        .map(|route| route.destination.addr())
        .collect();
    let mut addresses = snapshot.addresses.iter().map(|seen| seen.address.address);
    addresses.all(|address| address.is_ipv4() || delivers.contains(&address))
}

/// ENA counts what it drops beyond the cloud's limits where only an ioctl tells it.
fn limits(scene: &Scene) -> Option<String> {
    let ena = |link: &enid_core::observed::Link| link.driver.as_deref() == Some("ena");
    let subject = scene.subjects.iter().find(|subject| ena(&subject.link))?;
    let link = &subject.link.name;
    Some(format!(
        "packets dropped beyond 1,024 a second to metadata, DNS and time together: \
         `ethtool -S {link} | grep linklocal_allowance_exceeded` tells how many"
    ))
}

fn render(check: &Check, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", verdict(check, paint));
    let Checked { enis, addresses, ways, settings, neighbours, reverse_paths } = &check.checked;
    let many = |number: u64, one: &str, more: &str| {
        format!("{number} {one}{}", if number == 1 { "" } else { more })
    };
    let text = format!(
        "{}, {}, {ways} ways asked of the kernel, {settings} settings read, {neighbours} other \
         programs looked for",
        many(*enis, "ENI", "s"),
        many(*addresses, "address", "es"),
    );
    wrap(&mut out, "checked  ", &text);
    let filters = reverse_paths.iter().map(|path| {
        let word = match path.rp_filter {
            0 => "off",
            1 => "strict",
            _ => "loose",
        };
        format!("{} {word}", path.link)
    });
    let filters: Vec<String> = filters.collect();
    if !filters.is_empty() {
        wrap(&mut out, "reverse path filter  ", &filters.join(", "));
    }
    for text in &check.unchecked {
        wrap(&mut out, "not checked  ", text);
    }
    for finding in &check.findings {
        out.push('\n');
        finding_lines(&mut out, finding, paint);
    }
    probe_lines(&mut out, &check.probes, paint);
    out
}

fn verdict(check: &Check, paint: Paint) -> String {
    let count = |severity| check.findings.iter().filter(|f| f.severity == severity).count();
    let failed = check.probes.iter().filter(|probe| probe.error.is_some()).count();
    let parts = [
        (count(Severity::Broken), "broken"),
        (failed, if failed == 1 { "probe failed" } else { "probes failed" }),
        (count(Severity::Risk), if count(Severity::Risk) == 1 { "risk" } else { "risks" }),
        (count(Severity::Note), if count(Severity::Note) == 1 { "note" } else { "notes" }),
    ];
    let parts = parts.iter().filter(|(number, _)| *number > 0);
    let parts: Vec<String> = parts.map(|(number, word)| format!("{number} {word}")).collect();
    match check.worst {
        Some(Severity::Broken) => paint.paint(Tone::Bad, &parts.join(", ")),
        Some(severity @ (Severity::Risk | Severity::Note)) => {
            paint.paint(tone(severity), &format!("nothing broken, {}", parts.join(", ")))
        }
        None => paint.paint(Tone::Good, "nothing broken"),
    }
}

const fn tone(severity: Severity) -> Tone {
    match severity {
        Severity::Broken => Tone::Bad,
        Severity::Risk => Tone::Warn,
        Severity::Note => Tone::Good,
    }
}

fn finding_lines(out: &mut String, finding: &Finding, paint: Paint) {
    let word = match finding.severity {
        Severity::Broken => "broken",
        Severity::Risk => "risk",
        Severity::Note => "note",
    };
    let _ = write!(out, "{}  {}", paint.paint(tone(finding.severity), word), finding.id.name());
    if let Some(link) = &finding.link {
        let _ = write!(out, "  {}", clean(link));
    }
    if let Some(address) = finding.address {
        let _ = write!(out, "  {address}");
    }
    if finding.more_addresses > 0 {
        let _ = write!(out, " and {} more", finding.more_addresses);
    }
    if let Some(file) = &finding.file {
        let _ = write!(out, "  {}", clean(file));
    }
    out.push('\n');
    wrap(out, "    ", &finding.what);
    // A remedy is there to be copied: it stays in one line.
    for line in &finding.remedy {
        let _ = writeln!(out, "    remedy: {}", clean(line));
    }
}

fn probe_lines(out: &mut String, probes: &[Probe], paint: Paint) {
    let mut last = None;
    for probe in probes {
        if last != Some((&probe.to, probe.target)) {
            last = Some((&probe.to, probe.target));
            let of = || probes.iter().filter(|other| last == Some((&other.to, other.target)));
            let (all, well) = (of().count(), of().filter(|other| other.error.is_none()).count());
            let _ = writeln!(
                out,
                "\nprobe {} ({}): {well} of {all} sources reach it",
                clean(&probe.to),
                probe.target
            );
        }
        let (ms, tenth) = (probe.duration_us / 1000, probe.duration_us % 1000 / 100);
        let (tone, word) = match &probe.error {
            None => (Tone::Good, "works".to_owned()),
            Some(error) => (Tone::Bad, format!("fails: {}", clean(error))),
        };
        let place = format!("{} on {}", probe.source, clean(&probe.link));
        let _ = writeln!(out, "    {place}: {} [{ms}.{tenth} ms]", paint.paint(tone, &word));
    }
}
