//! `enictl graph`: a picture of ENIs, addresses, rules, tables and gateways, and of what differs from
//! the wish.

mod mermaid;
mod svg;

use enid_control::status::{Eni, EniState, Verdict};
use enid_control::{EniObjects, Object, ObjectKind, ObjectState, Objects, Status};

use crate::Exit;
use crate::cli::{self, Cli, Format};
use crate::leaving::leaving;
use crate::socket;
use crate::text::{clean, print, print_json};

/// So many entries of a list are drawn, beside those that are not as they must be.
const DRAWN: usize = 10;
/// So many that are not as they must be: somebody who looks at more has another picture to draw.
const DIFFERENT: usize = 20;

pub(crate) async fn run(cli: &Cli, arguments: &cli::Graph) -> anyhow::Result<Exit> {
    let mut daemon = socket::connect(cli).await??;
    let objects = daemon.objects().await?;
    if cli.json {
        print_json(&objects)?;
        return Ok(Exit::Done);
    }
    let picture = Picture::of(&daemon.status().await?, &objects);
    print(&match arguments.format {
        Format::Svg => svg::draw(&picture),
        Format::Mermaid => mermaid::draw(&picture),
    })?;
    Ok(Exit::Done)
}

/// How something differs from what it must be, and what keeps it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// It must be there and is not.
    Missing,
    /// It must go.
    Extra,
    /// Somebody else's stands in its place.
    Conflict,
    /// Somebody else made it; it stays.
    Foreign,
    /// It differs, and the ENI is left alone.
    Held,
    /// It is made, or goes, when something has come about.
    Waiting,
}

impl Mark {
    const ALL: [Self; 6] =
        [Self::Missing, Self::Extra, Self::Conflict, Self::Foreign, Self::Held, Self::Waiting];

    const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Conflict => "conflict",
            Self::Held => "held",
            Self::Waiting => "waiting",
            Self::Extra => "extra",
            Self::Foreign => "foreign",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Missing => "must be there, and is not",
            Self::Extra => "enid made it, and it must go",
            Self::Conflict => "must be there, and somebody else's stands in its place",
            Self::Foreign => "somebody else made it, and it stays",
            Self::Held => "is left as it is, as the ENI is held",
            Self::Waiting => "comes or goes when something has come about",
        }
    }

    fn of(object: &Object, held: bool) -> Vec<Self> {
        let state = match object.state {
            ObjectState::There => return Vec::new(),
            ObjectState::Missing => Self::Missing,
            ObjectState::Extra => Self::Extra,
            ObjectState::Conflict => Self::Conflict,
            ObjectState::Foreign => Self::Foreign,
        };
        let delay = object.waits.as_ref().map(|_| if held { Self::Held } else { Self::Waiting });
        [Some(state), delay].into_iter().flatten().collect()
    }
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    text: String,
    /// None where it is as it must be.
    marks: Vec<Mark>,
    /// Why it is there; drawn where it differs.
    reason: String,
}

/// A list that is cut where it is long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct List {
    rows: Vec<Row>,
    /// What is not drawn, where something is not.
    more: Option<String>,
}

impl List {
    fn of(rows: Vec<Row>) -> Self {
        let (mut same, mut different) = (0, 0);
        let (rows, rest): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| {
            let (count, limit) =
                if row.marks.is_empty() { (&mut same, DRAWN) } else { (&mut different, DIFFERENT) };
            *count += 1;
            *count <= limit
        });
        let marked = rest.iter().filter(|row| !row.marks.is_empty()).count();
        let more = match (rest.len(), marked) {
            (0, _) => None,
            (rest, 0) => Some(format!("and {rest} more")),
            (rest, marked) => {
                Some(format!("and {rest} more, {marked} of them not as they must be"))
            }
        };
        Self { rows, more }
    }
}

/// One ENI.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Card {
    name: String,
    /// Its link, its numbers, its subnets.
    about: Vec<String>,
    /// What is to know of it as a whole.
    notes: Vec<Row>,
    addresses: List,
    rules: List,
    table: String,
    routes: List,
    gateways: List,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    verdict: String,
    cards: Vec<Card>,
    /// What enid made for ENIs that are not here any more.
    left: List,
}

impl Picture {
    fn of(status: &Status, objects: &Objects) -> Self {
        let cards = status.enis.iter().map(|eni| {
            let objects = objects.enis.iter().find(|objects| objects.mac == eni.mac);
            card(eni, objects)
        });
        let verdict = match status.verdict {
            Verdict::Converged => "converged",
            Verdict::Waiting => "waiting",
            Verdict::NotYet => "not yet",
        };
        let left = objects.left.iter().map(|object| row(object, object.text.clone(), false));
        Self { verdict: verdict.to_owned(), cards: cards.collect(), left: List::of(left.collect()) }
    }

    /// How often each mark is in it.
    fn marks(&self) -> Vec<(Mark, usize)> {
        let lists = |card: &Card| {
            let rows = [&card.addresses, &card.rules, &card.routes].map(|list| list.rows.clone());
            [rows.concat(), card.notes.clone()].concat()
        };
        let rows: Vec<Row> =
            self.cards.iter().flat_map(lists).chain(self.left.rows.clone()).collect();
        let count = |mark: Mark| rows.iter().filter(|row| row.marks.contains(&mark)).count();
        let counted = Mark::ALL.into_iter().map(|mark| (mark, count(mark)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// The picture in a sentence.
    fn summary(&self) -> String {
        let enis = match self.cards.len() {
            1 => "1 ENI".to_owned(),
            n => format!("{n} ENIs"),
        };
        let marks = self.marks().into_iter().map(|(mark, n)| format!(", {n} {}", mark.word()));
        format!("{enis}, {}{}", self.verdict, marks.collect::<String>())
    }
}

fn card(eni: &Eni, objects: Option<&EniObjects>) -> Card {
    let name = clean(eni.id.as_deref().unwrap_or(&eni.mac));
    let held = eni.state == EniState::Held;
    let mut about = vec![match &eni.link {
        Some(link) => clean(link),
        None => "no link".to_owned(),
    }];
    if eni.primary {
        about.push("primary".to_owned());
    }
    if let (Some(card), Some(device)) = (eni.card, eni.device) {
        about.push(format!("device {device} on card {card}"));
    }
    about.extend(eni.subnets.iter().map(|subnet| format!("subnet {subnet}")));
    let of = |kind: ObjectKind| {
        objects.into_iter().flat_map(|it| &it.objects).filter(move |it| it.kind == kind)
    };
    let link = eni.link.as_deref().unwrap_or_default();
    let list = |kind: ObjectKind| {
        List::of(of(kind).map(|object| row(object, short(object, link), held)).collect())
    };
    let addresses = match objects {
        Some(_) => list(ObjectKind::Address),
        None => List::of(eni.addresses.iter().map(|it| plain(it.address.to_string())).collect()),
    };
    let table = eni.table.or_else(|| objects.and_then(|objects| objects.table));
    Card {
        name,
        about,
        notes: notes(eni, of(ObjectKind::Setting).chain(of(ObjectKind::Marking)), held),
        addresses,
        rules: list(ObjectKind::Rule),
        table: table
            .map_or_else(|| "no table: main decides".to_owned(), |table| format!("table {table}")),
        routes: list(ObjectKind::Route),
        gateways: gateways(of(ObjectKind::Route), held),
    }
}

/// What the ENI as a whole waits for, and settings that differ.
fn notes<'a>(eni: &Eni, settings: impl Iterator<Item = &'a Object>, held: bool) -> Vec<Row> {
    let mut notes: Vec<Row> = Vec::new();
    if let Some(reason) = &eni.reason {
        notes.push(Row { marks: vec![Mark::Held], ..plain(clean(reason)) });
    }
    let waits = |wait: &String| Row { marks: vec![Mark::Waiting], ..plain(clean(wait)) };
    let waiting = eni.waiting.iter().map(waits);
    notes.extend(waiting);
    let rows = settings.map(|object| row(object, object.text.clone(), held));
    notes.extend(rows.filter(|row| !row.marks.is_empty()));
    notes
}

/// The next hops of the default routes.
fn gateways<'a>(routes: impl Iterator<Item = &'a Object>, held: bool) -> List {
    let mut rows: Vec<Row> = Vec::new();
    let default = |object: &&Object| object.destination.is_some_and(|net| net.prefix_len() == 0);
    for object in routes.filter(default).filter(|object| object.state != ObjectState::Foreign) {
        let Some(gateway) = object.gateway else { continue };
        rows.push(row(object, gateway.to_string(), held));
    }
    List::of(rows)
}

fn plain(text: String) -> Row {
    Row { text, marks: Vec::new(), reason: String::new() }
}

fn row(object: &Object, text: String, held: bool) -> Row {
    let proof = object.leaving.as_ref().map(leaving);
    // Why an ENI is held is said above its lists.
    let wait = proof.as_ref().or(object.waits.as_ref().filter(|_| !held));
    let wait = wait.map(|wait| format!("; {wait}")).unwrap_or_default();
    let reason = clean(&format!("{}{wait}", object.reason));
    Row { text: clean(&text), marks: Mark::of(object, held), reason }
}

/// An object without what its place in the picture says.
fn short(object: &Object, link: &str) -> String {
    let table = object.table.filter(|_| object.kind == ObjectKind::Route);
    let table = table.map(|table| table.to_string());
    let mut words: Vec<&str> = Vec::new();
    let mut all = object.text.split(' ').peekable();
    while let Some(word) = all.next() {
        let next = all.peek().copied();
        let said = match word {
            "dev" => next == Some(link),
            "table" => next == table.as_deref(),
            "pref" => {
                words.extend(all.next());
                continue;
            }
            _ => false,
        };
        if said {
            all.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests;
