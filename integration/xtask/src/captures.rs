//! `cargo xtask captures`: what the documents show of `enictl`, taken anew from a live instance.
//!
//! Where a document has `<!-- captured: enictl … -->`, the block of code beneath it is what that command
//! says. Which commands, and what has happened before, is in [`ACTS`].

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Daemon, Enictl, Launch, eventually};
use vpc::{Config, EniId, EniSpec, Instance, Vpc};

use crate::demo::build;
use crate::tools::{files, top};
use crate::{leave_nothing_behind, needs, say};

/// Takes what the documents show of enictl anew, from a simulated instance.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Take enid and enictl from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Something that happens, and the commands that are asked then, without `enictl`.
struct Act {
    happens: fn(&mut Scene) -> anyhow::Result<()>,
    asked: &'static [&'static str],
    /// Commands that draw a picture, and its file in `docs`.
    drawn: &'static [(&'static str, &'static str)],
}

/// What is shown, in the order in which it happens.
const ACTS: [Act; 4] = [
    Act { happens: |scene| scene.attach(), asked: &["plan"], drawn: &[] },
    Act { happens: |scene| scene.start(), asked: &[], drawn: &[] },
    Act {
        happens: |scene| scene.change(),
        asked: &["status", "explain 10.0.2.9", "events"],
        drawn: &[("graph", "captures/graph.svg")],
    },
    Act { happens: |scene| scene.break_it(), asked: &["check"], drawn: &[] },
];

/// No act waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const GOING: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 9);

/// An instance whose second ENI is a web server's and whose third is held.
struct Scene {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    third: EniId,
    daemon: Daemon,
}

impl Scene {
    fn build() -> anyhow::Result<Scene> {
        let vpc = Vpc::new(Config::default().subnet("10.0.1.0/24").subnet("10.0.2.0/24"))?;
        let public = |last| Ipv4Addr::new(203, 0, 113, last);
        let instance = vpc.instance("main", EniSpec::new([FIRST]).public(FIRST, public(1)))?;
        let second = vpc.create_eni(EniSpec::new([SECOND]).public(SECOND, public(2)))?;
        let third = vpc.create_eni(EniSpec::new([THIRD]))?;
        let daemon = Daemon::prepare(&instance, &Launch::default(), "")?;
        Ok(Scene { vpc, instance, second, third, daemon })
    }

    /// An ENI is attached before enid runs.
    fn attach(&mut self) -> anyhow::Result<()> {
        self.vpc.attach(&self.second, &self.instance, "ens6")?;
        Ok(())
    }

    /// Another one is attached while it runs; then it begins to count events anew.
    fn start(&mut self) -> anyhow::Result<()> {
        self.daemon.restart()?;
        self.daemon.wait_ready(PATIENCE)?;
        self.vpc.attach(&self.third, &self.instance, "ens7")?;
        self.daemon.enictl().run(&["wait", "--eni", &self.third.0])?.success()?;
        self.daemon.restart()?;
        self.daemon.wait_ready(PATIENCE)?;
        self.vpc.assign(&self.second, GOING, Some(Ipv4Addr::new(203, 0, 113, 3)))?;
        self.daemon.enictl().run(&["wait", "--address", &GOING.to_string()])?.success()?;
        Ok(())
    }

    /// The link of the ENI that is held goes down.
    fn break_it(&mut self) -> anyhow::Result<()> {
        self.instance.run(&["ip", "link", "set", "ens7", "down"])?;
        eventually(PATIENCE, "the check finds it", &self.daemon, || {
            let said = self.daemon.enictl().run(&["check"])?.stdout;
            ensure!(said.contains("link-down"), "{said}");
            Ok(())
        })
    }

    /// An address is unassigned, and an ENI is held.
    fn change(&mut self) -> anyhow::Result<()> {
        let why = ["--for", "1h", "--reason", "moving the database"];
        self.daemon.enictl().run(&[&["hold", "ens7"], &why[..]].concat())?.success()?;
        self.vpc.unassign(&self.second, GOING)?;
        eventually(PATIENCE, "the address leaves", &self.daemon, || {
            self.daemon.enictl().run(&["refresh"])?.success()?;
            let said = self.daemon.enictl().run(&["status"])?.stdout;
            ensure!(said.contains("leaving"), "{said}");
            Ok(())
        })
    }
}

/// Builds what is needed, then plays the acts in a world of its own and writes what was asked to the documents.
///
/// # Errors
/// When something does not happen, or a document cannot be written.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    needs::ensure(&needs::NAMESPACES)?;
    let binaries = build::given_or_release(arguments.binaries.as_deref())?;
    if !build::runs_with(&binaries) {
        return Err(build::run_with(&binaries, &["captures"]));
    }
    vpc::enter()?;
    leave_nothing_behind()?;
    let mut scene = Scene::build()?;
    let (mut captured, mut pictures) = (Vec::new(), Vec::new());
    for act in ACTS {
        (act.happens)(&mut scene)?;
        let enictl = Enictl::new(&scene.instance, &scene.daemon.config());
        for command in act.asked {
            let said = enictl.run(&command.split(' ').collect::<Vec<_>>())?;
            ensure!(!said.stdout.is_empty(), "{said:?}");
            // Where enid keeps its things here is chosen anew each time.
            let home = scene.daemon.config();
            let home = home.parent().context("a configuration without a folder")?;
            let said = said.stdout.replace(&*home.to_string_lossy(), "/etc/enid");
            captured.push((*command, said));
        }
        for (command, file) in act.drawn {
            let picture = enictl.run(&command.split(' ').collect::<Vec<_>>())?.success()?;
            pictures.push((top().join("docs").join(file), picture));
        }
    }
    scene.daemon.terminate()?;
    for (file, picture) in pictures {
        let writing = || format!("writing {}", file.display());
        fs::create_dir_all(file.parent().unwrap_or(&file)).with_context(writing)?;
        fs::write(&file, picture).with_context(writing)?;
        say(&file.display().to_string())?;
    }
    for file in documents()? {
        let text = fs::read_to_string(&file)?;
        let mut new = text.clone();
        for (command, said) in &captured {
            new = renewed(&new, command, said).with_context(|| format!("in {}", file.display()))?;
        }
        if new != text {
            fs::write(&file, new).with_context(|| format!("writing {}", file.display()))?;
            say(&file.display().to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn documents() -> anyhow::Result<Vec<PathBuf>> {
    let mut documents = files(&top().join("docs"))?;
    documents.retain(|file| file.extension().is_some_and(|end| end == "md"));
    documents.push(top().join("README.md"));
    Ok(documents)
}

fn comment(command: &str) -> String {
    format!("<!-- captured: enictl {command} -->\n")
}

/// A document whose block of this command says this, if there is one.
fn renewed(document: &str, command: &str, said: &str) -> anyhow::Result<String> {
    let Some((before, after)) = document.split_once(&comment(command)) else {
        return Ok(document.to_owned());
    };
    let block = after.strip_prefix("```\n").and_then(|after| after.split_once("\n```\n"));
    let (_, rest) =
        block.with_context(|| format!("no block of code is beneath enictl {command}"))?;
    Ok(format!("{before}{}```\n$ enictl {command}\n{said}```\n{rest}", comment(command)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_block_is_replaced_and_nothing_else() {
        let document = "a\n<!-- captured: enictl plan -->\n```\nold\n```\nb\n```\nc\n```\n";
        assert_eq!(
            renewed(document, "plan", "nothing to do\n").unwrap(),
            "a\n<!-- captured: enictl plan -->\n```\n$ enictl plan\nnothing to do\n```\nb\n```\nc\n```\n"
        );
        assert_eq!(renewed(document, "status", "").unwrap(), document);
        assert!(renewed("<!-- captured: enictl plan -->\nold\n", "plan", "").is_err());
    }

    #[test]
    fn what_is_captured_is_shown_and_what_is_shown_is_captured() {
        let asked: BTreeSet<String> =
            ACTS.iter().flat_map(|act| act.asked).map(|command| comment(command)).collect();
        let mut shown = BTreeSet::new();
        for file in documents().unwrap() {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().filter(|line| line.starts_with("<!-- captured: "));
            shown.extend(lines.map(|line| format!("{line}\n")));
        }
        assert_eq!(shown, asked, "`cargo xtask captures` and the documents differ");
        let operating = fs::read_to_string(top().join("docs/operating.md")).unwrap();
        for (_, file) in ACTS.iter().flat_map(|act| act.drawn) {
            assert!(operating.contains(&format!("]({file})")), "{file} is in no document");
        }
    }
}
