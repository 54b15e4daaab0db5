//! From a broken product to a scenario file, and back: what a schedule finds can be kept.

#![expect(clippy::unwrap_used, reason = "what is not found fails the test")]

use simulation::adversary::{KEPT_SECTION, Schedule, schedule};
use simulation::cloud::Cloud;
use simulation::judge::Promise;
use simulation::kernel::Kernel;
use simulation::play::Play;
use simulation::run::{Arguments, all};
use simulation::text;
use simulation::world::{Product, Start};

/// Reads a scenario file as the suite of scenarios does.
fn read(file: &str) -> Play {
    let given = file.strip_suffix(KEPT_SECTION).unwrap();
    let lines = given.lines().filter(|line| !line.starts_with('#'));
    let mut sections: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
    let mut current = "";
    for line in lines {
        if line.starts_with(' ') {
            sections.get_mut(current).unwrap().push(line.trim().to_owned());
        } else {
            current = line;
            sections.insert(current, Vec::new());
        }
    }
    let mut take = |name| sections.remove(name).unwrap_or_default();
    let mut start = Start::default();
    take("config").iter().for_each(|line| text::configure(&mut start.config, line));
    let mut cloud = Cloud::default();
    text::cloud(&mut cloud, &take("cloud"));
    start.cloud = cloud;
    start.kernel = Kernel { state: text::snapshot(&take("kernel")), ..Kernel::default() };
    Play::new(start, &take("script"))
}

#[test]
fn what_breaks_a_promise_is_shrunk_to_a_scenario_that_shows_it_and_holds_for_the_real_product() {
    let arguments = Arguments { schedules: 400, seed: 0, threads: Some(2), failures: 1 };
    let (_, failures) = all(&arguments, Product::Impatient).unwrap();
    let failure = failures.first().expect("an impatient product is found out");
    assert_eq!(failure.broken.promise, Promise::Removed, "{}", failure.broken);
    let file = failure.scenario(Product::Impatient);
    let script = file.lines().filter(|line| line.starts_with("  at ")).count();
    assert!(script < failure.schedule.script.len(), "{file}");
    let play = read(&file);
    let (found, _) = play.run(Product::Impatient);
    assert_eq!(found.unwrap_err().1.promise, Promise::Removed, "{file}");
    let (kept, _) = play.run(Product::Real);
    assert_eq!(kept, Ok(()), "{file}");
}

#[test]
fn a_seed_is_the_same_schedule_every_time_and_ends_the_same() {
    for seed in [3, 77, 1_000_003] {
        let first: Schedule = schedule(seed);
        assert_eq!(first, schedule(seed));
        let (one, two) = (first.play().run(Product::Real), first.play().run(Product::Real));
        assert_eq!(one, two);
    }
}
