//! Promise: `ping -I DEVICE`, `curl --interface DEVICE` and every other socket that is bound to an
//! ENI's device work.

use std::net::Ipv4Addr;

use anyhow::ensure;
use integration::vpc::{Bound, Instance, ping_once};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::pair::{HOST, PATIENCE, Pair, SECOND, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("device_bound::a_socket_bound_to_the_device_leaves_by_it", by_the_device)]
}

fn device() -> Bound {
    Bound::Device("ens6".to_owned())
}

/// What everybody does by hand, a rule for the address, does nothing for the device.
fn without_enid(pair: &Pair) -> anyhow::Result<()> {
    let internet = pair.vpc.internet_v4();
    pair.instance.ip_batch(&[
        "link set ens6 up".to_owned(),
        format!("addr add {SECOND}/24 dev ens6"),
        "route add default via 10.0.2.1 dev ens6 table 77".to_owned(),
        format!("rule add from {SECOND} lookup 77 pref 100"),
    ])?;
    eventually(PATIENCE, "the usual recipe serves the address", &pair.instance, || {
        let answered = ping_once(&pair.instance, internet.into(), &Bound::from(SECOND))?;
        ensure!(answered, "no answer");
        Ok(())
    })?;
    let answered = ping_once(&pair.instance, internet.into(), &device())?;
    ensure!(!answered, "the usual recipe is enough for the device");
    pair.instance.ip_batch(&[
        format!("rule del from {SECOND} lookup 77 pref 100"),
        "route flush table 77".to_owned(),
        "addr flush dev ens6".to_owned(),
        "link set ens6 down".to_owned(),
    ])
}

/// The ENI of each destination's neighbour, too: nothing may take the short cut by the other ENI.
const DESTINATIONS: [Ipv4Addr; 4] =
    [HOST, Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(10, 0, 1, 9), Ipv4Addr::new(10, 0, 2, 9)];

fn answer(instance: &Instance) -> anyhow::Result<()> {
    for to in DESTINATIONS {
        for name in ["ens5", "ens6"] {
            let bound = Bound::Device(name.to_owned());
            ensure!(ping_once(instance, to.into(), &bound)?, "{to} does not answer {bound:?}");
            let route = instance.ip_json(&["route", "get", &to.to_string(), "oif", name])?;
            ensure!(route[0]["dev"] == name, "to {to} by {name}: {route}");
        }
        let route = instance.ip_json(&["route", "get", &to.to_string(), "oif", "ens6"])?;
        ensure!(route[0]["prefsrc"] == SECOND.to_string(), "to {to}: {route}");
    }
    Ok(())
}

fn by_the_device() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let spec = integration::vpc::EniSpec::new;
    let _near = [
        pair.vpc.instance("near1", spec([DESTINATIONS[2]]))?,
        pair.vpc.instance("near2", spec([DESTINATIONS[3]]))?,
    ];
    without_enid(&pair)?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    let before = pair.drops()?;
    eventually(PATIENCE, "sockets bound to a device work", &daemon, || answer(&pair.instance))?;
    ensure!(pair.drops()? == before, "packets left by the wrong ENI");
    daemon.terminate()
}
