//! `enictl refresh`: metadata is read now, and a pass runs.

use enid_control::Refreshed;
use enid_control::status::Verdict;

use crate::cli::{self, Cli};
use crate::text::{print, print_json, span, wrap};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Refresh) -> anyhow::Result<Exit> {
    let refreshed = socket::connect(cli).await??.refresh(arguments.wait, arguments.timeout).await?;
    if cli.json {
        print_json(&refreshed)?;
    } else if arguments.wait {
        print(&render(&refreshed, arguments.timeout.as_secs()))?;
    } else {
        print("enid reads metadata now; `enictl status` shows what comes of it\n")?;
    }
    Ok(if arguments.wait { exit(&refreshed) } else { Exit::Done })
}

fn exit(refreshed: &Refreshed) -> Exit {
    match (refreshed.timed_out, refreshed.verdict) {
        (false, Verdict::Converged) => Exit::Done,
        (true, Verdict::Converged) | (_, Verdict::Waiting | Verdict::NotYet) => Exit::NotYet,
    }
}

fn render(refreshed: &Refreshed, seconds: u64) -> String {
    let verdict = match refreshed.verdict {
        Verdict::Converged => "converged",
        Verdict::Waiting => "waiting",
        Verdict::NotYet => "not converged yet",
    };
    let mut out = String::new();
    if refreshed.timed_out {
        let text = format!("{verdict}: {} were not enough", span(seconds));
        wrap(&mut out, "", &text);
    } else {
        wrap(&mut out, "", verdict);
    }
    for waiting in &refreshed.waiting {
        wrap(&mut out, "  waits: ", waiting);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_was_not_enough_is_told_with_what_is_waited_for() {
        let refreshed = Refreshed {
            verdict: Verdict::Waiting,
            timed_out: true,
            waiting: vec!["eni-1 (ens6): one removal waits for proof".to_owned()],
        };
        assert_eq!(
            render(&refreshed, 30),
            "waiting: 30 s were not enough\n  waits: eni-1 (ens6): one removal waits for proof\n"
        );
        assert_eq!(exit(&refreshed), Exit::NotYet);
        let refreshed =
            Refreshed { verdict: Verdict::Converged, timed_out: false, waiting: Vec::new() };
        assert_eq!(render(&refreshed, 30), "converged\n");
        assert_eq!(exit(&refreshed), Exit::Done);
    }
}
