//! Promise: the operator gets a picture of what there is, in which everything stands that counts and
//! what differs from the wish is marked.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::{Daemon, trial};
use libtest_mimic::Trial;
use roxmltree::Document;

use crate::pair::{Pair, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("graph::everything_that_counts_is_drawn", drawn),
        trial("graph::what_a_held_eni_lacks_is_marked", marked),
        trial("graph::every_kind_of_thing_that_differs_is_marked", kinds),
        trial("graph::what_is_left_while_nobody_knows_whose_it_is_is_drawn", left),
    ]
}

const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

fn draw(daemon: &Daemon, format: &str) -> anyhow::Result<String> {
    let said = daemon.enictl().run(&["graph", "--format", format])?;
    ensure!(said.code == Some(0) && said.stderr.is_empty(), "{said:?}");
    Ok(said.stdout)
}

/// Its texts, and the words of its marks.
fn read(svg: &str) -> anyhow::Result<(Vec<String>, BTreeSet<String>)> {
    let document = Document::parse(svg).with_context(|| svg.to_owned())?;
    let root = document.root_element();
    ensure!(root.tag_name().namespace() == Some("http://www.w3.org/2000/svg"), "{svg}");
    let first = root.first_element_child().map(|child| child.tag_name().name().to_owned());
    ensure!(first.as_deref() == Some("title"), "{first:?}");
    ensure!(root.children().any(|child| child.has_tag_name("desc")), "{svg}");
    let texts = root
        .descendants()
        .filter(|node| node.tag_name().name() == "text" && node.attribute("class") != Some("word"));
    let text = |node: roxmltree::Node<'_, '_>| {
        node.descendants()
            .filter(|it| it.is_text())
            .filter_map(|it| it.text())
            .collect::<String>()
            .trim()
            .to_owned()
    };
    let words = root.descendants().filter(|node| node.attribute("class") == Some("word"));
    Ok((texts.map(text).collect(), words.map(text).collect()))
}

fn drawn() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    for last in 5..9 {
        pair.vpc.assign(&pair.second, Ipv4Addr::new(10, 0, 2, last), None)?;
    }
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "not assigned");
    let svg = draw(&daemon, "svg")?;
    let (texts, marks) = read(&svg)?;
    let mermaid = draw(&daemon, "mermaid")?;
    ensure!(mermaid.contains("flowchart LR"), "{mermaid}");
    for words in [
        &*pair.second.0,
        &*pair.instance.primary.0,
        "10.0.1.4/",
        "10.0.2.4/24",
        "10.0.2.5/32",
        "10.0.2.6/32",
        "10.0.2.7/32",
        "10.0.2.8/32",
        "10.0.2.1",
        "10.0.1.1",
        "table 20000",
        "table 20001",
        "20020 from 10.0.2.0/24 iif lo lookup 20001",
        "default via 10.0.2.1 src 10.0.2.4",
    ] {
        ensure!(texts.iter().any(|text| text.contains(words)), "{words} is not in {texts:#?}");
        ensure!(mermaid.contains(words), "{words} is not in {mermaid}");
    }
    ensure!(marks.is_empty(), "{marks:?}");
    ensure!(svg.contains("prefers-color-scheme: dark"), "{svg}");
    let json = daemon.enictl().run(&["graph", "--json"])?.json()?;
    ensure!(json["enis"][1]["link"] == "ens6" && json["schema"] == 1, "{json}");
    daemon.terminate()
}

fn marked() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    pair.vpc.assign(&pair.second, SECONDARY, None)?;
    ensure!(daemon.enictl().run(&["refresh", "--wait"])?.code == Some(0), "not assigned");
    let reason = "<b>\"moving\" & more</b> #1;";
    let said = daemon.enictl().run(&["hold", "ens6", "--reason", reason])?;
    ensure!(said.code == Some(0), "{said:?}");
    pair.instance.run(&["ip", "rule", "del", "pref", "20020", "from", "10.0.2.0/24"])?;
    pair.instance.run(&["ip", "addr", "add", "192.0.2.77/32", "dev", "ens6"])?;
    let (texts, marks) = read(&draw(&daemon, "svg")?)?;
    ensure!(marks == ["foreign", "held", "missing"].map(str::to_owned).into(), "{marks:?}");
    for words in ["20020 from 10.0.2.0/24", "192.0.2.77/32", reason] {
        ensure!(texts.iter().any(|text| text.contains(words)), "{words} is not in {texts:#?}");
    }
    let mermaid = draw(&daemon, "mermaid")?;
    ensure!(mermaid.contains("<b>missing, held</b> 20020 from 10.0.2.0/24"), "{mermaid}");
    ensure!(!mermaid.contains("<b>\"moving"), "{mermaid}");

    ensure!(daemon.enictl().run(&["unhold", "ens6"])?.code == Some(0), "still held");
    comes_to_rest(&daemon)?;
    pair.vpc.unassign(&pair.second, SECONDARY)?;
    ensure!(daemon.enictl().run(&["refresh"])?.code == Some(0), "not read");
    let (_, marks) = read(&draw(&daemon, "svg")?)?;
    ensure!(marks == ["extra", "foreign", "waiting"].map(str::to_owned).into(), "{marks:?}");
    daemon.terminate()
}

/// Settings and routes, too, and somebody else's route in the place of enid's.
fn kinds() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    ensure!(daemon.enictl().run(&["hold", "ens6"])?.code == Some(0), "not held");
    pair.instance.ip_batch(
        &[
            "link set dev ens6 mtu 1400",
            "route del default via 10.0.2.1 table 20001",
            "route add default via 10.0.2.9 dev ens6 table 20001",
            "route del 10.0.2.0/24 table 20001",
        ]
        .map(str::to_owned),
    )?;
    let (texts, marks) = read(&draw(&daemon, "svg")?)?;
    ensure!(
        marks == ["conflict", "foreign", "held", "missing"].map(str::to_owned).into(),
        "{marks:?}"
    );
    let mermaid = draw(&daemon, "mermaid")?;
    for (marks, words) in [
        ("missing, held", "dev ens6 mtu 9001"),
        ("missing, held", "10.0.2.0/24 src 10.0.2.4"),
        ("conflict", "default via 10.0.2.1 src 10.0.2.4"),
        ("foreign", "default via 10.0.2.9"),
        // The gateway.
        ("conflict", "10.0.2.1<br/>"),
    ] {
        let marked = format!("<b>{marks}</b> {words}");
        ensure!(mermaid.contains(&marked), "{marked} is not in {mermaid}");
        let words = words.trim_end_matches("<br/>");
        ensure!(texts.iter().any(|text| text.contains(words)), "{words} is not in {texts:#?}");
    }
    // What is as it must be is drawn beside it, without a mark.
    ensure!(mermaid.contains("<br/>10.0.0.0/16 via 10.0.2.1 src 10.0.2.4"), "{mermaid}");
    daemon.terminate()
}

/// Metadata answers nobody since the daemon was started, so that nothing is taken away.
fn left() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    daemon.terminate()?;
    let rule = "rule add pref 20050 from 192.0.2.9 lookup 20077 proto 233";
    pair.instance.ip_batch(&[rule.to_owned()])?;
    pair.vpc.metadata().fault(Fault::on("*", Action::Status(500)));
    daemon.restart()?;
    let rule = "pref 20050 from 192.0.2.9 lookup 20077";
    let (texts, _) = read(&draw(&daemon, "svg")?)?;
    ensure!(texts.iter().any(|text| text == rule), "{rule} is not in {texts:#?}");
    let mermaid = draw(&daemon, "mermaid")?;
    let left = "<b>left by ENIs that are not here any more</b><br/>";
    ensure!(mermaid.contains(&format!("{left}{rule}\"")), "{mermaid}");
    daemon.terminate()
}
