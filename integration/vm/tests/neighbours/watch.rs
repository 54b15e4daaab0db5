//! Every address of a machine is asked without pause while a neighbour acts.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Scene as _, eventually};
use vpc::{Pinger, Report};

use crate::stage::{FIRST_PUBLIC, PATIENCE, SECOND_PUBLIC, SECONDARY, Stage, figure};

/// A secondary address of each ENI.
pub(crate) const SECONDARIES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 1, 77), SECONDARY];

/// The first ENI's addresses that are asked.
pub(crate) const OF_FIRST: [Ipv4Addr; 2] = [FIRST_PUBLIC, SECONDARIES[0]];
/// The second ENI's.
pub(crate) const OF_SECOND: [Ipv4Addr; 2] = [SECOND_PUBLIC, SECONDARIES[1]];
const ALL: [Ipv4Addr; 4] = [FIRST_PUBLIC, SECONDARIES[0], SECOND_PUBLIC, SECONDARIES[1]];

/// Gives each ENI its secondary address; the second one needs not to be plugged in.
pub(crate) fn assign(stage: &Stage) -> anyhow::Result<()> {
    stage.vpc.assign(&stage.machine.guest.primary, SECONDARIES[0], None)?;
    stage.vpc.assign(&stage.second, SECONDARIES[1], None)
}

/// Both ENIs and their secondary addresses work from outside.
pub(crate) fn all_work(stage: &Stage) -> anyhow::Result<()> {
    eventually(PATIENCE, "every address works", &stage.machine, || {
        stage.works()?;
        SECONDARIES.iter().try_for_each(|address| stage.answers(*address))
    })
}

/// Installs the package, plugs the second ENI in, and gives a secondary address to each: the first
/// ENI must not miss a request.
pub(crate) fn grows_unnoticed(stage: &Stage) -> anyhow::Result<()> {
    assign(stage)?;
    stage.install()?;
    let (first, second) = (stage.ping(FIRST_PUBLIC)?, stage.ping(SECOND_PUBLIC)?);
    let plugged = stage.machine.plug(&stage.vpc, &stage.second)?;
    stage.comes_to_work()?;
    stage.comes_to_rest()?;
    // A program that wants to configure the new link has had its turn by then.
    std::thread::sleep(Duration::from_secs(5));
    stage.comes_to_work()?;
    let second = second.stop();
    let (answered, steady) =
        second.first_answer.zip(second.steady_since).context("no answer after all")?;
    figure("from device_add to the first answer", answered - plugged);
    figure("from device_add to answers without a gap", steady - plugged);
    stage.missed_nothing(first, "the first ENI")
}

/// What the four addresses miss while a command runs and until all is well again.
pub(crate) fn missed_during(stage: &Stage, command: &str) -> anyhow::Result<Missed> {
    let watch = Watch::all(stage)?;
    std::thread::sleep(Duration::from_millis(500));
    stage.machine.run(command)?;
    // Long enough for a lease to be asked for anew, should that be part of it.
    std::thread::sleep(Duration::from_secs(4));
    stage.comes_to_rest()?;
    all_work(stage)?;
    Ok(watch.tell(command))
}

/// Streams of requests to some of the addresses.
pub(crate) struct Watch(Vec<(IpAddr, Pinger)>);

impl Watch {
    /// Asks the two addresses of the first ENI.
    pub(crate) fn first(stage: &Stage) -> anyhow::Result<Watch> {
        Watch::of(stage, &OF_FIRST)
    }

    /// Asks all four, and those of IPv6 where there are some.
    pub(crate) fn all(stage: &Stage) -> anyhow::Result<Watch> {
        let mut watch = Watch::of(stage, &ALL)?;
        watch.0.extend(Watch::of(stage, &stage.six())?.0);
        Ok(watch)
    }

    /// Asks these.
    pub(crate) fn of<A>(stage: &Stage, addresses: &[A]) -> anyhow::Result<Watch>
    where
        A: Into<IpAddr> + Copy,
    {
        let start = |address: &A| Ok(((*address).into(), stage.ping(*address)?));
        addresses.iter().map(start).collect::<anyhow::Result<_>>().map(Watch)
    }

    /// Ends the streams and tells what they missed.
    pub(crate) fn tell(self, during: &str) -> Missed {
        // Late answers count.
        std::thread::sleep(Duration::from_secs(2));
        let reports: Vec<(IpAddr, Report)> =
            self.0.into_iter().map(|(address, pinger)| (address, pinger.stop())).collect();
        for (address, report) in &reports {
            let Report { sent, lost, longest_gap, .. } = report;
            let what = format!("{during}: {address} missed {lost} of {sent}, the longest silence");
            figure(&what, longest_gap);
        }
        Missed { during: during.to_owned(), reports }
    }

    /// As [`Watch::tell`], and the primary address missed nothing.
    pub(crate) fn end(self, stage: &Stage, during: &str) -> anyhow::Result<Missed> {
        let missed = self.tell(during);
        missed.nothing_at(stage, &[FIRST_PUBLIC])?;
        Ok(missed)
    }
}

/// What streams of requests missed.
pub(crate) struct Missed {
    during: String,
    reports: Vec<(IpAddr, Report)>,
}

impl Missed {
    /// No stream to an address of IPv4 missed anything.
    pub(crate) fn nothing(&self, stage: &Stage) -> anyhow::Result<()> {
        self.nothing_at(stage, &ALL)
    }

    /// These missed nothing.
    pub(crate) fn nothing_at(&self, stage: &Stage, addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
        for (address, report) in &self.reports {
            let well = report.answered > 0 && report.lost == 0 && report.refused == 0;
            ensure!(
                well || !addresses.iter().any(|listed| listed == address),
                "{}: {address} missed requests: {report:?}\n{}",
                self.during,
                stage.machine.describe()
            );
        }
        Ok(())
    }
}
