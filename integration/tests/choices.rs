//! Promise: what the operator chose for one ENI holds for that one, at once, and for no other.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use integration::vpc::{Bound, EniId, EniSpec, UdpEcho, Vpc, ping_once, whoami_udp};
use integration::{Daemon, eventually, trial};
use libtest_mimic::Trial;

use crate::pair::{FIRST, PATIENCE, Pair, SECOND, answers, comes_to_rest, picture, same, status};
use crate::users::leaves_by;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("choices::an_ignored_eni_is_left_as_it_is", ignored),
        trial("choices::addresses_alone_are_managed_where_that_is_asked_for", addresses_only),
        trial("choices::extra_routes_are_in_the_enis_table", extra_routes),
        trial("choices::a_connected_route_is_made_and_goes_with_the_wish", connected_route),
        trial("choices::strict_arp_answers_for_no_other_eni", strict_arp),
        trial("choices::a_contradiction_holds_that_eni_and_names_both_places", contradiction),
        trial("choices::an_eni_is_matched_by_its_driver", driver),
    ]
}

/// Gives the daemon another configuration, which holds as soon as it has heard of it.
fn reconfigure(
    daemon: &Daemon,
    extra: &str,
    then: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    daemon.configure(extra)?;
    eventually(PATIENCE, "the configuration holds", daemon, then)
}

fn ignored() -> anyhow::Result<()> {
    let ignore = "[[eni]]\nmatch = { subnet = \"10.0.2.0/24\" }\nmanage = \"ignore\"";
    let pair = Pair::attached()?;
    let before = picture(&pair.instance)?;
    let daemon = Daemon::ready(&pair.instance, ignore)?;
    comes_to_rest(&daemon)?;
    same(&before, &picture(&pair.instance)?)?;
    let eni = pair.second_status(&daemon)?;
    ensure!(eni["state"] == "held", "{eni}");
    let reason = eni["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("configuration"), "{reason}");
    // Another wish holds at once, and taking it back leaves what was made.
    daemon.configure("")?;
    pair.comes_to_work("ens6", &daemon)?;
    comes_to_rest(&daemon)?;
    let managed = picture(&pair.instance)?;
    reconfigure(&daemon, ignore, || {
        let eni = pair.second_status(&daemon)?;
        ensure!(eni["state"] == "held", "{eni}");
        Ok(())
    })?;
    same(&managed, &picture(&pair.instance)?)?;
    pair.works("ens6")
}

fn addresses_only() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { device-number = 1 }\nmanage = \"addresses\"";
    let secondary = Ipv4Addr::new(10, 0, 2, 77);
    let pair = Pair::attached()?;
    pair.vpc.assign(&pair.second, secondary, None)?;
    let daemon = Daemon::ready(&pair.instance, wish)?;
    comes_to_rest(&daemon)?;
    let there = pair.instance.run(&["ip", "-4", "-o", "addr", "show", "dev", "ens6"])?;
    for address in [SECOND, secondary] {
        ensure!(there.contains(&format!(" {address}/")), "{address} is not there: {there}");
    }
    let ours = |words: &[&str]| -> anyhow::Result<usize> {
        let lines = picture(&pair.instance)?;
        let ours = lines.iter().filter(|line| line.contains("\"protocol\":\"233\""));
        Ok(ours.filter(|line| words.iter().any(|word| line.starts_with(word))).count())
    };
    ensure!(ours(&["rule", "route"])? == 0, "there is policy routing");
    // With policy routing, and without it again.
    daemon.configure("")?;
    pair.comes_to_work("ens6", &daemon)?;
    reconfigure(&daemon, wish, || {
        ensure!(ours(&["rule", "route"])? == 0, "policy routing is still there");
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    answers(&pair.host, FIRST)
}

fn extra_routes() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { id = \"ID\" }\nroutes = [{ to = \"10.99.0.0/16\", via = \"10.0.2.77\" }]";
    let (pair, daemon) = Pair::managed("")?;
    let far = Ipv4Addr::new(10, 99, 1, 1);
    let way = |source: Ipv4Addr| -> anyhow::Result<String> {
        let words = ["route", "get", &far.to_string(), "from", &source.to_string()];
        let route = pair.instance.ip_json(&words)?;
        Ok(route[0]["gateway"].as_str().context("no gateway")?.to_owned())
    };
    ensure!(way(SECOND)? == "10.0.2.1", "{}", way(SECOND)?);
    reconfigure(&daemon, &wish.replace("ID", &pair.second.to_string()), || {
        ensure!(way(SECOND)? == "10.0.2.77", "{}", way(SECOND)?);
        Ok(())
    })?;
    ensure!(way(FIRST)? == "10.0.1.1", "the primary ENI's packets take it, too: {}", way(FIRST)?);
    reconfigure(&daemon, "", || {
        ensure!(way(SECOND)? == "10.0.2.1", "it is still there: {}", way(SECOND)?);
        Ok(())
    })?;
    pair.works("ens6")
}

fn connected_route() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { device-number = 1 }\nconnected_route = true";
    let (pair, daemon) = Pair::managed("")?;
    let main = || pair.instance.run(&["ip", "-4", "route", "show", "table", "main", "dev", "ens6"]);
    ensure!(main()?.is_empty(), "{}", main()?);
    // A service on all addresses lets the kernel choose the source of its answers.
    let neighbour = Ipv4Addr::new(10, 0, 2, 99);
    let neighbour = pair.vpc.instance("near", EniSpec::new([neighbour]))?;
    let _service = UdpEcho::start(&pair.instance, 99)?;
    let ask = || whoami_udp(&neighbour, (SECOND, 99).into(), &Bound::No);
    ensure!(ask().is_err(), "it answers from the right address without the route");
    reconfigure(&daemon, wish, || {
        ensure!(main()?.starts_with("10.0.2.0/24 "), "{:?}", main()?);
        Ok(())
    })?;
    ask()?;
    pair.works("ens6")?;
    ensure!(
        leaves_by(&pair.instance, FIRST, Ipv4Addr::new(10, 0, 2, 99))? == "ens5",
        "the primary"
    );
    reconfigure(&daemon, "", || {
        ensure!(main()?.is_empty(), "it is still there: {}", main()?);
        Ok(())
    })?;
    pair.works("ens6")
}

/// A plain segment: whoever asks hears every ENI that answers.
fn strict_arp() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { device-number = 0 }\narp = \"strict\"\n\
                [[eni]]\nmatch = { device-number = 1 }\narp = \"strict\"";
    let (pair, daemon) = Pair::managed("")?;
    let asked = segment(&pair.vpc, &pair.instance.primary)?;
    ensure!(asked(SECOND)?, "the first ENI does not answer for the second's address");
    // Metadata is not reached through a plain segment; the file is.
    daemon.configure(wish)?;
    for link in ["ens5", "ens6"] {
        let read = |key: &str| pair.instance.read_sysctl(&format!("net.ipv4.conf.{link}.{key}"));
        eventually(PATIENCE, "ARP is strict", &daemon, || {
            let values = [read("arp_ignore")?, read("arp_announce")?];
            ensure!(values == ["1", "2"], "{link}: {values:?}");
            Ok(())
        })?;
    }
    ensure!(!asked(SECOND)?, "the first ENI answers for the second's address");
    ensure!(asked(FIRST)?, "the first ENI does not answer for its own address");
    daemon.configure("")?;
    eventually(PATIENCE, "ARP is as it was", &daemon, || {
        ensure!(pair.instance.read_sysctl("net.ipv4.conf.ens6.arp_announce")? == "0", "it is not");
        ensure!(asked(SECOND)?, "the first ENI does not answer for the second's address");
        Ok(())
    })
}

/// Makes a plain segment of an ENI's port, with one host on it; it tells whether an address answers
/// ARP there.
fn segment<'a>(
    vpc: &'a Vpc,
    eni: &EniId,
) -> anyhow::Result<impl Fn(Ipv4Addr) -> anyhow::Result<bool> + use<'a>> {
    let fabric = vpc.fabric();
    let port = vpc.port_of(eni)?;
    fabric.ip_batch(&[
        "link add plain type bridge".to_owned(),
        format!("link set {port} master plain"),
        "addr add 10.0.1.200/24 dev plain".to_owned(),
        "link set plain up".to_owned(),
    ])?;
    Ok(move |address: Ipv4Addr| {
        let to = address.to_string();
        fabric.run(&["ip", "neigh", "flush", "dev", "plain"])?;
        let bound = Bound::Device("plain".to_owned());
        // Whether or not the answer finds its way back, the neighbour entry tells who was heard.
        let _ = ping_once(fabric, address.into(), &bound)?;
        let entry = fabric.run(&["ip", "neigh", "show", &to, "dev", "plain"])?;
        Ok(entry.contains("lladdr"))
    })
}

fn contradiction() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { subnet = \"10.0.2.0/24\" }\nmtu = 1500\n\
                [[eni]]\nmatch = { device-number = 1 }\nmtu = 9001";
    let (pair, daemon) = Pair::managed("")?;
    let before = picture(&pair.instance)?;
    daemon.configure(wish)?;
    eventually(PATIENCE, "the ENI is held", &daemon, || {
        let eni = pair.second_status(&daemon)?;
        let reason = eni["reason"].as_str().unwrap_or_default().to_owned();
        ensure!(eni["state"] == "held", "{eni}");
        let file = daemon.config();
        let places = reason.matches(&format!("{}:", file.display())).count();
        ensure!(reason.contains("`mtu`") && places == 2, "{reason}");
        Ok(())
    })?;
    same(&before, &picture(&pair.instance)?)?;
    pair.works("ens6")?;
    ensure!(status(&daemon)?["verdict"] == "waiting", "nothing says that something is wrong");
    daemon.configure("")?;
    comes_to_rest(&daemon)
}

/// A veth has no driver; what has none is matched by none.
fn driver() -> anyhow::Result<()> {
    let wish = "[[eni]]\nmatch = { driver = \"ena\" }\nmanage = \"ignore\"";
    let (pair, daemon) = Pair::managed(wish)?;
    let eni = pair.second_status(&daemon)?;
    ensure!(eni["state"] == "managed", "{eni}");
    pair.works("ens6")
}
