//! `enictl plan`: what the next pass would do; nothing is done.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use enid_control::{ClientError, Plan};

use crate::cli::Cli;
use crate::text::{clean, print, print_json};
use crate::{Exit, socket};

pub(crate) async fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let plan = match socket::connect(cli).await? {
        Ok(mut client) => client.plan().await?,
        Err(ClientError::NoDaemon { path, .. }) => {
            look(cli.config.as_deref()).await.with_context(|| {
                format!("no enid answers at {}: looking without it", path.display())
            })?
        }
        Err(error) => return Err(error.into()),
    };
    if cli.json {
        print_json(&plan)?;
    } else {
        print(&render(&plan))?;
    }
    Ok(if plan.steps.is_empty() { Exit::Done } else { Exit::NotYet })
}

/// Looks at metadata and kernel here and decides, as the daemon would after its start.
async fn look(config: Option<&Path>) -> anyhow::Result<Plan> {
    Ok(enid::look(&enid::config::load(config)?).await?.plan)
}

/// One command a line; what is no command is a comment, so that a shell can read it.
fn render(plan: &Plan) -> String {
    let mut out = String::new();
    if !plan.daemon {
        out.push_str("# no enid is running: this is what it would do after its start\n");
    }
    if plan.steps.is_empty() {
        out.push_str("nothing to do\n");
    }
    for step in &plan.steps {
        let proof =
            if step.not_counted { "not counted: only after proof that it is stale; " } else { "" };
        let _ = writeln!(out, "{}  # {proof}{}", clean(&step.command), clean(&step.reason));
    }
    out
}

#[cfg(test)]
mod tests {
    use enid_control::{PlannedStep, StepKind};

    use super::*;

    fn steps() -> Vec<PlannedStep> {
        vec![
            PlannedStep::new(
                StepKind::Create,
                "ip -4 address add 10.0.1.9/32 dev ens6".to_owned(),
                Some("eni-1".to_owned()),
                "metadata grants it".to_owned(),
            ),
            PlannedStep::new(
                StepKind::Delete,
                "ip -4 address del 10.0.1.8/32 dev ens6".to_owned(),
                Some("eni-1".to_owned()),
                "it is proven that metadata no longer grants it".to_owned(),
            ),
        ]
    }

    #[test]
    fn a_plan_reads_like_a_script() {
        assert_eq!(
            render(&Plan::new(steps())),
            "\
ip -4 address add 10.0.1.9/32 dev ens6  # metadata grants it
ip -4 address del 10.0.1.8/32 dev ens6  # it is proven that metadata no longer grants it
"
        );
        assert_eq!(
            render(&Plan::without_daemon(steps())),
            "\
# no enid is running: this is what it would do after its start
ip -4 address add 10.0.1.9/32 dev ens6  # metadata grants it
ip -4 address del 10.0.1.8/32 dev ens6  # not counted: only after proof that it is stale; it is proven that metadata no longer grants it
"
        );
    }

    #[test]
    fn an_empty_plan_says_so() {
        assert_eq!(render(&Plan::new(Vec::new())), "nothing to do\n");
    }
}
