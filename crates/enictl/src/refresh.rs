//! `enictl refresh`: metadata is read now, and a pass runs.

use enid_control::Refreshed;
use enid_control::status::Verdict;

use crate::cli::{self, Cli};
use crate::text::{print, print_json, wrap};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli, arguments: &cli::Refresh) -> anyhow::Result<Exit> {
    let refreshed = socket::connect(cli).await??.refresh(arguments.wait, arguments.timeout).await?;
    if cli.json {
        print_json(&refreshed)?;
    } else {
        print(&render(&refreshed, arguments.wait))?;
    }
    Ok(exit(&refreshed, arguments.wait))
}

/// Without waiting for convergence it is enough that metadata was read.
fn exit(refreshed: &Refreshed, wait: bool) -> Exit {
    match refreshed.verdict {
        _ if refreshed.timed_out => Exit::NotYet,
        Verdict::Waiting | Verdict::NotYet if wait => Exit::NotYet,
        Verdict::Converged | Verdict::Waiting | Verdict::NotYet => Exit::Done,
    }
}

fn render(refreshed: &Refreshed, wait: bool) -> String {
    let verdict = match refreshed.verdict {
        Verdict::Converged => "converged",
        Verdict::Waiting => "waiting",
        Verdict::NotYet => "not converged yet",
    };
    let mut out = match (refreshed.timed_out, wait) {
        (false, _) => format!("{verdict}\n"),
        (true, true) => format!("{verdict}, and the time is up\n"),
        (true, false) => format!("metadata was not read in time; before that: {verdict}\n"),
    };
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
            render(&refreshed, true),
            "waiting, and the time is up\n  waits: eni-1 (ens6): one removal waits for proof\n"
        );
        assert_eq!(exit(&refreshed, true), Exit::NotYet);
        assert_eq!(exit(&refreshed, false), Exit::NotYet);
    }

    #[test]
    fn a_reading_is_enough_unless_convergence_is_waited_for() {
        let refreshed =
            Refreshed { verdict: Verdict::Waiting, timed_out: false, waiting: Vec::new() };
        assert_eq!(render(&refreshed, false), "waiting\n");
        assert_eq!(exit(&refreshed, false), Exit::Done);
        assert_eq!(exit(&refreshed, true), Exit::NotYet);
    }
}
