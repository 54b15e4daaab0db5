//! The picture as SVG: it stands by itself, its text is text, and it follows the reader's choice of
//! light or dark.
//!
//! Attributes get numbers and this file's own words only: what comes from elsewhere is text, which is
//! escaped when it is written.

use svg::Document;
use svg::node::element::{
    Definitions, Description, Group, Marker, Path, Rectangle, Style, Text, Title,
};

use super::{Card, List, Mark, Picture, Row};

/// Pixels; those of a letter are what the widest of the usual fonts needs.
const LETTER: usize = 8;
const LINE: usize = 18;
const PAD: usize = 12;
const GAP: usize = 56;
const EDGE: usize = 24;
const HEAD: usize = 30;
/// How far the second line of a text is set in.
const HANG: usize = 16;

/// The widths of the columns.
const ADDRESSES: usize = 420;
const RULES: usize = 420;
const ROUTES: usize = 400;
const GATEWAYS: usize = 250;
const WIDTH: usize = 2 * EDGE + ADDRESSES + RULES + ROUTES + GATEWAYS + 3 * GAP;

/// Light, and what is different in the dark. No variables: not every viewer knows them.
const STYLE: &str = "
text { font: 12px 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1b2330 }
.title { font-size: 20px; font-weight: bold }
.name { font-weight: bold; font-size: 13px }
.bold { font-weight: bold }
.soft { fill: #5a6577 }
.page { fill: #ffffff }
.box { fill: #f5f7fa; stroke: #b8c2d0; stroke-width: 1 }
.eni { fill: none; stroke: #8593a8; stroke-width: 1.5 }
.arrow { fill: none; stroke: #8593a8; stroke-width: 1.5 }
.head { fill: #8593a8 }
.word { font-weight: bold; fill: #ffffff }
.missing { fill: #b3261e } .conflict { fill: #8e24aa } .held { fill: #1d5fbf }
.waiting { fill: #8a5a00 } .extra { fill: #a23e00 } .foreign { fill: #5a6577 }
@media (prefers-color-scheme: dark) {
text { fill: #e4e9f0 }
.soft { fill: #9aa7ba }
.page { fill: #12161c }
.box { fill: #1c222b; stroke: #3c4757 }
.eni { stroke: #6b7a90 }
.arrow { stroke: #6b7a90 }
.head { fill: #6b7a90 }
.word { fill: #10141a }
.missing { fill: #ff8a80 } .conflict { fill: #df9bf0 } .held { fill: #8fbcff }
.waiting { fill: #ffca5f } .extra { fill: #ffa573 } .foreign { fill: #9aa7ba }
}
";

pub(super) fn draw(picture: &Picture) -> String {
    let mut canvas = Canvas { group: Group::new(), y: EDGE };
    canvas.text(EDGE, "title", "enid: what must be, and what is");
    canvas.y += LINE + 6;
    canvas.text(EDGE, "soft", &picture.summary());
    canvas.y += LINE;
    for (mark, _) in picture.marks() {
        let indent = canvas.pill(EDGE, mark);
        canvas.text(EDGE + indent, "soft", mark.meaning());
        canvas.y += LINE;
    }
    canvas.y += PAD;
    picture.cards.iter().for_each(|card| canvas.card(card));
    if !picture.left.rows.is_empty() {
        let width = WIDTH - 2 * EDGE;
        canvas.list(EDGE, width, "left by ENIs that are not here any more", &picture.left);
    }
    let height = canvas.y + EDGE;
    let arrow = Marker::new()
        .set("id", "arrow")
        .set("viewBox", "0 0 8 8")
        .set("refX", 7)
        .set("refY", 4)
        .set("markerWidth", 8)
        .set("markerHeight", 8)
        .set("orient", "auto")
        .add(Path::new().set("class", "head").set("d", "M0 0 L8 4 L0 8 z"));
    let page = Rectangle::new().set("class", "page").set("width", WIDTH).set("height", height);
    let document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("role", "img")
        .set("aria-labelledby", "title desc")
        .add(Title::new("enid: what must be, and what is").set("id", "title"))
        .add(Description::new().set("id", "desc").add(svg::node::Text::new(picture.summary())))
        .add(Style::new(STYLE))
        .add(Definitions::new().add(arrow))
        .add(page)
        .add(canvas.group);
    format!("{document}\n")
}

/// What is drawn so far, and how far down that reaches.
struct Canvas {
    group: Group,
    y: usize,
}

impl Canvas {
    fn add(&mut self, node: impl Into<Box<dyn svg::Node>>) {
        self.group = std::mem::take(&mut self.group).add(node);
    }

    /// One line of text; its middle is half a line beneath `y`.
    fn text(&mut self, x: usize, class: &'static str, text: &str) {
        let y = self.y + LINE - 5;
        let text = Text::new(text).set("class", class).set("x", x).set("y", y);
        self.add(text);
    }

    /// Text that goes on in further lines; `y` is beneath the last one then.
    fn wrapped(&mut self, x: usize, width: usize, class: &'static str, text: &str) {
        for (n, line) in lines(text, (width - HANG) / LETTER).into_iter().enumerate() {
            self.text(if n == 0 { x } else { x + HANG }, class, &line);
            self.y += LINE;
        }
    }

    /// A mark; how wide it is, with the space behind it.
    fn pill(&mut self, x: usize, mark: Mark) -> usize {
        let word = mark.word();
        let width = word.len() * 29 / 4 + 9;
        let pill = Rectangle::new()
            .set("class", word)
            .set("x", x)
            .set("y", self.y + 2)
            .set("width", width)
            .set("height", LINE - 3)
            .set("rx", 4);
        self.add(pill);
        self.text(x + 5, "word", word);
        width + 6
    }

    fn row(&mut self, x: usize, width: usize, row: &Row) {
        let differs = !row.marks.is_empty();
        let mut indent = 0;
        for mark in &row.marks {
            indent += self.pill(x + indent, *mark);
        }
        // What is marked stands beneath its marks where there is no room beside them.
        if differs && row.text.chars().count() * LETTER > width.saturating_sub(indent) {
            self.y += LINE;
            indent = HANG;
        }
        let wide = width - indent;
        self.wrapped(x + indent, wide, if differs { "bold" } else { "plain" }, &row.text);
        if differs && !row.reason.is_empty() {
            self.wrapped(x + HANG, width - HANG, "soft", &row.reason);
        }
    }

    /// A box with a heading and a list; `y` is beneath it then.
    fn list(&mut self, x: usize, width: usize, heading: &str, list: &List) -> (usize, usize) {
        let top = self.y;
        let place = std::mem::take(&mut self.group);
        self.y += PAD / 2;
        self.text(x + PAD, "name", heading);
        self.y += LINE + 4;
        for row in &list.rows {
            self.row(x + PAD, width - 2 * PAD, row);
        }
        if list.rows.is_empty() {
            self.wrapped(x + PAD, width - 2 * PAD, "soft", "none");
        }
        if let Some(more) = &list.more {
            self.wrapped(x + PAD, width - 2 * PAD, "soft", more);
        }
        self.y += PAD / 2;
        let frame = Rectangle::new()
            .set("class", "box")
            .set("x", x)
            .set("y", top)
            .set("width", width)
            .set("height", self.y - top)
            .set("rx", 6);
        let content = std::mem::replace(&mut self.group, place);
        self.add(frame);
        self.add(content);
        (top, self.y)
    }

    fn card(&mut self, card: &Card) {
        let (top, place) = (self.y, std::mem::take(&mut self.group));
        self.y += PAD / 2;
        let label = Title::new(&*card.name);
        self.text(EDGE + PAD, "name", &card.name);
        let about = card.about.join(" · ");
        let shift = (card.name.chars().count() + 3) * (LETTER + 1);
        self.text(EDGE + PAD + shift, "soft", &about);
        self.y += HEAD - PAD / 2;
        for note in &card.notes {
            self.row(EDGE + PAD, WIDTH - 2 * EDGE - 2 * PAD, note);
        }
        self.y += PAD / 2;
        let lists = [
            (ADDRESSES, "addresses", &card.addresses),
            (RULES, "rules", &card.rules),
            (ROUTES, &*card.table, &card.routes),
            (GATEWAYS, "gateways", &card.gateways),
        ];
        let (line, mut x, mut bottom) = (self.y, EDGE + PAD, self.y);
        for (n, (width, heading, list)) in lists.into_iter().enumerate() {
            self.y = line;
            let width = if n == 0 || n == 3 { width - PAD } else { width };
            self.list(x, width, heading, list);
            bottom = bottom.max(self.y);
            x += width;
            if n < 3 {
                let y = line + LINE;
                let d = format!("M{} {y} L{} {y}", x + 4, x + GAP - 4);
                let arrow = Path::new().set("class", "arrow").set("d", d);
                self.add(arrow.set("marker-end", "url(#arrow)"));
            }
            x += GAP;
        }
        self.y = bottom + PAD;
        let frame = Rectangle::new()
            .set("class", "eni")
            .set("x", EDGE)
            .set("y", top)
            .set("width", WIDTH - 2 * EDGE)
            .set("height", self.y - top)
            .set("rx", 8);
        let content = std::mem::replace(&mut self.group, place);
        self.add(Group::new().add(label).add(frame).add(content));
        self.y += PAD;
    }
}

/// A text in lines of so many letters; a word that is longer is cut.
fn lines(text: &str, letters: usize) -> Vec<String> {
    let letters = letters.max(8);
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let used = lines.last().map_or(0, |line| line.chars().count());
            let space = usize::from(used > 0);
            if used + space + rest.len() <= letters {
                let line: String = rest.drain(..).collect();
                push(&mut lines, space == 1, &line);
            } else if used > 0 {
                lines.push(String::new());
            } else {
                let line: String = rest.drain(..letters).collect();
                push(&mut lines, false, &line);
            }
        }
    }
    lines
}

fn push(lines: &mut [String], space: bool, text: &str) {
    if let Some(line) = lines.last_mut() {
        if space {
            line.push(' ');
        }
        line.push_str(text);
    }
}
