//! The alert rules, their tests, the dashboard and the metrics themselves, as Prometheus' own tool and
//! Grafana's documents have them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::needs;
use crate::tools::{self, output};

/// Panels that the dashboard may have; each is a part of Grafana since 9.
const PANELS: [&str; 4] = ["heatmap", "stat", "state-timeline", "timeseries"];
/// Grafana's grid is so many columns wide.
const COLUMNS: u64 = 24;
/// For a daemon to have written its file.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks all of it.
///
/// # Errors
/// What is wrong first.
pub(crate) fn run(top: &Path) -> anyhow::Result<()> {
    let promtool = tools::debian("prometheus", "usr/bin/promtool")?;
    let rules = top.join("packaging/prometheus/enid.rules.yml");
    let tests = top.join("packaging/prometheus/enid.rules.test.yml");
    // Without --lint-fatal, two alerts of one name and labels are a mere remark.
    output(Command::new(&promtool).args(["check", "rules", "--lint-fatal"]).arg(&rules))?;
    output(Command::new(&promtool).args(["test", "rules"]).arg(&tests))?;
    let (rules, tests) = (read(&rules)?, read(&tests)?);
    documented(&rules, &tests, &read(&top.join("docs/operating.md"))?)?;
    let dashboard = read(&top.join("packaging/grafana/enid.json"))?;
    let questions = dashboard_of(&serde_json::from_str(&dashboard).context("the dashboard")?)?;
    understood(&promtool, &questions)?;
    exported(&promtool)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// What stands after a key at the beginning of a line.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().strip_prefix(key)).map(str::trim).collect()
}

/// Each alert says what it is about, leads to a section that is there, and was seen to fire in a test.
fn documented(rules: &str, tests: &str, operating: &str) -> anyhow::Result<()> {
    let alerts = values(rules, "- alert:");
    ensure!(!alerts.is_empty(), "there are no alerts");
    for key in ["summary:", "description:", "runbook_url:", "severity:"] {
        let count = values(rules, key).len();
        ensure!(count == alerts.len(), "{} alerts have {count} {key}", alerts.len());
    }
    let anchors: BTreeSet<String> =
        operating.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for url in values(rules, "runbook_url:") {
        let (page, wanted) = url.split_once('#').with_context(|| format!("{url} has no anchor"))?;
        ensure!(page == "file:///usr/share/doc/enid/operating.md", "{page} is another page");
        ensure!(anchors.contains(wanted), "operating.md has no section #{wanted}: {anchors:?}");
    }
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels:");
        ensure!(tests.contains(&fires), "no test lets {alert} fire");
        let silent = format!("alertname: {alert} }}");
        ensure!(tests.contains(&silent), "no test has {alert} silent");
    }
    Ok(())
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    let found = value[key].as_str().filter(|text| !text.is_empty());
    found.with_context(|| format!("no {key} in {value}"))
}

/// What the dashboard asks of Prometheus, once it is seen to be one.
fn dashboard_of(dashboard: &Value) -> anyhow::Result<Vec<String>> {
    for key in ["title", "uid", "description"] {
        text(dashboard, key)?;
    }
    ensure!(dashboard["id"].is_null(), "an id is of one Grafana only");
    ensure!(
        dashboard["schemaVersion"].as_u64() >= Some(36),
        "it has no schemaVersion, or an old one"
    );
    let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
    let names: BTreeSet<&str> =
        variables.iter().map(|variable| text(variable, "name")).collect::<Result<_, _>>()?;
    ensure!(variables[0]["type"] == "datasource", "the data source is not chosen first");
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let (mut ids, mut taken, mut questions) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64().context("no id")?), "an id is there twice");
        let (title, kind) = (text(panel, "title")?, text(panel, "type")?);
        text(panel, "description")?;
        ensure!(PANELS.contains(&kind), "{title} is a {kind}");
        let place = |key: &str| panel["gridPos"][key].as_u64().context("no place");
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        ensure!(w > 0 && h > 0 && x + w <= COLUMNS, "{title} is outside");
        for column in x..x + w {
            for row in y..y + h {
                ensure!(taken.insert((column, row)), "{title} covers another panel");
            }
        }
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
        ensure!(unit.is_some() && panel["options"].is_object(), "{title} has no unit or options");
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        for target in targets.with_context(|| format!("{title} asks nothing"))? {
            for part in [panel, target] {
                let chosen = part["datasource"]["uid"] == "${datasource}";
                ensure!(chosen, "{title} has a data source of its own");
            }
            text(target, "refId")?;
            questions.push(text(target, "expr")?.to_owned());
        }
    }
    for name in ["datasource", "job", "instance"] {
        ensure!(names.contains(name), "there is no variable {name}");
    }
    Ok(questions)
}

/// Whether Prometheus understands what the dashboard asks, Grafana's own variables filled in.
fn understood(promtool: &Path, questions: &[String]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let path = folder.path().join("dashboard.yml");
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (n, question) in questions.iter().enumerate() {
        let filled = question.replace("$__rate_interval", "5m");
        // JSON's strings are YAML's, too.
        let filled = Value::from(filled).to_string();
        rules.push_str(&format!("      - record: dashboard:{n}\n        expr: {filled}\n"));
    }
    fs::write(&path, rules).with_context(|| format!("writing {}", path.display()))?;
    output(Command::new(promtool).args(["check", "rules"]).arg(&path)).map(drop)
}

/// Whether the file that a running daemon writes is what Prometheus reads. It runs in a network namespace
/// where there is nothing.
fn exported(promtool: &Path) -> anyhow::Result<()> {
    needs::ensure(&[("unshare", "util-linux")])?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let (config, path) = (folder.path().join("enid.toml"), folder.path().join("enid.prom"));
    let here = folder.path().display();
    let text =
        format!("runtime_directory = \"{here}\"\n[metrics]\ntextfile = \"{}\"\n", path.display());
    fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut daemon = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(integration::binary("enid")?)
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .context("starting enid in a network namespace of its own")?;
    let start = Instant::now();
    while !path.exists() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.kill().and_then(|()| daemon.wait()).context("ending enid")?;
    let Ok(file) = fs::File::open(&path) else { bail!("enid wrote no {}", path.display()) };
    output(Command::new(promtool).args(["check", "metrics"]).stdin(file)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_those_of_headings() {
        for (heading, expected) in [
            ("## Who fights", "who-fights"),
            ("## What goes, when, and what stays", "what-goes-when-and-what-stays"),
            ("### `enid` is silent?", "enid-is-silent"),
        ] {
            assert_eq!(anchor(heading), expected);
        }
    }

    #[test]
    fn an_alert_without_a_section_or_a_test_is_refused() {
        let rules = "- alert: A\nseverity: x\nsummary: x\ndescription: x\n\
            runbook_url: file:///usr/share/doc/enid/operating.md#there\n";
        let tests = "alertname: A }\nalertname: A\n        exp_alerts:\n          - exp_labels: {}";
        assert!(documented(rules, tests, "## There\n").is_ok());
        for (rules, tests, page) in [
            (rules, tests, "## Elsewhere\n"),
            (rules, "alertname: A }\n", "## There\n"),
            (rules, &tests[15..], "## There\n"),
            (&*rules.replace("summary: x\n", ""), tests, "## There\n"),
        ] {
            assert!(documented(rules, tests, page).is_err(), "{rules}\n{tests}\n{page}");
        }
    }
}
