//! Markdown of this project as the text of a page of the manual.

use clap_mangen::roff::{Inline, Roff, bold, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Writes a document beneath a page's heading: its parts become sections, and each line of a table an entry
/// with what it is, in brackets what is there without it, and what it means.
pub(super) fn append(page: &mut Roff, text: &str) {
    let mut writer =
        Writer { page, line: Vec::new(), strong: false, headed: true, place: Place::Text };
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        writer.take(event);
    }
}

/// Where in the document the text belongs.
enum Place {
    Text,
    Title,
    Code,
    /// The head of a table, by column.
    Head(Vec<String>),
    /// A line of a table that has this head, by column.
    Row {
        head: Vec<String>,
        cells: Vec<Vec<Inline>>,
    },
    Item {
        begun: bool,
    },
}

struct Writer<'a> {
    page: &'a mut Roff,
    line: Vec<Inline>,
    strong: bool,
    /// A heading came last, which begins a paragraph by itself.
    headed: bool,
    place: Place,
}

impl Writer<'_> {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if matches!(self.place, Place::Code) => {
                for line in text.lines() {
                    self.page.text([roman(line)]);
                }
            }
            Event::Text(text) if self.strong => self.line.push(bold(&*text)),
            Event::Text(text) => self.line.push(roman(&*text)),
            Event::Code(text) => self.line.push(bold(&*text)),
            Event::SoftBreak | Event::HardBreak => self.line.push(roman(" ")),
            // The documents have none of these.
            Event::Html(_)
            | Event::InlineHtml(_)
            | Event::InlineMath(_)
            | Event::DisplayMath(_)
            | Event::FootnoteReference(_)
            | Event::Rule
            | Event::TaskListMarker(_) => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        self.begin(tag);
        self.headed = false;
    }

    fn begin(&mut self, tag: &Tag<'_>) {
        if matches!(tag, Tag::Strong) {
            self.strong = true;
        } else if matches!(tag, Tag::Heading { level: HeadingLevel::H1, .. }) {
            self.place = Place::Title;
        } else if matches!(tag, Tag::Paragraph) {
            if let Place::Item { begun } = &mut self.place
                && !*begun
            {
                *begun = true;
            } else if !self.headed {
                self.page.control("PP", []);
            }
        } else if matches!(tag, Tag::CodeBlock(_)) {
            self.flush();
            self.page.control("RS", ["4"]).control("nf", []);
            self.place = Place::Code;
        } else if matches!(tag, Tag::Item) {
            self.page.control("IP", ["\\(bu", "2"]);
            self.place = Place::Item { begun: false };
        } else if matches!(tag, Tag::TableHead) {
            self.place = Place::Head(Vec::new());
        } else if matches!(tag, Tag::TableRow) {
            let head = match std::mem::replace(&mut self.place, Place::Text) {
                Place::Head(head) | Place::Row { head, .. } => head,
                Place::Text | Place::Title | Place::Code | Place::Item { .. } => Vec::new(),
            };
            self.place = Place::Row { head, cells: Vec::new() };
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong => self.strong = false,
            TagEnd::Heading(HeadingLevel::H1) => {
                self.line.clear();
                self.place = Place::Text;
                self.headed = true;
            }
            TagEnd::Heading(level) => {
                let title = plain(&std::mem::take(&mut self.line));
                if level == HeadingLevel::H2 {
                    self.page.control("SH", [quoted(&title.to_uppercase()).as_str()]);
                } else {
                    self.page.control("SS", [quoted(&title).as_str()]);
                }
                self.headed = true;
            }
            TagEnd::Paragraph => self.flush(),
            TagEnd::CodeBlock => {
                self.page.control("fi", []).control("RE", []);
                self.place = Place::Text;
            }
            TagEnd::Item => {
                self.flush();
                self.place = Place::Text;
            }
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.line);
                match &mut self.place {
                    Place::Head(head) => head.push(plain(&cell)),
                    Place::Row { cells, .. } => cells.push(cell),
                    Place::Text | Place::Title | Place::Code | Place::Item { .. } => {}
                }
            }
            TagEnd::TableRow => self.entry(),
            TagEnd::Table => self.place = Place::Text,
            // Their text is all there is of them, or the documents have none.
            TagEnd::BlockQuote(_)
            | TagEnd::HtmlBlock
            | TagEnd::List(_)
            | TagEnd::FootnoteDefinition
            | TagEnd::DefinitionList
            | TagEnd::DefinitionListTitle
            | TagEnd::DefinitionListDefinition
            | TagEnd::TableHead
            | TagEnd::Emphasis
            | TagEnd::Strikethrough
            | TagEnd::Superscript
            | TagEnd::Subscript
            | TagEnd::Link
            | TagEnd::Image
            | TagEnd::MetadataBlock(_) => {}
        }
    }

    /// The text so far.
    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.page.text(std::mem::take(&mut self.line));
        }
    }

    /// A line of a table: what it is, in brackets what is between, then what it means.
    fn entry(&mut self) {
        let Place::Row { head, cells } = &mut self.place else { return };
        let mut cells = std::mem::take(cells).into_iter().zip(head.iter());
        let (Some((mut name, _)), Some((meaning, _))) = (cells.next(), cells.next_back()) else {
            return;
        };
        for (cell, what) in cells.filter(|(cell, _)| !cell.is_empty()) {
            name.push(roman(format!("  ({what}: ")));
            name.extend(cell);
            name.push(roman(")"));
        }
        self.page.control("TP", []).text(name);
        self.page.text(meaning);
    }
}

/// What roff takes for the quotes around an argument must not be in it.
fn quoted(title: &str) -> String {
    title.replace('"', "")
}

fn plain(line: &[Inline]) -> String {
    let text = |inline: &Inline| match inline {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text.clone(),
        Inline::LineBreak => " ".to_owned(),
    };
    line.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_like_a_page_of_the_manual() {
        let mut page = Roff::new();
        let text = "\
# Title

Before **all**.

More.

## `[links]`

| key | default | meaning |
|---|---|---|
| `mtu` | `\"keep\"` | a number |
| `match` | | which [ones](#here) |

### Lists

- one
  that goes on
- two

```
.not a request
```
";
        append(&mut page, text);
        assert_eq!(
            page.to_roff(),
            "\
Before \\fBall\\fR.
.PP
More.
.SH [LINKS]
.TP
\\fBmtu\\fR  (default: \\fB\"keep\"\\fR)
a number
.TP
\\fBmatch\\fR
which ones
.SS Lists
.IP \\(bu 2
one that goes on
.IP \\(bu 2
two
.RS 4
.nf
\\&.not a request
.fi
.RE
"
        );
    }
}
