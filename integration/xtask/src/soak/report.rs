//! Figures, growth, and the verdict.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;

use super::kernel::Kernel;
use super::life::{Run, Sample};
use super::say;
use super::stage::{Soak, picture};

/// Samples of one process before anybody may say that it grows.
const SAMPLES: usize = 6;
/// What a process may have more at the end than at the beginning: file descriptors, and MiB.
const MORE_DESCRIPTORS: usize = 4;
const MORE_MEMORY: f64 = 2.0;
/// More file descriptors than this are a leak, however short the process lived.
const MOST_DESCRIPTORS: usize = 64;
/// Everything of enid's is gone by then.
const PATIENCE: Duration = Duration::from_secs(60);

fn middle<T: Copy>(mut values: Vec<T>, order: impl Fn(&T, &T) -> std::cmp::Ordering) -> Option<T> {
    values.sort_by(order);
    values.get(values.len() / 2).copied()
}

/// The value that all but one in a hundred stay below, or all of few.
fn late(mut values: Vec<Duration>) -> Duration {
    values.sort();
    let at = (values.len() * 99).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or_default()
}

/// What a process has more in the last third of its samples than in the first; none of few samples.
fn growth(samples: &[Sample]) -> Option<(f64, usize)> {
    let third = samples.len() / 3;
    if samples.len() < SAMPLES {
        return None;
    }
    let (first, last) = (samples.get(..third)?, samples.get(samples.len() - third..)?);
    let memory =
        |part: &[Sample]| middle(part.iter().map(|sample| sample.rss).collect(), f64::total_cmp);
    let descriptors = |part: &[Sample]| {
        middle(part.iter().map(|sample| sample.descriptors).collect(), usize::cmp)
    };
    Some((memory(last)? - memory(first)?, descriptors(last)?.saturating_sub(descriptors(first)?)))
}

impl Soak {
    /// One line now and then, for whom watches.
    pub(super) fn progress(&mut self) -> anyhow::Result<()> {
        let at = self.started.elapsed().as_secs();
        let rest = self.rests.last().copied().unwrap_or_default();
        let (enis, addresses) = (self.others().len() + 1, self.targets.all.len());
        let run = self.life.run().map_or((0.0, 0), |run| (run.last.rss, run.last.descriptors));
        say(&format!(
            "{:3}:{:02}  at rest after {:5.1} s, {enis} ENIs, {addresses:2} addresses, RSS {:.1} MiB, \
             {} file descriptors, {} violations",
            at / 60,
            at % 60,
            rest.as_secs_f64(),
            run.0,
            run.1,
            self.violations
        ))
    }

    /// Everything that enid made is released, and the kernel is as before it.
    pub(super) fn leave(&mut self) -> anyhow::Result<()> {
        self.note("enictl release --all");
        let enis: Vec<_> = self.attached().iter().map(|eni| eni.id.clone()).collect();
        self.released.extend(enis);
        // What answers by others' hands only is not asked for any more.
        self.targets.remove(|_| true);
        let output = self.daemon.enictl().run(&["release", "--all"])?;
        if output.code != Some(0) {
            let what = format!("release ended with {:?}: {}", output.code, output.stderr);
            self.violation(&what, None)?;
        }
        let left = self.eventually_none(|soak| {
            let kernel = Kernel::read(&soak.instance)?;
            let routes = kernel.routes().map(|(table, route)| format!("table {table}: {route}"));
            let rules = kernel.rules().map(ToString::to_string);
            let links = kernel.links.iter().filter(|link| link.group == "20000");
            let links = links.map(|link| format!("{} is in group 20000", link.name));
            Ok(routes.chain(rules).chain(links).collect())
        })?;
        if !left.is_empty() {
            self.violation(&format!("released, and still there: {left:#?}"), None)?;
        }
        for eni in self.others() {
            self.vpc.detach(&eni.id)?;
        }
        let differs = self.eventually_none(|soak| {
            let kernel = Kernel::read(&soak.instance)?;
            let now = picture(&kernel, &soak.instance)?;
            let foreign = kernel.foreign();
            let lost = soak.before.difference(&now).map(|line| format!("lost: {line}"));
            // What others made during the soak stays, also in the tables of ENIs.
            let others = |line: &&&String| {
                foreign.contains(**line)
                    || ["192.0.2.", "2001:db8:77:"].iter().any(|net| line.contains(net))
            };
            let new = now.difference(&soak.before).filter(|line| !others(&line));
            Ok(lost.chain(new.map(|line| format!("new: {line}"))).collect())
        })?;
        if !differs.is_empty() {
            self.violation(&format!("not as before enid: {differs:#?}"), None)?;
        }
        self.follow_journal()?;
        self.daemon.terminate()?;
        self.life.running = false;
        Ok(())
    }

    fn eventually_none(
        &self,
        look: impl Fn(&Soak) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Vec<String>> {
        let began = std::time::Instant::now();
        loop {
            let found = look(self)?;
            if found.is_empty() || began.elapsed() > PATIENCE {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Looks for growth, prints the figures, and says whether all is well.
    pub(super) fn verdict(&mut self) -> anyhow::Result<bool> {
        self.grown()?;
        let figures = self.figures()?;
        say(&figures)?;
        let events: u64 = self.counts.values().sum();
        let minutes = self.started.elapsed().as_secs_f64() / 60.0;
        let good = self.violations == 0;
        ensure!(self.targets.pings.sent > 0, "nothing was pinged");
        say(&format!(
            "{}: {minutes:.1} min, {events} events, {} violations, seed {}",
            if good { "GOOD" } else { "BAD" },
            self.violations,
            self.seed
        ))?;
        Ok(good)
    }

    fn grown(&mut self) -> anyhow::Result<()> {
        let mut grown = Vec::new();
        for run in &self.life.runs {
            let lived = run.lived().as_secs();
            let most = run.quiet.iter().map(|sample| sample.descriptors).max().unwrap_or_default();
            if most > MOST_DESCRIPTORS {
                grown.push(format!("{most} file descriptors after {lived} s"));
            }
            if let Some((memory, descriptors)) = growth(&run.quiet)
                && (memory > MORE_MEMORY || descriptors > MORE_DESCRIPTORS)
            {
                let what = format!("{memory:.1} MiB and {descriptors} file descriptors more");
                grown.push(format!("{what} in {lived} s: {:?}", run.quiet));
            }
        }
        grown.iter().try_for_each(|what| self.violation(&format!("enid grows: {what}"), None))
    }

    fn figures(&self) -> anyhow::Result<String> {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut line = |what: &str, value: String| lines.push((what.to_owned(), value));
        for (what, count) in &self.counts {
            line(what, count.to_string());
        }
        let pings = &self.targets.pings;
        line("pings sent", pings.sent.to_string());
        line("  to the primary's first addresses, never excused", pings.strict.to_string());
        line("  unanswered while that was explained", pings.explained.to_string());
        line("  lost while the machine stalled", pings.stalled.to_string());
        line("  lost", pings.lost.to_string());
        for (why, (times, longest)) in &self.targets.excuses {
            let value = format!("{times}, at most {:.1} s", longest.as_secs_f64());
            line(&format!("  explained: {why}"), value);
        }
        let journal = &self.life.journal;
        line("passes", journal.passes.to_string());
        line("steps", journal.steps.to_string());
        line("lines in the journal", journal.lines.to_string());
        line("requests to metadata", self.readings.requests.to_string());
        line("enictl commands in the background", self.operator.commands.to_string());
        line("  longest", format!("{:.1} s", self.operator.longest.as_secs_f64()));
        let rests = &self.rests;
        let median = middle(rests.clone(), Duration::cmp).unwrap_or_default();
        line("rests", rests.len().to_string());
        line("  time to come to rest, median", format!("{:.1} s", median.as_secs_f64()));
        line("  p99", format!("{:.1} s", late(rests.clone()).as_secs_f64()));
        let path = self.daemon.runtime_directory().join("ledger.json");
        let size = std::fs::metadata(path).map(|data| data.len()).unwrap_or_default();
        line("size of the ledger at the end", format!("{size} bytes"));
        self.processes(&mut line);
        let mut text = String::new();
        for (what, value) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what:<50} {value:>24}");
        }
        Ok(text)
    }

    fn processes(&self, line: &mut impl FnMut(&str, String)) {
        let runs = &self.life.runs;
        line("processes, one after the other", runs.len().to_string());
        let cpu: f64 = runs.iter().map(|run| run.cpu.as_secs_f64()).sum();
        let lived: f64 = runs.iter().map(|run| run.lived().as_secs_f64()).sum();
        line("CPU of all", format!("{cpu:.2} s, {:.2} % of a core", 100.0 * cpu / lived.max(1.0)));
        line("  in an hour", format!("{:.0} s", cpu / lived.max(1.0) * 3600.0));
        let fresh: Vec<f64> = runs.iter().map(|run| run.first.rss).collect();
        let fresh = middle(fresh, f64::total_cmp).unwrap_or_default();
        line("RSS right after a start, median", format!("{fresh:.2} MiB"));
        let Some(run) = runs.iter().max_by_key(|run| run.lived()) else { return };
        line("the one that lived longest", format!("{:.0} s", run.lived().as_secs_f64()));
        let first = run.quiet.first().unwrap_or(&run.first);
        line("  RSS at its first rest", format!("{:.2} MiB", first.rss));
        line("  RSS at most", format!("{:.2} MiB", run.most));
        line("  RSS at the end", format!("{:.2} MiB", run.last.rss));
        let files = |run: &Run| format!("{} / {}", first.descriptors, run.last.descriptors);
        line("  file descriptors at its first rest / end", files(run));
        line(
            "  threads at its first rest / end",
            format!("{} / {}", first.threads, run.last.threads),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[(f64, usize)]) -> Vec<Sample> {
        let sample = |(rss, descriptors): &(f64, usize)| Sample {
            rss: *rss,
            descriptors: *descriptors,
            threads: 1,
        };
        values.iter().map(sample).collect()
    }

    #[test]
    fn growth_is_seen_in_a_trend_and_not_in_a_spike() {
        let spike = [(6.0, 10), (6.0, 10), (9.0, 30), (6.0, 10), (6.1, 10), (6.0, 10)];
        assert_eq!(growth(&samples(&spike)), Some((0.099_999_999_999_999_64, 0)));
        let leak = [(6.0, 10), (6.0, 11), (7.0, 20), (8.0, 30), (9.0, 40), (10.0, 50)];
        assert_eq!(growth(&samples(&leak)), Some((4.0, 39)));
        assert_eq!(growth(&samples(&leak[..3])), None);
    }

    #[test]
    fn the_last_of_few_is_the_late_one() {
        let all: Vec<Duration> = (1..=50).map(Duration::from_secs).collect();
        assert_eq!(late(all), Duration::from_secs(50));
        let all: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
        assert_eq!(late(all), Duration::from_secs(198));
    }
}
