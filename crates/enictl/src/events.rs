//! `enictl events`: what happened last, and what happens.

use std::fmt::Write as _;
use std::time::SystemTime;

use enid_control::{Event, EventKind, Events};

use crate::cli::{self, Cli};
use crate::text::{Paint, Tone, clean, is_read, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Events) -> anyhow::Result<Exit> {
    let mut daemon = socket::connect(cli).await??;
    let paint = Paint::detect();
    // Times of one form sort as text.
    let since = arguments.since.map(|since| {
        let since = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_millis(since).to_string()
    });
    let wanted = |mut events: Events| {
        events.events.retain(|event| since.as_ref().is_none_or(|since| event.at >= *since));
        events
    };
    if !arguments.follow {
        let events = wanted(daemon.events(0).await?);
        if cli.json {
            print_json(&events)?;
        } else {
            print(&render(&events, since.is_none(), paint))?;
        }
        return Ok(Exit::Done);
    }
    daemon.follow_events(0).await?;
    loop {
        let events = wanted(daemon.next_events().await?);
        for event in &events.events {
            let text = if cli.json {
                format!("{}\n", serde_json::to_string(event)?)
            } else {
                line(event, paint)
            };
            if !is_read(&text)? {
                return Ok(Exit::Done);
            }
        }
    }
}

fn render(events: &Events, all: bool, paint: Paint) -> String {
    let mut out = String::new();
    if all && events.forgotten > 0 {
        let _ = writeln!(out, "{} older ones: journalctl -u enid", events.forgotten);
    }
    for event in &events.events {
        out.push_str(&line(event, paint));
    }
    if events.events.is_empty() {
        out.push_str("nothing happened; before that: journalctl -u enid\n");
    }
    out
}

fn line(event: &Event, paint: Paint) -> String {
    let text = clean(&event.text);
    let text = match tone(event.kind) {
        Some(tone) => paint.paint(tone, &text),
        None => text,
    };
    let mut line = format!("{}  {text}", clean(&event.at));
    if let (Some(pass), Some(cause)) = (event.pass, &event.cause) {
        let us = event.duration_us.unwrap_or_default();
        let (ms, tenth) = (us / 1000, us % 1000 / 100);
        let _ = write!(line, "  [{}, pass {pass}, {ms}.{tenth} ms]", clean(cause));
    }
    line.push('\n');
    line
}

const fn tone(kind: EventKind) -> Option<Tone> {
    match kind {
        EventKind::Daemon
        | EventKind::AddressAdded
        | EventKind::AddressRemoved
        | EventKind::Routing
        | EventKind::Setting
        | EventKind::Configuration => None,
        EventKind::Managed | EventKind::MetadataAnswers => Some(Tone::Good),
        EventKind::Waiting | EventKind::Held | EventKind::Fight => Some(Tone::Warn),
        EventKind::MetadataFailed | EventKind::Failed | EventKind::ConfigurationRefused => {
            Some(Tone::Bad)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, kind: EventKind, text: &str) -> Event {
        Event {
            number,
            at: "2026-11-21T13:14:06.351Z".to_owned(),
            kind,
            text: text.to_owned(),
            eni: Some("eni-1".to_owned()),
            link: Some("ens6".to_owned()),
            address: None,
            table: None,
            reason: None,
            pass: None,
            cause: None,
            duration_us: None,
        }
    }

    #[test]
    fn a_line_says_when_what_why_and_how_fast() {
        let added = Event {
            pass: Some(12),
            cause: Some("metadata".to_owned()),
            duration_us: Some(3170),
            ..event(7, EventKind::AddressAdded, "added 10.0.1.9 to ens6")
        };
        let lost = event(8, EventKind::MetadataFailed, "metadata cannot be read: \x1b[2J");
        assert_eq!(
            render(&Events::new(vec![added, lost], 6), true, Paint(false)),
            "\
6 older ones: journalctl -u enid
2026-11-21T13:14:06.351Z  added 10.0.1.9 to ens6  [metadata, pass 12, 3.1 ms]
2026-11-21T13:14:06.351Z  metadata cannot be read: \u{fffd}[2J
"
        );
    }
}
