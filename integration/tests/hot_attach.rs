//! Promise: an ENI that is attached to a running instance works a moment later, in both
//! directions, and the ones that were there go on working.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::ensure;
use integration::vpc::{
    Bound, Config, Echo, EniId, EniSpec, Instance, Netns, Vpc, ping_once, whoami,
};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hot_attach::both_public_addresses_answer_each_through_its_own_eni", || {
            while_enid_runs(&Layout::TWO_SUBNETS, 2)
        }),
        trial("hot_attach::it_works_with_a_strict_reverse_path_filter", || {
            while_enid_runs(&Layout::TWO_SUBNETS, 1)
        }),
        trial("hot_attach::two_enis_in_one_subnet_leave_each_by_its_own", || {
            while_enid_runs(&Layout::ONE_SUBNET, 2)
        }),
        trial("hot_attach::two_enis_in_one_subnet_pass_a_strict_reverse_path_filter", || {
            while_enid_runs(&Layout::ONE_SUBNET, 1)
        }),
        trial("hot_attach::an_eni_that_dhcp_configured_is_made_to_work", || {
            after_dhcp(&Layout::TWO_SUBNETS, 2)
        }),
        trial("hot_attach::a_sibling_that_dhcp_configured_is_made_to_work", || {
            after_dhcp(&Layout::ONE_SUBNET, 1)
        }),
        trial("hot_attach::the_link_is_raised_as_soon_as_udev_is_done_with_it", when_udev_is_done),
    ]
}

/// Where the two ENIs and the hosts that talk to them are.
struct Layout {
    subnets: &'static [&'static str],
    first: Ipv4Addr,
    second: Ipv4Addr,
    /// Plain hosts in the subnets of the first and of the second ENI, and in a third.
    hosts: [Ipv4Addr; 3],
}

impl Layout {
    const TWO_SUBNETS: Layout = Layout {
        subnets: &["10.0.1.0/24", "10.0.2.0/24", "10.0.254.0/24"],
        first: Ipv4Addr::new(10, 0, 1, 4),
        second: Ipv4Addr::new(10, 0, 2, 4),
        hosts: [
            Ipv4Addr::new(10, 0, 1, 9),
            Ipv4Addr::new(10, 0, 2, 9),
            Ipv4Addr::new(10, 0, 254, 4),
        ],
    };
    const ONE_SUBNET: Layout = Layout {
        subnets: &["10.0.0.0/24", "10.0.254.0/24"],
        first: Ipv4Addr::new(10, 0, 0, 4),
        second: Ipv4Addr::new(10, 0, 0, 5),
        hosts: [
            Ipv4Addr::new(10, 0, 0, 8),
            Ipv4Addr::new(10, 0, 0, 9),
            Ipv4Addr::new(10, 0, 254, 4),
        ],
    };
}

const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SECOND_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const WHOAMI: u16 = 7;

/// An instance with one ENI, another ENI to attach, and who talks to them.
struct Stage {
    vpc: Vpc,
    instance: Instance,
    second: EniId,
    hosts: Vec<Instance>,
    /// Tells on the internet whom it sees.
    _whoami: Echo,
    /// A service of the instance.
    _service: Echo,
}

impl Stage {
    fn build(layout: &Layout, rp_filter: u8) -> anyhow::Result<Stage> {
        let mut config = Config::default().rp_filter(rp_filter);
        for subnet in layout.subnets {
            config = config.subnet(subnet);
        }
        let vpc = Vpc::new(config)?;
        let primary = EniSpec::new([layout.first]).public(layout.first, FIRST_PUBLIC);
        let instance = vpc.instance("main", primary)?;
        let second = EniSpec::new([layout.second]).public(layout.second, SECOND_PUBLIC);
        let second = vpc.create_eni(second)?;
        let mut hosts = Vec::new();
        for (number, address) in layout.hosts.iter().enumerate() {
            hosts.push(vpc.instance(&format!("host{number}"), EniSpec::new([*address]))?);
        }
        let _whoami = Echo::start(vpc.internet(), WHOAMI)?;
        let _service = Echo::start(&instance, WHOAMI)?;
        Ok(Stage { vpc, instance, second, hosts, _whoami, _service })
    }

    /// Without enid: neither doing nothing nor doing what DHCP does makes the second ENI work.
    fn show_the_failure(&self) -> anyhow::Result<()> {
        answers(self.vpc.internet(), FIRST_PUBLIC)?;
        self.vpc.attach(&self.second, &self.instance, "ens6")?;
        ensure!(answers(self.vpc.internet(), SECOND_PUBLIC).is_err(), "nobody configured it");
        self.vpc.configure_as_dhcp(&self.second)?;
        let before = self.vpc.drops(&self.instance.primary)?;
        ensure!(answers(self.vpc.internet(), SECOND_PUBLIC).is_err(), "DHCP is enough");
        // A strict filter drops the request; a loose one lets the answer leave by the wrong ENI.
        if self.instance.read_sysctl("net.ipv4.conf.all.rp_filter")? == "2" {
            let after = self.vpc.drops(&self.instance.primary)?;
            ensure!(after > before, "the answer did not leave by the wrong ENI");
        }
        Ok(())
    }

    /// Everything that the promise says, once.
    fn works(&self, layout: &Layout) -> anyhow::Result<()> {
        let internet = self.vpc.internet();
        for (private, public, device) in
            [(layout.first, FIRST_PUBLIC, "ens5"), (layout.second, SECOND_PUBLIC, "ens6")]
        {
            answers(internet, public)?;
            for host in &self.hosts {
                answers(host, private)?;
            }
            let seen = whoami(internet, (public, WHOAMI).into(), &Bound::No)?;
            ensure!(seen == self.vpc.internet_v4(), "the service behind {public} sees {seen}");
            let to = (self.vpc.internet_v4(), WHOAMI).into();
            for bound in [Bound::from(private), Bound::Device(device.to_owned())] {
                let seen = whoami(&self.instance, to, &bound)?;
                ensure!(seen == public, "bound to {bound:?}, the internet sees {seen}");
                let answered = ping_once(&self.instance, self.vpc.internet_v4().into(), &bound)?;
                ensure!(answered, "bound to {bound:?}, the internet does not answer");
            }
            for host in layout.hosts.iter().copied().chain([self.vpc.internet_v4()]) {
                let (host, from) = (host.to_string(), private.to_string());
                let route = self.instance.ip_json(&["route", "get", &host, "from", &from])?;
                ensure!(route[0]["dev"] == device, "from {from} to {host}: {route}");
            }
        }
        Ok(())
    }

    /// The promise comes true and no packet with a foreign source leaves any more.
    fn comes_to_work(&self, layout: &Layout, daemon: &Daemon) -> anyhow::Result<()> {
        let patience = Duration::from_secs(10);
        eventually(patience, "both ENIs work", daemon, || self.works(layout))?;
        let drops = || -> anyhow::Result<u64> {
            Ok(self.vpc.drops(&self.instance.primary)? + self.vpc.drops(&self.second)?)
        };
        let before = drops()?;
        eventually(Duration::ZERO, "both ENIs go on working", daemon, || self.works(layout))?;
        ensure!(drops()? == before, "the fabric dropped foreign sources");
        Ok(())
    }
}

fn answers(from: &Netns, to: impl Into<IpAddr>) -> anyhow::Result<()> {
    let to = to.into();
    ensure!(ping_once(from, to, &Bound::No)?, "{to} does not answer {}", from.name());
    Ok(())
}

/// The ENI is attached while enid runs.
fn while_enid_runs(layout: &Layout, rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(layout, rp_filter)?;
    stage.show_the_failure()?;
    stage.vpc.detach(&stage.second)?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    stage.comes_to_work(layout, &daemon)?;
    daemon.terminate()
}

/// An operator configured the ENI as DHCP does, then starts enid.
fn after_dhcp(layout: &Layout, rp_filter: u8) -> anyhow::Result<()> {
    let stage = Stage::build(layout, rp_filter)?;
    stage.show_the_failure()?;
    let mut daemon = Daemon::ready(&stage.instance, "")?;
    stage.comes_to_work(layout, &daemon)?;
    daemon.terminate()
}

/// udev's last word on a link is a file, of which the kernel tells nothing.
fn when_udev_is_done() -> anyhow::Result<()> {
    let stage = Stage::build(&Layout::TWO_SUBNETS, 2)?;
    let mut daemon = Daemon::ready(&stage.instance, "[links]\nudev = \"always\"\n")?;
    stage.vpc.attach(&stage.second, &stage.instance, "ens6")?;
    let link = || Ok(stage.instance.ip_json(&["link", "show", "dev", "ens6"])?[0].clone());
    let up = |link: &serde_json::Value| link["flags"].to_string().contains("\"UP\"");
    let waits = || {
        std::thread::sleep(Duration::from_millis(700));
        let waiting: anyhow::Result<serde_json::Value> = link();
        let waiting = waiting?;
        ensure!(!up(&waiting), "udev was not waited for: {waiting}");
        Ok(waiting)
    };
    let database = std::path::Path::new("/run/udev/data");
    std::fs::create_dir_all(database)?;
    let entry = database.join(format!("n{}", waits()?["ifindex"]));
    // Its first words.
    std::fs::write(&entry, "I:1\nE:ID_PROCESSING=1\n")?;
    waits()?;
    std::fs::write(&entry, "I:1\nE:ID_RENAMING=1\n")?;
    waits()?;
    std::fs::write(&entry, "I:1\n")?;
    // Without a look at the file, it would be five seconds.
    let raised = eventually(Duration::from_secs(2), "the link is raised", &daemon, || {
        let link: anyhow::Result<serde_json::Value> = link();
        let link = link?;
        ensure!(up(&link), "{link}");
        Ok(())
    });
    std::fs::remove_file(&entry)?;
    raised?;
    daemon.terminate()
}
