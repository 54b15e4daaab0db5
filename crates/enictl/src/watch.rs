//! `enictl status --watch`: the status, drawn anew every second.

use std::io::{self, IsTerminal};
use std::time::Duration;

use enid_control::Status;
use terminal_size::{Height, terminal_size};

use crate::cli::{self, Cli};
use crate::text::{Paint, clean, is_read};
use crate::{Exit, socket, status};

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(cli: &Cli, arguments: &cli::Status) -> anyhow::Result<Exit> {
    if !cli.json && !io::stdout().is_terminal() {
        anyhow::bail!(
            "--watch draws on a terminal, and standard output is none; --json prints a line every \
             second, and `enictl events --follow` what happens"
        );
    }
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = ask(cli).await;
        let text = match (status, cli.json) {
            (Ok(status), true) => format!("{}\n", serde_json::to_string(&status)?),
            (Ok(status), false) => {
                frame(&status::render(&status, Paint::detect(), arguments.all), height())
            }
            // It may be restarting: whoever watches wants to see it come back.
            (Err(error), false) => {
                frame(&format!("{}; trying again\n", clean(&format!("{error:#}"))), height())
            }
            (Err(error), true) => return Err(error),
        };
        if !is_read(&text)? {
            return Ok(Exit::Done);
        }
    }
}

async fn ask(cli: &Cli) -> anyhow::Result<Status> {
    Ok(socket::connect(cli).await??.status().await?)
}

fn height() -> Option<usize> {
    terminal_size().map(|(_, Height(rows))| usize::from(rows))
}

/// What draws the text over the one before without flicker, as far as it fits.
fn frame(text: &str, height: Option<usize>) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let room = height.map_or(lines.len(), |height| height.saturating_sub(1).max(1));
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut frame = "\x1b[H".to_owned();
    for line in lines.iter().take(shown) {
        frame.push_str(line);
        frame.push_str("\x1b[K\r\n");
    }
    if shown < lines.len() {
        let more = lines.len() - shown;
        frame.push_str(&format!("… {more} more lines; `enictl status` has them all\x1b[K\r\n"));
    }
    frame.push_str("\x1b[J");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_does_not_fit_says_what_is_left_out() {
        let frame = frame("1\n2\n3\n4\n5\n", Some(4));
        assert!(frame.contains("2\x1b[K"), "{frame:?}");
        assert!(!frame.contains("3\x1b[K"), "{frame:?}");
        assert!(frame.contains("3 more lines"), "{frame:?}");
        assert_eq!(frame.matches("\r\n").count(), 3);
    }

    #[test]
    fn each_line_wipes_what_stood_there() {
        assert_eq!(frame("a\nb\n", None), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
