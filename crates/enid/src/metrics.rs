//! What is counted and measured: one registry of OpenMetrics, read by `enictl metrics` and by
//! node-exporter. [operating.md](../../../docs/operating.md) lists what there is.

mod latency;
mod measuring;
mod repair;
mod text;
mod textfile;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use enid_core::object::Object;
use enid_core::observed::Snapshot;
use enid_core::plan::Step;
use enid_core::report::{AddressState, EniState, Hold, Report, Verdict, Waiting};
use enid_imds::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::journal::name;

pub(crate) use measuring::Measuring;

/// Names and values of labels; none of them grows without bound.
type Labels<const N: usize> = [(&'static str, &'static str); N];
/// A gauge with a fraction.
type Real = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Seconds from an event to what follows from it: a repair takes milliseconds, an attach whose
/// metadata is late takes seconds.
const BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Changed,
    AlreadySo,
    Failed,
}

impl Taken {
    const ALL: [Self; 3] = [Self::Changed, Self::AlreadySo, Self::Failed];

    const fn text(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::AlreadySo => "already_so",
            Self::Failed => "failed",
        }
    }
}

/// Kinds of objects, and the actions that there are for them.
const STEPS: [(&str, &[&str]); 5] = [
    ("address", &["create", "delete"]),
    ("route", &["create", "replace", "delete"]),
    ("rule", &["create", "delete"]),
    ("marking", &["create", "delete"]),
    ("link", &["set"]),
];

const fn kind(object: &Object) -> &'static str {
    match object {
        Object::Address(_) => "address",
        Object::Route(_) => "route",
        Object::Rule(_) => "rule",
        Object::Marking(_) => "marking",
    }
}

const fn kind_and_action(step: &Step) -> (&'static str, &'static str) {
    match step {
        Step::Create(object) => (kind(object), "create"),
        Step::Replace { new, .. } => (kind(new), "replace"),
        Step::Delete(object) => (kind(object), "delete"),
        Step::Set { .. } => ("link", "set"),
    }
}

const VERDICTS: [Verdict; 3] = [Verdict::Converged, Verdict::Waiting, Verdict::NotYet];

const fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Converged => "converged",
        Verdict::Waiting => "waiting",
        Verdict::NotYet => "not_yet",
    }
}

const ENI_STATES: [&str; 4] = ["managed", "pending", "held", "no_link"];

const fn eni_state(state: &EniState) -> &'static str {
    match state {
        EniState::Managed => "managed",
        EniState::Pending => "pending",
        EniState::Held(_) => "held",
        EniState::NoLink => "no_link",
    }
}

const ADDRESS_STATES: [&str; 8] =
    ["ours", "theirs", "taken_over", "adding", "missing", "leaving", "ignored", "elsewhere"];

const fn address_state(state: &AddressState) -> &'static str {
    match state {
        AddressState::Ours => "ours",
        AddressState::Theirs => "theirs",
        AddressState::TakenOver => "taken_over",
        AddressState::Adding => "adding",
        AddressState::Missing => "missing",
        AddressState::Leaving(_) => "leaving",
        AddressState::Ignored => "ignored",
        AddressState::Elsewhere { .. } => "elsewhere",
    }
}

const fn hold_kind(hold: &Hold) -> &'static str {
    match hold {
        Hold::Released => "released",
        Hold::Operator(_) => "operator",
        Hold::Neighbour(_) => "neighbour",
        Hold::TableTaken { .. } => "table_taken",
        Hold::SeveralLinks => "several_links",
        Hold::NotListed => "not_listed",
        Hold::Configuration => "configuration",
        Hold::Contradiction(_) => "contradiction",
    }
}

/// What passes count as they go; clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Counters {
    passes: Family<Labels<1>, Counter>,
    steps: Family<Labels<3>, Counter>,
    repairs: Family<Labels<1>, Counter>,
    refusals: Counter,
    overruns: Counter,
}

impl Default for Counters {
    /// Everything is there from the start: an increase from nothing is none.
    fn default() -> Self {
        let counters = Self {
            passes: Family::default(),
            steps: Family::default(),
            repairs: Family::default(),
            refusals: Counter::default(),
            overruns: Counter::default(),
        };
        for verdict in VERDICTS.map(verdict_text).into_iter().chain(["failed"]) {
            drop(counters.passes.get_or_create(&[("verdict", verdict)]));
        }
        for (kind, actions) in STEPS {
            drop(counters.repairs.get_or_create(&[("kind", kind)]));
            for action in actions {
                for taken in Taken::ALL {
                    drop(counters.steps.get_or_create(&labels(kind, action, taken)));
                }
            }
        }
        counters
    }
}

fn labels(kind: &'static str, action: &'static str, taken: Taken) -> Labels<3> {
    [("kind", kind), ("action", action), ("outcome", taken.text())]
}

impl Counters {
    /// A pass has ended; without a verdict it did not get to its end.
    fn passed(&self, verdict: Option<Verdict>) {
        let verdict = verdict.map_or("failed", verdict_text);
        self.passes.get_or_create(&[("verdict", verdict)]).inc();
    }

    /// A step was taken.
    pub(crate) fn step(&self, step: &Step, taken: Taken) {
        let (kind, action) = kind_and_action(step);
        self.steps.get_or_create(&labels(kind, action, taken)).inc();
    }

    /// A step has changed something: whether that was a repair is told by what there was when the
    /// pass before had ended; nothing, where enid has acted since.
    pub(crate) fn changed(&self, step: &Step, before: Option<&Snapshot>) {
        if before.is_some_and(|before| repair::is_one(step, before)) {
            let (kind, _) = kind_and_action(step);
            self.repairs.get_or_create(&[("kind", kind)]).inc();
        }
    }

    /// The guard refused a plan.
    pub(crate) fn refused(&self) {
        self.refusals.inc();
    }

    /// The kernel had more to tell than it could keep.
    pub(crate) fn overrun(&self) {
        self.overruns.inc();
    }
}

/// What is measured at the moment somebody reads it.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// How it stands, after the first pass.
    pub(crate) report: Option<&'a Report>,
    /// Whether metadata answers; not known at first.
    pub(crate) answers: Option<bool>,
    /// How long ago the last complete reading of the ENI was whose is the oldest.
    pub(crate) age: Duration,
    /// Requests to the metadata service by what came back.
    pub(crate) requests: Vec<(Status, u64)>,
}

#[derive(Debug, Default, Clone)]
struct Gauges {
    verdict: Family<Labels<1>, Gauge>,
    enis: Family<Labels<1>, Gauge>,
    held: Family<[(&'static str, String); 2], Gauge>,
    addresses: Family<Labels<1>, Gauge>,
    fights: Gauge,
    answers: Gauge,
    age: Real,
    requests: Family<Labels<1>, Counter>,
}

/// All of it.
#[derive(Debug)]
struct Metrics {
    counters: Counters,
    gauges: Gauges,
    latency: Family<Labels<1>, Histogram, fn() -> Histogram>,
    registry: Registry,
}

impl Metrics {
    /// Nothing has happened yet.
    fn new() -> Self {
        let (counters, gauges) = (Counters::default(), Gauges::default());
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let latency = Family::new_with_constructor(histogram);
        let mut registry = Registry::with_prefix("enid");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Which enid this is", version);
        let start = Real::default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        start.set(since.as_secs_f64());
        let help = "When the daemon started, in seconds since 1970";
        registry.register_with_unit("start_time", help, Unit::Seconds, start);
        register_counters(&mut registry, &counters);
        let help = "From an event to the pass after which nothing was left to do for it, where steps were taken";
        registry.register_with_unit("convergence", help, Unit::Seconds, latency.clone());
        register_gauges(&mut registry, &gauges);
        Self { counters, gauges, latency, registry }
    }

    /// What an event led to is done.
    fn converged(&self, cause: &'static str, after: Duration) {
        self.latency.get_or_create(&[("cause", cause)]).observe(after.as_secs_f64());
    }

    /// All metrics as OpenMetrics, to the `# EOF`.
    fn text(&self, view: &View<'_>) -> String {
        self.gauges.take_in(view);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn register_counters(registry: &mut Registry, counters: &Counters) {
    let Counters { passes, steps, repairs, refusals, overruns } = counters.clone();
    registry.register("passes", "Passes by how far the kernel was from what it must be", passes);
    registry.register("steps", "Steps taken by what they are about and how they ended", steps);
    let help = "Steps that made again what had been there after the pass before";
    registry.register("repairs", help, repairs);
    registry.register("guard_refusals", "Plans that the guard refused whole", refusals);
    let help = "Times when the kernel had more to tell than it could keep for enid";
    registry.register("kernel_overruns", help, overruns);
}

fn register_gauges(registry: &mut Registry, gauges: &Gauges) {
    let Gauges { verdict, enis, held, addresses, fights, answers, age, requests } = gauges.clone();
    registry.register("verdict", "1 for how far the kernel is from what it must be", verdict);
    registry.register("enis", "Network interfaces by how it stands with them", enis);
    registry.register("eni_held", "1 for a network interface that is left alone, and why", held);
    let help = "Addresses by how it stands with them; leaving ones wait for proof";
    registry.register("addresses", help, addresses);
    registry.register("fights", "Steps that somebody else keeps undoing", fights);
    registry.register("metadata_up", "Whether the last poll of metadata was answered", answers);
    let help = "Since each network interface's metadata has been read completely";
    registry.register_with_unit("metadata_age", help, Unit::Seconds, age);
    registry.register("metadata_requests", "Requests to metadata by what came back", requests);
}

/// Sets a gauge for each of the known values.
fn set(
    family: &Family<Labels<1>, Gauge>,
    label: &'static str,
    known: &[&'static str],
    seen: &[&str],
) {
    for value in known {
        let count = seen.iter().filter(|seen| *seen == value).count();
        family.get_or_create(&[(label, *value)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl Gauges {
    fn take_in(&self, view: &View<'_>) {
        // Before the first pass nothing is as it must be, as far as anybody knows.
        let verdict = view.report.map_or(Verdict::NotYet, |report| report.verdict);
        let enis = view.report.map_or(&[][..], |report| &report.enis);
        set(&self.verdict, "verdict", &VERDICTS.map(verdict_text), &[verdict_text(verdict)]);
        let states: Vec<&str> = enis.iter().map(|eni| eni_state(&eni.state)).collect();
        set(&self.enis, "state", &ENI_STATES, &states);
        self.held.clear();
        for eni in enis {
            if let EniState::Held(hold) = &eni.state {
                let labels = [("eni", name(eni)), ("kind", hold_kind(hold).to_owned())];
                self.held.get_or_create(&labels).set(1);
            }
        }
        let addresses = enis.iter().flat_map(|eni| &eni.addresses);
        let states: Vec<&str> = addresses.map(|known| address_state(&known.state)).collect();
        set(&self.addresses, "state", &ADDRESS_STATES, &states);
        let waiting = enis.iter().flat_map(|eni| &eni.waiting);
        let fights = waiting.filter(|waiting| matches!(waiting, Waiting::Fight { .. })).count();
        self.fights.set(i64::try_from(fights).unwrap_or(i64::MAX));
        self.answers.set(i64::from(view.answers == Some(true)));
        self.age.set(view.age.as_secs_f64());
        for (status, count) in &view.requests {
            let counter = self.requests.get_or_create(&[("status", status.text())]);
            counter.inner().store(*count, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
