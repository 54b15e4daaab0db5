//! `enictl status`: how it stands with the ENIs and their addresses.

use std::fmt::Write as _;

use enid_control::Status;
use enid_control::status::{
    Address, AddressState, Eni, EniState, Health, Metadata, Origin, Pass, Prefix, PrefixMode, Role,
    Verdict,
};

use crate::cli::{self, Cli};
use crate::leaving::{conditions, kept_addresses, leaving};
use crate::text::{Paint, Tone, WIDTH, clean, cut, print, print_json, span, wrap};
use crate::{Exit, socket, watch};

/// So many addresses of an ENI are listed although all is well with them.
pub(crate) const LISTED: usize = 10;

pub(crate) async fn run(cli: &Cli, arguments: &cli::Status) -> anyhow::Result<Exit> {
    if arguments.watch {
        return watch::run(cli, arguments).await;
    }
    let status = socket::connect(cli).await??.status().await?;
    if cli.json {
        print_json(&status)?;
    } else {
        print(&render(&status, Paint::detect(), arguments.all))?;
    }
    Ok(match status.verdict {
        Verdict::Converged => Exit::Done,
        Verdict::Waiting | Verdict::NotYet => Exit::NotYet,
    })
}

pub(crate) fn render(status: &Status, paint: Paint, all: bool) -> String {
    let mut out = verdict(status, paint);
    metadata(&mut out, &status.metadata, paint);
    if let Some(pass) = &status.last_pass {
        wrap(&mut out, "last pass   ", &pass_text(pass));
    }
    if let Some(error) = &status.last_error {
        let text = format!("{} ago: {}", span(error.ago_seconds), error.message);
        wrap(&mut out, "last error  ", &text);
    }
    out.push('\n');
    enis(&mut out, status, paint, all);
    out
}

/// The line that says it all: how far it is, and why not further.
fn verdict(status: &Status, paint: Paint) -> String {
    let (tone, verdict) = match status.verdict {
        Verdict::Converged => (Tone::Good, "converged"),
        Verdict::Waiting => (Tone::Warn, "waiting"),
        Verdict::NotYet => (Tone::Bad, "not converged yet"),
    };
    let plural = |number: usize, one: &str, more: &str| match number {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    };
    let sizes = || {
        let addresses = status.enis.iter().map(|eni| eni.addresses.len()).sum();
        let enis = plural(status.enis.len(), "ENI", "ENIs");
        format!("{enis}, {}", plural(addresses, "address", "addresses"))
    };
    let waits = status.enis.iter().flat_map(|eni| {
        let name = eni.id.as_ref().or(eni.link.as_ref()).unwrap_or(&eni.mac);
        eni.reason.iter().chain(&eni.waiting).map(move |why| format!("{name}: {why}"))
    });
    let mut why: Vec<String> = match status.verdict {
        Verdict::Converged => vec![sizes()],
        Verdict::Waiting => waits.collect(),
        Verdict::NotYet => {
            let error = status.last_error.iter().map(|error| error.message.clone());
            error.chain(waits).collect()
        }
    };
    let more = why.len().saturating_sub(1);
    why.truncate(1);
    let since = format!(" for {}", span(status.since_seconds));
    let more = if more > 0 { format!("; {more} more below") } else { String::new() };
    let end = format!("{more} (enid {})", clean(&status.version));
    let taken = [verdict, &since, &end].map(|part| part.chars().count()).iter().sum::<usize>() + 2;
    let why = why.pop().map(|why| cut(&clean(&why), WIDTH.saturating_sub(taken)));
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("{}{since}{why}{end}\n", paint.paint(tone, verdict))
}

fn metadata(out: &mut String, metadata: &Metadata, paint: Paint) {
    let (tone, health) = match metadata.health {
        Health::NotRead => (Tone::Warn, "not read yet"),
        Health::Ok => (Tone::Good, "ok"),
        Health::Failing => (Tone::Bad, "failing"),
    };
    let _ = write!(
        out,
        "metadata    {} for {}",
        paint.paint(tone, health),
        span(metadata.since_seconds)
    );
    if let Some(endpoint) = &metadata.endpoint {
        let _ = write!(out, ", {}", clean(endpoint));
    }
    let _ = writeln!(out, ", {} requests", metadata.requests);
    if let Some(reason) = &metadata.reason {
        wrap(out, "            ", reason);
    }
    let read = metadata.read_seconds.map_or_else(
        || "not complete yet".to_owned(),
        |seconds| format!("complete {} ago", span(seconds)),
    );
    let next = metadata
        .next_poll_ms
        .map_or_else(String::new, |ms| format!("next in {} s, ", decimal(ms, 1000)));
    let every = decimal(metadata.poll_interval_ms, 1000);
    let _ = writeln!(out, "reading     {read}, {next}every {every} s");
}

fn pass_text(pass: &Pass) -> String {
    let steps = match pass.steps {
        0 => "nothing to do".to_owned(),
        1 => "1 step".to_owned(),
        n => format!("{n} steps"),
    };
    format!(
        "{} ago because of {}: {steps}, {} ms",
        span(pass.ago_seconds),
        pass.cause,
        decimal(pass.duration_us, 1000)
    )
}

/// A quotient with one decimal, where that is not 0.
fn decimal(number: u64, divisor: u64) -> String {
    match (number / divisor, number % divisor * 10 / divisor) {
        (whole, 0) => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    }
}

fn enis(out: &mut String, status: &Status, paint: Paint, all: bool) {
    let (enis, next_poll_ms) = (&status.enis, status.metadata.next_poll_ms);
    if enis.is_empty() {
        out.push_str("no ENI is known yet\n");
        return;
    }
    let head = ["ENI", "LINK", "CARD", "DEVICE", "TABLE"].map(str::to_owned);
    let rows: Vec<_> = enis.iter().map(columns).collect();
    let widths: [usize; 5] = std::array::from_fn(|i| {
        rows.iter().chain([&head]).map(|row| row[i].chars().count()).max().unwrap_or_default()
    });
    let line = |row: &[String; 5]| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line
    };
    let _ = writeln!(out, "{}", paint.bold(&format!("{}STATE", line(&head))));
    for (eni, row) in enis.iter().zip(&rows) {
        let _ = writeln!(out, "{}{}", line(row), state(eni, paint));
        details(out, eni, next_poll_ms, paint, all);
    }
}

fn columns(eni: &Eni) -> [String; 5] {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    [
        clean(eni.id.as_ref().unwrap_or(&eni.mac)),
        eni.link.as_deref().map_or_else(|| "-".to_owned(), clean),
        number(eni.card),
        number(eni.device),
        number(eni.table),
    ]
}

fn state(eni: &Eni, paint: Paint) -> String {
    let (tone, state) = match eni.state {
        EniState::Managed => (Tone::Good, "managed"),
        EniState::Pending => (Tone::Warn, "pending"),
        EniState::Held => (Tone::Warn, "held"),
        EniState::NoLink => (Tone::Bad, "no link"),
    };
    let state = paint.paint(tone, state);
    if eni.primary { format!("{state}, primary") } else { state }
}

/// What stands beneath an ENI's line.
fn details(out: &mut String, eni: &Eni, next_poll_ms: Option<u64>, paint: Paint, all: bool) {
    let mut about = String::new();
    if eni.id.is_some() {
        about.push_str(&eni.mac);
    }
    if !eni.subnets.is_empty() {
        let subnets: Vec<_> = eni.subnets.iter().map(ToString::to_string).collect();
        let _ = write!(about, " subnet {}", subnets.join(" "));
    }
    if !eni.sources.is_empty() {
        let sources: Vec<_> = eni.sources.iter().map(ToString::to_string).collect();
        let _ = write!(about, " rules from {}", sources.join(" "));
    }
    if !eni.gateways.is_empty() {
        let gateways: Vec<_> = eni.gateways.iter().map(ToString::to_string).collect();
        let _ = write!(about, " gateway {}", gateways.join(" "));
    }
    if !about.is_empty() {
        wrap(out, "  ", &about);
    }
    if let Some(reason) = &eni.reason {
        wrap(out, "  held: ", reason);
    }
    addresses(out, &eni.addresses, next_poll_ms, paint, all);
    kept_addresses(out, &eni.kept, all);
    for prefix in &eni.prefixes {
        let (tone, state) = prefix_state(prefix);
        let _ = writeln!(out, "    {}  prefix  {}", prefix.prefix, paint.paint(tone, &state));
        prefix.leaving.iter().for_each(|leaving| conditions(out, leaving, next_poll_ms));
    }
    for cidr in &eni.cidrs {
        let state = paint.paint(Tone::Warn, &leaving(&cidr.leaving));
        let _ = writeln!(out, "    {}  of the VPC  {state}", cidr.cidr);
        conditions(out, &cidr.leaving, next_poll_ms);
    }
    for waiting in &eni.waiting {
        wrap(out, "  waits: ", waiting);
    }
    for notice in &eni.notices {
        wrap(out, "  note: ", notice);
    }
}

fn addresses(
    out: &mut String,
    addresses: &[Address],
    next_poll_ms: Option<u64>,
    paint: Paint,
    all: bool,
) {
    let width =
        addresses.iter().map(|address| address.address.to_string().len()).max().unwrap_or_default();
    let settled = |address: &Address| match address.state {
        AddressState::Ours | AddressState::Theirs => true,
        AddressState::TakenOver
        | AddressState::Adding
        | AddressState::Missing
        | AddressState::Leaving
        | AddressState::Ignored
        | AddressState::Elsewhere => false,
    };
    // Leaving out a single line would not make it shorter.
    let many = addresses.iter().filter(|a| settled(a)).count() > LISTED + 1;
    let mut listed = 0;
    let mut left_out = 0;
    for address in addresses {
        if settled(address) && many && !all {
            if listed == LISTED {
                left_out += 1;
                continue;
            }
            listed += 1;
        }
        let role = match address.role {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        };
        let (tone, mut state) = address_state(address);
        if let Some(public) = address.public {
            let _ = write!(state, ", public {public}");
        }
        let _ = writeln!(
            out,
            "    {:width$}  {role:9}  {}",
            address.address.to_string(),
            paint.paint(tone, &state)
        );
        address.leaving.iter().for_each(|leaving| conditions(out, leaving, next_poll_ms));
    }
    if left_out > 0 {
        let _ = writeln!(out, "    and {left_out} more that are there (--all lists them)");
    }
}

fn prefix_state(prefix: &Prefix) -> (Tone, String) {
    if let Some(left) = &prefix.leaving {
        return (Tone::Warn, leaving(left));
    }
    let state = match prefix.mode {
        PrefixMode::Rules => "for containers",
        PrefixMode::Local => "every address is the host's",
        PrefixMode::Ignore => "left alone by configuration",
    };
    (Tone::Good, state.to_owned())
}

fn address_state(address: &Address) -> (Tone, String) {
    match address.state {
        AddressState::Ours => (Tone::Good, "there".to_owned()),
        AddressState::Theirs => match address.origin {
            Some(Origin::Dynamic) => (Tone::Good, "there, from DHCP or a router".to_owned()),
            Some(Origin::Enid | Origin::Foreign) | None => {
                (Tone::Good, "there, made by somebody else".to_owned())
            }
        },
        AddressState::TakenOver => {
            (Tone::Warn, "there, replaced by somebody else: not touched any more".to_owned())
        }
        AddressState::Adding => (Tone::Bad, "not there yet".to_owned()),
        AddressState::Missing => (
            Tone::Bad,
            "missing: who configures the primary ENI at boot must bring it back".to_owned(),
        ),
        AddressState::Leaving => {
            (Tone::Warn, address.leaving.as_ref().map_or_else(|| "leaving".to_owned(), leaving))
        }
        AddressState::Ignored => (Tone::Good, "left alone by configuration".to_owned()),
        AddressState::Elsewhere => (
            Tone::Warn,
            format!(
                "not added: a route to it leaves by {}",
                address.elsewhere.as_deref().map_or_else(|| "another link".to_owned(), clean)
            ),
        ),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use enid_control::SCHEMA;
    use enid_control::status::{LastError, Leaving};

    use crate::leaving::tests::{proof, unread};

    use super::*;

    pub(crate) fn address(text: &str, role: Role, state: AddressState) -> Address {
        Address {
            address: text.parse().unwrap(),
            role,
            state,
            leaving: None,
            elsewhere: None,
            origin: None,
            public: None,
        }
    }

    pub(crate) fn primary() -> Eni {
        Eni {
            mac: "02:00:00:00:00:05".to_owned(),
            id: Some("eni-0123456789abcdef0".to_owned()),
            link: Some("ens5".to_owned()),
            primary: true,
            card: Some(0),
            device: Some(0),
            table: Some(20_000),
            subnets: vec!["10.0.0.0/24".parse().unwrap()],
            state: EniState::Managed,
            reason: None,
            hold: None,
            addresses: vec![
                Address {
                    origin: Some(Origin::Dynamic),
                    public: Some("203.0.113.5".parse().unwrap()),
                    ..address("10.0.0.5", Role::Primary, AddressState::Theirs)
                },
                address("2001:db8::5", Role::Secondary, AddressState::Ours),
            ],
            kept: Vec::new(),
            prefixes: Vec::new(),
            cidrs: Vec::new(),
            sources: vec!["10.0.0.0/24".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            read_seconds: Some(2),
            waiting: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn unsettled() -> Eni {
        Eni {
            mac: "02:00:00:00:00:06".to_owned(),
            id: Some("eni-0fedcba9876543210".to_owned()),
            link: Some("ens6".to_owned()),
            primary: false,
            card: Some(0),
            device: Some(1),
            table: Some(20_001),
            subnets: vec!["10.0.1.0/24".parse().unwrap()],
            state: EniState::Managed,
            reason: None,
            hold: None,
            addresses: vec![
                address("10.0.1.6", Role::Primary, AddressState::Ours),
                Address {
                    leaving: Some(Leaving {
                        stops: vec![unread()],
                        ..proof()
                    }),
                    ..address("10.0.1.7", Role::Secondary, AddressState::Leaving)
                },
                Address {
                    elsewhere: Some("veth1".to_owned()),
                    ..address("10.0.1.8", Role::Secondary, AddressState::Elsewhere)
                },
                address("10.0.1.9", Role::Secondary, AddressState::Adding),
                address("10.0.1.10", Role::Secondary, AddressState::TakenOver),
                address("10.0.1.11", Role::Secondary, AddressState::Ignored),
                address("10.0.1.12", Role::Secondary, AddressState::Missing),
            ],
            kept: Vec::new(),
            prefixes: Vec::new(),
            cidrs: Vec::new(),
            sources: vec!["10.0.1.0/24".parse().unwrap()],
            gateways: vec!["10.0.1.1".parse().unwrap()],
            read_seconds: Some(2),
            waiting: vec!["one removal waits for proof".to_owned()],
            notices: vec![
                "refused \"10.9.9.9\x1b[2J\" in local-ipv4s: not in the ENI's subnet".to_owned(),
                "link group 7 was set by somebody else and is kept: connected routes of this link in main are not suppressed, so replies to its subnet may leave by the wrong ENI".to_owned(),
            ],
        }
    }

    pub(crate) fn status(verdict: Verdict, enis: Vec<Eni>) -> Status {
        Status {
            schema: SCHEMA,
            version: "0.1.0".to_owned(),
            verdict,
            since_seconds: 3,
            metadata: Metadata {
                health: Health::Ok,
                since_seconds: 7200,
                reason: None,
                endpoint: Some("http://169.254.169.254".to_owned()),
                requests: 1234,
                poll_interval_ms: 5000,
                next_poll_ms: Some(2400),
                read_seconds: Some(2),
            },
            last_pass: Some(Pass {
                cause: "metadata".to_owned(),
                steps: 3,
                duration_us: 2150,
                ago_seconds: 3,
            }),
            last_error: None,
            enis,
        }
    }

    pub(crate) fn plain(status: &Status) -> String {
        let text = render(status, Paint(false), false);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "too long: {line}");
        }
        text
    }

    #[test]
    fn a_converged_instance_is_told_in_a_few_lines() {
        assert_eq!(
            plain(&status(Verdict::Converged, vec![primary()])),
            "\
converged for 3 s: 1 ENI, 2 addresses (enid 0.1.0)
metadata    ok for 2 h, http://169.254.169.254, 1234 requests
reading     complete 2 s ago, next in 2.4 s, every 5 s
last pass   3 s ago because of metadata: 3 steps, 2.1 ms

ENI                    LINK  CARD  DEVICE  TABLE  STATE
eni-0123456789abcdef0  ens5  0     0       20000  managed, primary
  02:00:00:00:00:05 subnet 10.0.0.0/24 rules from 10.0.0.0/24 gateway 10.0.0.1
    10.0.0.5     primary    there, from DHCP or a router, public 203.0.113.5
    2001:db8::5  secondary  there
"
        );
    }

    #[test]
    fn whatever_is_not_settled_is_spelled_out() {
        let mut status = status(Verdict::Waiting, vec![unsettled()]);
        status.metadata.health = Health::Failing;
        status.metadata.since_seconds = 45;
        status.metadata.reason =
            Some("403: metadata is off, or refused to this process".to_owned());
        status.metadata.poll_interval_ms = 7200;
        status.last_pass = None;
        status.last_error = Some(LastError {
            message: "adding 10.0.1.9 to ens6: Operation not permitted (os error 1)".to_owned(),
            ago_seconds: 300,
        });
        assert_eq!(
            plain(&status),
            "\
waiting for 3 s: eni-0fedcba9876543210: one removal waits for proof (enid 0.1.0)
metadata    failing for 45 s, http://169.254.169.254, 1234 requests
            403: metadata is off, or refused to this process
reading     complete 2 s ago, next in 2.4 s, every 7.2 s
last error  5 min ago: adding 10.0.1.9 to ens6: Operation not permitted (os error 1)

ENI                    LINK  CARD  DEVICE  TABLE  STATE
eni-0fedcba9876543210  ens6  0     1       20001  managed
  02:00:00:00:00:06 subnet 10.0.1.0/24 rules from 10.0.1.0/24 gateway 10.0.1.1
    10.0.1.6   primary    there
    10.0.1.7   secondary  leaving: lacking in 2 of 3 readings, 21 s of 30 s
      stands still: ipv6s could not be read completely
    10.0.1.8   secondary  not added: a route to it leaves by veth1
    10.0.1.9   secondary  not there yet
    10.0.1.10  secondary  there, replaced by somebody else: not touched any more
    10.0.1.11  secondary  left alone by configuration
    10.0.1.12  secondary  missing: who configures the primary ENI at boot must bring it back
  waits: one removal waits for proof
  note: refused \"10.9.9.9\u{fffd}[2J\" in local-ipv4s: not in the ENI's subnet
  note: link group 7 was set by somebody else and is kept: connected routes of this link in main are
        not suppressed, so replies to its subnet may leave by the wrong ENI
"
        );
    }

    #[test]
    fn an_eni_of_which_little_is_known_still_has_a_line() {
        let eni = Eni {
            id: None,
            link: None,
            primary: false,
            card: None,
            device: None,
            table: None,
            subnets: Vec::new(),
            state: EniState::Held,
            reason: Some("metadata does not list it".to_owned()),
            addresses: Vec::new(),
            kept: Vec::new(),
            prefixes: Vec::new(),
            cidrs: Vec::new(),
            sources: Vec::new(),
            gateways: Vec::new(),
            ..primary()
        };
        let text = plain(&status(Verdict::Waiting, vec![eni]));
        let (_, table) = text.split_once("\n\n").unwrap();
        assert_eq!(
            table,
            "\
ENI                LINK  CARD  DEVICE  TABLE  STATE
02:00:00:00:00:05  -     -     -       -      held
  held: metadata does not list it
"
        );
    }

    #[test]
    fn many_addresses_that_are_there_are_counted() {
        let mut eni = unsettled();
        eni.addresses.extend(
            (20..80).map(|n| address(&format!("10.0.1.{n}"), Role::Secondary, AddressState::Ours)),
        );
        let status = status(Verdict::Waiting, vec![eni]);
        let text = plain(&status);
        assert!(text.contains("    and 51 more that are there (--all lists them)\n"), "{text}");
        assert!(text.contains("10.0.1.9   secondary  not there yet"), "{text}");
        assert!(!text.contains("10.0.1.79"), "{text}");
        assert!(render(&status, Paint(false), true).contains("10.0.1.79"));
    }

    #[test]
    fn before_the_first_pass_there_is_no_table() {
        let text = plain(&status(Verdict::NotYet, Vec::new()));
        assert!(text.starts_with("not converged yet for 3 s (enid"), "{text}");
        assert!(text.ends_with("\n\nno ENI is known yet\n"), "{text}");
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let status = status(Verdict::Waiting, vec![primary(), unsettled()]);
        let mut coloured = render(&status, Paint(true), false);
        assert!(coloured.contains("\x1b[33mwaiting\x1b[0m"));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, render(&status, Paint(false), false));
    }
}
