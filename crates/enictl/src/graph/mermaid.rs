//! The picture in the language of Mermaid, for documents that render it.

use std::fmt::Write as _;

use super::{Card, List, Mark, Picture, Row};

pub(super) fn draw(picture: &Picture) -> String {
    let mut out = format!("%% enid: {}\nflowchart LR\n", plain(&picture.summary()));
    for (n, card) in picture.cards.iter().enumerate() {
        self::card(&mut out, n, card);
    }
    if !picture.left.rows.is_empty() {
        list(&mut out, "left", "left by ENIs that are not here any more", &picture.left);
    }
    for mark in Mark::ALL {
        let _ = writeln!(out, "  classDef {} {}", mark.word(), colours(mark));
    }
    out
}

fn card(out: &mut String, n: usize, card: &Card) {
    let about = card.about.join(", ");
    let _ = writeln!(out, "  subgraph eni{n}[\"{}<br/>{}\"]", plain(&card.name), plain(&about));
    out.push_str("    direction LR\n");
    for (k, note) in card.notes.iter().enumerate() {
        row(out, &format!("eni{n}note{k}"), note);
    }
    let lists = [
        ("addresses", "addresses", &card.addresses),
        ("rules", "rules", &card.rules),
        ("routes", &*card.table, &card.routes),
        ("gateways", "gateways", &card.gateways),
    ];
    for (part, heading, rows) in lists {
        list(out, &format!("eni{n}{part}"), heading, rows);
    }
    let _ = writeln!(
        out,
        "    eni{n}addresses --> eni{n}rules --> eni{n}routes --> eni{n}gateways\n  end"
    );
}

/// A node for what is as it must be, and one for each that is not.
fn list(out: &mut String, id: &str, heading: &str, list: &List) {
    let same = list.rows.iter().filter(|row| row.marks.is_empty());
    let mut text: Vec<String> = vec![format!("<b>{}</b>", plain(heading))];
    text.extend(same.map(|row| plain(&row.text)));
    text.extend(list.more.iter().map(|more| plain(more)));
    let _ = writeln!(out, "    {id}[\"{}\"]", text.join("<br/>"));
    for (n, different) in list.rows.iter().filter(|row| !row.marks.is_empty()).enumerate() {
        row(out, &format!("{id}{n}"), different);
        let _ = writeln!(out, "    {id} -.- {id}{n}");
    }
}

fn row(out: &mut String, id: &str, row: &Row) {
    let words: Vec<&str> = row.marks.iter().map(|mark| mark.word()).collect();
    let Some(word) = words.last() else { return };
    let text = [format!("<b>{}</b> {}", words.join(", "), plain(&row.text)), plain(&row.reason)];
    let text: Vec<String> = text.into_iter().filter(|text| !text.is_empty()).collect();
    let _ = writeln!(out, "    {id}[\"{}\"]:::{word}", text.join("<br/>"));
}

/// Text from elsewhere, with what Mermaid or HTML would understand written as Mermaid's entities.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_alphanumeric() || " .:/-,()_".contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "#{};", u32::from(c));
        }
    }
    out
}

const fn colours(mark: Mark) -> &'static str {
    match mark {
        Mark::Missing => "fill:#fde0dd,stroke:#b3261e,color:#5c0f0a",
        Mark::Conflict => "fill:#f3dcf8,stroke:#8e24aa,color:#470f57",
        Mark::Held => "fill:#dbe8ff,stroke:#1d5fbf,color:#0c2c5c",
        Mark::Waiting => "fill:#fff0cc,stroke:#8a5a00,color:#4a3000",
        Mark::Extra => "fill:#ffe3d3,stroke:#a23e00,color:#541f00",
        Mark::Foreign => "fill:#e8ebf0,stroke:#5a6577,color:#2a313c",
    }
}
