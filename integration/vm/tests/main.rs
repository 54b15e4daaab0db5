//! Promises that only a real machine can keep or break: hotplug, udev, systemd, the journal,
//! packages, and the programs that also want to manage the network.

mod boot;
mod hotplug;
mod kernels;
mod neighbours;
mod package;
mod service;
mod stage;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use libtest_mimic::{Arguments, Trial};
use vm::{Image, Recipe};

/// A promise: its name is a sentence.
#[derive(Clone)]
struct Promise {
    name: &'static str,
    recipe: Recipe,
    keep: fn(&Image) -> anyhow::Result<()>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the only way to say why no test can run")]
            {
                eprintln!("{error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Images are made first: the archive cannot be reached from the world that the machines are in.
fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // Two machines at a time would only wait for each other.
    arguments.test_threads.get_or_insert(1);
    let promises = [
        hotplug::promises(),
        service::promises(),
        boot::promises(),
        package::promises(),
        kernels::promises(),
        neighbours::promises(),
    ]
    .concat();
    let mut images: BTreeMap<Recipe, Image> = BTreeMap::new();
    if !arguments.list {
        stage::package()?;
        for promise in promises.iter().filter(|promise| is_wanted(&arguments, promise.name)) {
            if !images.contains_key(&promise.recipe) {
                images.insert(promise.recipe.clone(), promise.recipe.image()?);
            }
        }
    }
    vpc::enter()?;
    let trials = promises.into_iter().map(|promise| {
        let image = images.get(&promise.recipe).cloned();
        integration::trial(promise.name, move || {
            (promise.keep)(image.as_ref().context("its image was not made")?)
        })
    });
    let trials: Vec<Trial> = trials.collect();
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

/// As the test runner decides it.
fn is_wanted(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| {
        if arguments.exact { name == filter } else { name.contains(filter.as_str()) }
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
