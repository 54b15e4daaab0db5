//! `enictl explain`: where something comes from, whose it is, what it waits for, and which way its
//! packets go.

use enid_control::explain::{Fact, SubjectKind};
use enid_control::{Explained, Explanation, Object, ObjectKind, ObjectState, Path};

use crate::cli::{self, Cli};
use crate::leaving::leaving;
use crate::text::{Paint, Tone, clean, print, print_json, span, wrap};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Explain) -> anyhow::Result<Exit> {
    let packet = arguments.packet().unwrap_or_else(|wrong| wrong.exit());
    let mut daemon = socket::connect(cli).await??;
    let explanation = daemon.explain(arguments.what()).await?;
    let path = match packet {
        Some((from, to)) => Some(enid::path::path(from, to).await?),
        None => None,
    };
    let explained = Explained { explanation, path };
    if cli.json {
        print_json(&explained)?;
    } else {
        print(&render(&explained, Paint::detect()))?;
    }
    Ok(Exit::Done)
}

fn render(explained: &Explained, paint: Paint) -> String {
    let Explained { explanation: told, path } = explained;
    let mut out = String::new();
    let kind = match told.subject.kind {
        SubjectKind::Address => "address",
        SubjectKind::Eni => "ENI",
        SubjectKind::Rule => "rule",
    };
    out.push_str(&paint.bold(&format!("{kind} {}", clean(&told.subject.name))));
    if let Some(eni) = &told.eni {
        out.push_str(&format!(" of {}", clean(eni)));
    }
    out.push('\n');
    for line in &told.text {
        wrap(&mut out, "  ", line);
    }
    if let Some(owner) = &told.owner {
        wrap(&mut out, "  made by ", owner);
    }
    waits(&mut out, told, paint);
    if !told.facts.is_empty() {
        out.push_str("metadata\n");
        told.facts.iter().for_each(|fact| self::fact(&mut out, fact));
    }
    if !told.objects.is_empty() {
        out.push_str("objects\n");
        told.objects.iter().for_each(|object| self::object(&mut out, object, paint));
    }
    if let Some(path) = path {
        self::path(&mut out, path, paint);
    }
    out
}

fn waits(out: &mut String, told: &Explanation, paint: Paint) {
    for wait in &told.waits {
        wrap(out, &format!("  {} ", paint.paint(Tone::Warn, "waits:")), wait);
    }
    for proof in told.objects.iter().filter_map(|object| object.leaving.as_ref()) {
        wrap(out, "    ", &leaving(proof));
    }
}

fn fact(out: &mut String, fact: &Fact) {
    wrap(out, "  ", &fact.key);
    wrap(out, "    ", &fact.value);
    let ago = |seconds: u64| format!("{} ago", span(seconds));
    match (fact.first_seconds.map(ago), fact.last_seconds.map(ago)) {
        (Some(first), Some(last)) => {
            wrap(out, "    ", &format!("first shown {first}, last {last}"));
        }
        (Some(first), None) => wrap(out, "    ", &format!("first shown {first}")),
        (None, Some(last)) => wrap(out, "    ", &format!("last read {last}")),
        (None, None) => {}
    }
}

fn object(out: &mut String, object: &Object, paint: Paint) {
    let kind = match object.kind {
        ObjectKind::Address => "address",
        ObjectKind::Route => "route",
        ObjectKind::Rule => "rule",
        ObjectKind::Marking => "marking",
        ObjectKind::Setting => "setting",
    };
    let (state, tone) = match object.state {
        ObjectState::There => ("there", Tone::Good),
        ObjectState::Missing => ("missing", Tone::Bad),
        ObjectState::Extra => ("extra", Tone::Warn),
        ObjectState::Foreign => ("foreign", Tone::Warn),
        ObjectState::Conflict => ("conflict", Tone::Bad),
    };
    let state = paint.paint(tone, &format!("{state:<8}"));
    out.push_str(&format!("  {state}  {kind:<7}  {}\n", clean(&object.text)));
    wrap(out, "                     ", &object.reason);
}

fn path(out: &mut String, path: &Path, paint: Paint) {
    let Path { from, to, .. } = path;
    out.push_str(&format!("path of a packet from {from} to {to}, by the kernel's answer\n"));
    if let Some(refused) = &path.refused {
        wrap(out, &format!("  {} ", paint.paint(Tone::Bad, "not sent:")), refused);
        return;
    }
    let unknown = "not told: the first one that matches leads elsewhere, or is not understood";
    wrap(out, "  rule     ", path.rule.as_deref().unwrap_or(unknown));
    if let Some(table) = path.table {
        wrap(out, "  table    ", &table_name(table));
    }
    if let Some(route) = &path.route {
        wrap(out, "  route    ", route);
    }
    let link = path.link.as_deref().unwrap_or("no link");
    let next = path.gateway.map_or_else(|| "on the link".to_owned(), |hop| format!("via {hop}"));
    wrap(out, "  leaves   ", &format!("by {link}, {next}"));
}

fn table_name(table: u32) -> String {
    match table {
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use enid_control::SCHEMA;
    use enid_control::explain::Subject;

    use super::*;
    use crate::leaving::tests::proof;

    fn object(kind: ObjectKind, state: ObjectState, text: &str, reason: &str) -> Object {
        Object {
            kind,
            text: text.to_owned(),
            state,
            reason: reason.to_owned(),
            waits: None,
            leaving: None,
            address: None,
            table: None,
            priority: None,
            source: None,
            destination: None,
            gateway: None,
        }
    }

    #[test]
    fn an_explanation_says_whence_whose_why_and_which_way() {
        let leaves = Object {
            waits: Some("proof that metadata no longer grants it".to_owned()),
            leaving: Some(proof()),
            ..object(
                ObjectKind::Address,
                ObjectState::Extra,
                "10.0.2.5/32 dev ens6",
                "metadata no longer grants it",
            )
        };
        let explanation = Explanation {
            schema: SCHEMA,
            subject: Subject { kind: SubjectKind::Address, name: "10.0.2.5".to_owned() },
            eni: Some("eni-1 (ens6)".to_owned()),
            text: vec!["metadata no longer grants it to eni-1 (ens6)".to_owned()],
            facts: vec![Fact {
                key: "meta-data/network/interfaces/macs/02:00:00:00:00:07/local-ipv4s".to_owned(),
                value: "10.0.2.5\x1b[2J".to_owned(),
                first_seconds: Some(4000),
                last_seconds: Some(21),
            }],
            owner: Some("enid, by its mark (proto 233)".to_owned()),
            waits: vec!["proof that metadata no longer grants it".to_owned()],
            objects: vec![leaves],
        };
        let path = Path {
            from: "10.0.2.5".parse().unwrap(),
            to: "198.51.100.1".parse().unwrap(),
            refused: None,
            table: Some(20_001),
            route: Some("default via 10.0.2.1 dev ens6 table 20001 src 10.0.2.4".to_owned()),
            rule: Some("pref 20020 from 10.0.2.0/24 iif lo lookup 20001".to_owned()),
            link: Some("ens6".to_owned()),
            gateway: Some("10.0.2.1".parse().unwrap()),
        };
        assert_eq!(
            render(&Explained { explanation, path: Some(path) }, Paint(false)),
            "\
address 10.0.2.5 of eni-1 (ens6)
  metadata no longer grants it to eni-1 (ens6)
  made by enid, by its mark (proto 233)
  waits: proof that metadata no longer grants it
    leaving: lacking in 2 of 3 readings, 21 s of 30 s; then it goes
metadata
  meta-data/network/interfaces/macs/02:00:00:00:00:07/local-ipv4s
    10.0.2.5\u{fffd}[2J
    first shown 66 min ago, last 21 s ago
objects
  extra     address  10.0.2.5/32 dev ens6
                     metadata no longer grants it
path of a packet from 10.0.2.5 to 198.51.100.1, by the kernel's answer
  rule     pref 20020 from 10.0.2.0/24 iif lo lookup 20001
  table    20001
  route    default via 10.0.2.1 dev ens6 table 20001 src 10.0.2.4
  leaves   by ens6, via 10.0.2.1
"
        );
    }
}
