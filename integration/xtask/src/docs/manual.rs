//! Pages of the manual and completions for shells, made from the command lines and the documentation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Command;
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::markdown;
use crate::tools::top;

/// What the pages say they are a part of.
const MANUAL: &str = "enid";

/// What `enid --help` does not say.
const DAEMON: &str = "\
## Exit status

| status | meaning |
|---|---|
| `0` | it was ended by a signal, or `--check` found nothing wrong |
| `1` | it cannot run: the reason is its last line |
| `2` | the configuration cannot be used, or the command line makes no sense |

## Signals

| signal | meaning |
|---|---|
| `SIGHUP` | read the configuration again; one that cannot be used changes nothing |
| `SIGTERM`, `SIGINT` | stop; addresses, routes and rules stay in place |

## Files

| file | what it is |
|---|---|
| `/etc/enid/enid.toml`, `/etc/enid/enid.d/*.toml` | the configuration; see enid.toml(5) |
| `/run/enid/ledger.json` | what enid made, what was there before, and what the operator said |
| `/run/enid/control.sock` | where enictl(1) reaches it |
| `/usr/share/doc/enid/operating.md` | what to do when something is wrong |

## See also

enictl(1), enid.toml(5), journalctl(1): `journalctl -x -u enid` explains each line.
";

/// Writes all pages to `man` and all completions to `completions` below a folder, which is made anew.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let man = folder.join("man");
    for (name, page) in pages()? {
        put(&man.join(name), page.as_bytes())?;
    }
    for (shell, file) in [
        (Shell::Bash, "completions/bash/enictl"),
        (Shell::Zsh, "completions/zsh/_enictl"),
        (Shell::Fish, "completions/fish/enictl.fish"),
    ] {
        let mut text = Vec::new();
        generate(shell, &mut enictl::command(), "enictl", &mut text);
        put(&folder.join(file), &text)?;
    }
    Ok(())
}

/// Where they are made for the packages.
pub(crate) fn folder() -> PathBuf {
    top().join("target/docs")
}

fn put(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let writing = || format!("writing {}", file.display());
    fs::create_dir_all(file.parent().unwrap_or(file)).with_context(writing)?;
    fs::write(file, bytes).with_context(writing)
}

/// All pages, each with the name of its file.
fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let date = date()?;
    let mut enictl = enictl::command().disable_help_subcommand(true);
    enictl.build();
    let names: Vec<String> =
        enictl.get_subcommands().map(|command| format!("enictl-{}", command.get_name())).collect();
    let all = format!(
        "{}, enid(8)",
        names.iter().map(|name| format!("{name}(1)")).collect::<Vec<_>>().join(", ")
    );
    let mut pages = vec![
        ("enid.8".to_owned(), of_command(&enid::cli::command(), "enid", "8", &date, DAEMON)?),
        ("enid.toml.5".to_owned(), configuration(&date)?),
    ];
    let see = format!("## See also\n\n{all}\n");
    pages.push(("enictl.1".to_owned(), of_command(&enictl, "enictl", "1", &date, &see)?));
    for (command, name) in enictl.get_subcommands().zip(&names) {
        let see = "## See also\n\nenictl(1), enid(8)\n";
        pages.push((format!("{name}.1"), of_command(command, name, "1", &date, see)?));
    }
    Ok(pages)
}

/// The page of a command; `more` is what follows in Markdown.
fn of_command(
    command: &Command,
    name: &str,
    section: &str,
    date: &str,
    more: &str,
) -> anyhow::Result<String> {
    let man = Man::new(command.clone())
        .title(name)
        .section(section)
        .date(date)
        .source(format!("enid {}", env!("CARGO_PKG_VERSION")))
        .manual(MANUAL);
    let mut page = Vec::new();
    let mut parts = || -> std::io::Result<()> {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut page)?;
        }
        Ok(())
    };
    parts().with_context(|| format!("writing the page {name}({section})"))?;
    let mut rest = Roff::new();
    if let Some(help) = command.get_after_help() {
        after_help(&mut rest, &help.to_string());
    }
    markdown::append(&mut rest, more);
    let page = String::from_utf8(page).context("a page that is no UTF-8")?;
    Ok(format!("{page}{}", rest.render()))
}

/// What stands beneath the help, line by line: a part begins with a line that ends in a colon.
fn after_help(page: &mut Roff, help: &str) {
    let mut parts = 0;
    for line in help.lines() {
        if let Some(title) = line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            if parts > 0 {
                page.control("fi", []);
            }
            parts += 1;
            page.control("SH", [title.to_uppercase().as_str()]).control("nf", []);
        } else if !line.is_empty() {
            page.text([roman(line)]);
        }
    }
    if parts > 0 {
        page.control("fi", []);
    }
}

fn configuration(date: &str) -> anyhow::Result<String> {
    let file = top().join("docs/configuration.md");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut page = Roff::new();
    let source = format!("enid {}", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["enid.toml", "5", date, source.as_str(), MANUAL]);
    page.control("SH", ["NAME"]).text([roman("enid.toml - configuration of enid(8)")]);
    page.control("SH", ["DESCRIPTION"]);
    markdown::append(&mut page, &text);
    markdown::append(&mut page, "## See also\n\nenid(8), enictl(1)\n");
    Ok(page.render())
}

/// The day of the changelog's last entry, so that one version's pages are the same wherever they are made.
fn date() -> anyhow::Result<String> {
    let file = top().join("packaging/deb/changelog");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let line = text.lines().find(|line| line.starts_with(" -- "));
    let words: Vec<&str> =
        line.and_then(|line| line.split(", ").last()).unwrap_or_default().split(' ').collect();
    let day = || {
        let month = MONTHS.iter().position(|month| words.get(1) == Some(month))? + 1;
        Some(format!("{}-{month:02}-{:0>2}", words.get(2)?, words[0]))
    };
    day().with_context(|| format!("{} names no day", file.display()))
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples_and_exit_codes() {
        let pages: BTreeMap<String, String> = pages().unwrap().into_iter().collect();
        for file in ["enid.8", "enid.toml.5", "enictl.1"] {
            assert!(pages.contains_key(file), "{file}");
        }
        let command = enictl::command();
        for command in command.get_subcommands() {
            let file = format!("enictl-{}.1", command.get_name());
            let page = pages.get(&file).unwrap_or_else(|| panic!("no {file}"));
            for part in [".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLES", ".SH \"EXIT CODES\""] {
                assert!(page.contains(part), "{file} has no {part}: {page}");
            }
        }
        let configuration = &pages["enid.toml.5"];
        assert!(configuration.contains("\\fBpoll_interval\\fR  (default: "), "{configuration}");
    }
}
