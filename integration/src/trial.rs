//! Scenarios as tests with names, whose failures show the logs of the daemons that took part.

use std::cell::{Cell, RefCell};
use std::num::NonZero;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

thread_local! {
    /// Logs of daemons that are gone, of the scenario that runs on this thread.
    static LOGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };

    /// Whether the scenario that runs on this thread takes the kernel for an old one.
    pub(crate) static OLD_KERNEL: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn keep_log(log: String) {
    LOGS.with_borrow_mut(|logs| logs.push(log));
}

/// A test of one scenario; its name is a sentence.
#[must_use]
pub fn trial(name: &str, scenario: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        LOGS.with_borrow_mut(Vec::clear);
        let outcome = scenario();
        let logs = LOGS.with_borrow_mut(std::mem::take);
        outcome.map_err(|error| {
            let mut text = format!("{error:#}\n");
            for log in logs {
                text.push_str("--- log of enid\n");
                text.push_str(&log);
            }
            Failed::from(text)
        })
    })
}

/// The same, with the kernel taken for one before 5.18, which does not keep who made an address.
#[must_use]
pub fn trial_on_an_old_kernel(
    name: &str,
    scenario: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    trial(name, || {
        OLD_KERNEL.set(true);
        let outcome = scenario();
        OLD_KERNEL.set(false);
        outcome
    })
}

/// Runs parts of a scenario at once, each with its number, for most of a scenario is waiting. All run
/// to their end; the first that failed is told.
///
/// # Errors
/// That of the first part that failed.
pub fn at_once(
    parts: usize,
    part: impl Fn(usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let (part, old_kernel) = (&part, OLD_KERNEL.get());
    let run = |number| {
        move || {
            OLD_KERNEL.set(old_kernel);
            (part(number), LOGS.take())
        }
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parts).map(|number| scope.spawn(run(number))).collect();
        let join = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        join.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (outcome, logs) in ended {
        if outcome.is_err() {
            LOGS.with_borrow_mut(|all| all.extend(logs));
            return outcome;
        }
    }
    Ok(())
}

/// Enters a world of its own and runs the trials that the command line asks for; the whole `main`
/// of a test.
#[must_use]
pub fn run(trials: impl FnOnce() -> Vec<Trial>) -> ExitCode {
    if let Err(error) = vpc::enter() {
        #[expect(clippy::print_stderr, reason = "the only way to say why no test can run")]
        {
            eprintln!("{error:?}");
        }
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // A trial waits for most of its time.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(cores * 2);
    libtest_mimic::run(&arguments, trials()).exit_code()
}
