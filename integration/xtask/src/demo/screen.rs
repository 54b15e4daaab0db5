//! What the demo shows: lines of at most 100 columns, in colour where somebody watches.

use std::io::IsTerminal as _;
use std::time::Duration;

use crate::say;

/// No line is longer, as far as words allow it.
const WIDTH: usize = 100;
/// Where the text beside a label starts.
const INDENT: usize = 15;
/// Where the output of a command starts.
const BLOCK: usize = 8;

#[derive(Clone, Copy)]
pub(super) enum Tone {
    Bold,
    Dim,
    Good,
    Bad,
}

pub(super) struct Screen {
    colour: bool,
}

impl Screen {
    /// Colour on a terminal, unless `NO_COLOR` is there and not empty.
    pub(super) fn detect() -> Screen {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen { colour: std::io::stdout().is_terminal() && !unwanted }
    }

    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Bold => 1,
            Tone::Dim => 2,
            Tone::Good => 32,
            Tone::Bad => 31,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A headline with a number.
    pub(super) fn headline(&self, number: usize, text: &str) -> anyhow::Result<()> {
        say("")?;
        say(&self.paint(Tone::Bold, &format!("{number:2}  {text}")))
    }

    /// A label and its text, broken between words beneath its beginning.
    pub(super) fn labelled(&self, label: &str, text: &str) -> anyhow::Result<()> {
        for (number, line) in wrap(text).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            let label = self.paint(Tone::Dim, &format!("    {label:11}"));
            say(&format!("{label}{line}"))?;
        }
        Ok(())
    }

    /// What a command said, as it is, a little to the right where it fits.
    pub(super) fn block(&self, command: &str, text: &str) -> anyhow::Result<()> {
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default();
        let indent = BLOCK.min(WIDTH.saturating_sub(widest));
        say(&format!("{:indent$}{}", "", self.paint(Tone::Dim, &format!("$ {command}"))))?;
        for line in text.lines() {
            say(format!("{:indent$}{line}", "").trim_end())?;
        }
        Ok(())
    }
}

/// Breaks a text into lines that fit beside a label.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if line.is_empty() {
                line.push_str(word);
            } else if INDENT + line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::replace(&mut line, word.to_owned()));
            } else {
                line.push(' ');
                line.push_str(word);
            }
        }
        lines.push(line);
    }
    lines
}

/// A time in milliseconds, with a decimal where it tells something.
pub(super) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{INDENT, WIDTH, ms, wrap};

    #[test]
    fn long_text_is_broken_where_it_must() {
        let lines = wrap(&"word ".repeat(60));
        assert!(lines.iter().all(|line| INDENT + line.len() <= WIDTH), "{lines:?}");
        assert_eq!(wrap("a b"), ["a b"]);
    }

    #[test]
    fn short_times_have_a_decimal() {
        assert_eq!(ms(Duration::from_micros(9_340)), "9.3 ms");
        assert_eq!(ms(Duration::from_millis(4_105)), "4105 ms");
    }
}
