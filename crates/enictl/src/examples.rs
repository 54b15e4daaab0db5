//! Examples of each command, for `--help` and the manual.

use clap::Command;

use crate::cli::EXIT_CODES;

/// A command line without `enictl`, as a shell takes it, and what it is good for.
type Example = (&'static str, &'static str);

/// Examples by the command that they are of; nothing for `enictl` itself.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            ("status", "how it stands with all ENIs and addresses"),
            ("plan", "what would be done now, and why"),
            ("check", "what is wrong beside that, and what to do about it"),
            ("events --since 1h", "what happened within the last hour"),
        ],
    ),
    (
        "status",
        &[
            ("status", "how it stands; the exit code says whether all is well"),
            ("status --all", "with every address, also where there are many"),
            ("status --watch", "drawn anew every second"),
            ("status --json | jq -r '.enis[].addresses[].address'", "for scripts"),
        ],
    ),
    (
        "plan",
        &[
            ("plan", "what the next pass would do, each step with its reason"),
            ("plan --json | jq '.steps | length'", "how many steps there are"),
        ],
    ),
    (
        "explain",
        &[
            (
                "explain 10.0.2.9",
                "why it is there or not, and the way of its packets to the outside",
            ),
            ("explain 10.0.2.9 --to 10.0.1.4", "the way of its packets to there"),
            ("explain ens6", "what metadata says of an ENI, and all that it has"),
            ("explain from 10.0.2.0/24", "the rules for what is sent from there"),
        ],
    ),
    (
        "graph",
        &[
            ("graph", "a picture in SVG; `> enid.svg` keeps it for a browser"),
            ("graph --format mermaid", "for a document or a ticket"),
            ("graph --json | jq '.enis[].objects[] | select(.state != \"there\")'", "what differs"),
        ],
    ),
    (
        "events",
        &[
            ("events --since 10m", "what happened within the last ten minutes"),
            ("events -f", "what happened and what happens, until interrupted"),
            ("events -f --json | jq -c 'select(.address)'", "only what is about addresses"),
        ],
    ),
    (
        "check",
        &[
            ("check", "what is wrong with the network of this machine, each with its remedy"),
            ("check --probe example.com:443", "whether each address reaches it"),
        ],
    ),
    (
        "explain",
        &[
            ("explain 10.0.2.9", "where the address comes from, and which way its packets go"),
            ("explain 10.0.2.9 --to 10.9.0.1", "the way to one destination"),
            ("explain ens6", "what metadata said of the ENI, and what was made of it"),
            ("explain 20020", "what the rules of this priority are for"),
        ],
    ),
    (
        "graph",
        &[
            ("graph > enid.svg", "a picture for a browser"),
            ("graph --format mermaid", "one for a document or a ticket"),
        ],
    ),
    ("metrics", &[("metrics", "as a scraper gets them")]),
    (
        "refresh",
        &[
            ("refresh", "read metadata now instead of at the next poll"),
            ("refresh --wait --timeout 1m", "return when the kernel has what metadata says"),
        ],
    ),
    (
        "wait",
        &[
            ("wait --address 10.0.2.9 --timeout 1m", "after it was assigned in the cloud"),
            ("wait --absent 10.0.2.9 --timeout 5m", "after it was unassigned"),
            ("wait --eni eni-0123456789abcdef0", "after it was attached"),
            ("wait --online", "in a unit that needs all ENIs"),
        ],
    ),
    (
        "hold",
        &[
            (
                "hold ens6 --for 1h --reason 'moving the database'",
                "leave ens6 as it is for an hour",
            ),
            ("hold eni-0123456789abcdef0", "until `enictl unhold` or the next boot"),
        ],
    ),
    ("unhold", &[("unhold ens6", "manage ens6 again"), ("unhold --all", "the same for every ENI")]),
    (
        "release",
        &[
            ("release ens6", "before another program takes ens6 over"),
            ("release --all", "before enid is removed from this machine"),
        ],
    ),
    ("reload", &[("reload", "after an edit below /etc/enid; says what is wrong with it")]),
    (
        "drop",
        &[("drop 10.0.2.9", "once it was unassigned in the cloud, without waiting for the grace")],
    ),
];

/// The command with the examples of each of its commands beneath the help.
pub(crate) fn with_examples(mut command: Command) -> Command {
    for (name, examples) in EXAMPLES {
        let help = format!("{}\n{EXIT_CODES}", text(examples));
        command = if name.is_empty() {
            command.after_help(help)
        } else {
            command.mut_subcommand(name, |command| command.after_help(help))
        };
    }
    command
}

fn text(examples: &[Example]) -> String {
    let examples = examples.iter().map(|(line, says)| format!("  enictl {line}\n      {says}\n"));
    format!("Examples:\n{}", examples.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_examples_and_exit_codes_in_its_help() {
        let known: BTreeSet<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
        let mut command = with_examples(Cli::command());
        command.build();
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            assert!(known.contains(name), "`enictl {name}` has no examples");
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains(&format!("Examples:\n  enictl {name}")), "{help}");
            assert!(help.contains("Exit codes:\n  0"), "{help}");
        }
    }

    #[test]
    fn every_example_is_understood() {
        for (name, examples) in EXAMPLES {
            for (line, _) in *examples {
                let own = line.split(" | ").next().unwrap().split(" > ").next().unwrap();
                assert!(own.starts_with(name), "{line} is no example of {name}");
                // Quoted words are one.
                let words = own.split('\'').enumerate().flat_map(|(n, part)| {
                    let words: Vec<&str> =
                        if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() };
                    words
                });
                let words = std::iter::once("enictl").chain(words);
                assert!(Cli::try_parse_from(words).is_ok(), "enictl {line}");
            }
        }
    }
}
