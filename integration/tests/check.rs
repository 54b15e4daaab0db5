//! Promise: `enictl check` finds what breaks the network, and what it prints as the remedy ends it.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::imds::{Action, Fault};
use integration::vpc::{Echo, EniSpec, Output};
use integration::{Daemon, binary, eventually, trial};
use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::TempDir;

use crate::cut::v6;
use crate::pair::{PATIENCE, Pair, SECOND, comes_to_rest, picture, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("check::a_healthy_instance_has_nothing_broken_for_root_and_for_nobody", healthy),
        trial("check::a_foreign_rule_is_found_and_its_remedy_ends_it", foreign_rules),
        trial("check::a_strict_filter_that_drops_is_found_and_its_remedy_ends_it", strict),
        trial("check::settings_that_break_answers_are_found_and_their_remedies_end_it", settings),
        trial("check::what_enid_cannot_do_is_told", daemon_says),
        trial("check::what_an_operator_has_chosen_is_a_risk_at_most", chosen),
        trial("check::neighbours_are_known_by_what_they_leave_in_the_kernel", traces),
        trial("check::neighbours_are_known_by_what_runs_and_by_their_files", files),
        trial("check::a_probe_shows_which_sources_work", probes),
        trial("check::without_the_daemon_the_links_are_checked", without_daemon),
    ]
}

/// An address beside the second ENI's first.
pub(crate) const SECONDARY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
const WHOAMI: u16 = 7;

/// A machine on which two ENIs of both families work, and a directory in which no other program runs.
pub(crate) struct Stage {
    pub(crate) pair: Pair,
    pub(crate) daemon: Daemon,
    root: TempDir,
}

impl Stage {
    pub(crate) fn build() -> anyhow::Result<Stage> {
        Stage::build_with("")
    }

    pub(crate) fn build_with(extra: &str) -> anyhow::Result<Stage> {
        let pair = Pair::dual()?;
        pair.vpc.assign(&pair.second, SECONDARY, None)?;
        let daemon = Daemon::ready(&pair.instance, extra)?;
        comes_to_rest(&daemon)?;
        Ok(Stage { pair, daemon, root: TempDir::new()? })
    }

    pub(crate) fn check(&self, words: &[&str]) -> anyhow::Result<Output> {
        let root = self.root.path().to_string_lossy().into_owned();
        self.daemon.enictl().run(&[&["check", "--root", &root], words].concat())
    }

    /// What is found now, and that the exit code says whether something is broken.
    pub(crate) fn found(&self) -> anyhow::Result<Vec<Value>> {
        let said = self.check(&["--json"])?;
        let check = said.json()?;
        let broken = check["worst"] == "broken";
        ensure!(said.code == Some(if broken { 3 } else { 0 }), "{said:?}");
        Ok(check["findings"].as_array().with_context(|| check.to_string())?.clone())
    }

    /// The one finding of this kind about this link or address.
    pub(crate) fn one(&self, id: &str, about: &str) -> anyhow::Result<Value> {
        let found = self.found()?;
        let one = found.iter().find(|finding| {
            finding["id"] == id && (about.is_empty() || finding.to_string().contains(about))
        });
        Ok(one.with_context(|| format!("no {id} about {about}: {found:#?}"))?.clone())
    }

    pub(crate) fn none(&self, id: &str) -> anyhow::Result<()> {
        let found = self.found()?;
        ensure!(found.iter().all(|finding| finding["id"] != id), "{id} is found: {found:#?}");
        Ok(())
    }

    /// Does what a finding says, word by word as it is printed.
    fn heed(&self, finding: &Value) -> anyhow::Result<()> {
        let said = self.check(&[])?.stdout;
        for line in finding["remedy"].as_array().context("no remedy")? {
            let line = line.as_str().context("a remedy is text")?;
            ensure!(said.contains(&format!("    remedy: {line}\n")), "{line} is not in:\n{said}");
            match line.strip_prefix("enictl ") {
                Some(words) => {
                    let said = self.daemon.enictl().run(&words.split(' ').collect::<Vec<_>>())?;
                    ensure!(said.code == Some(0), "{line}: {said:?}");
                }
                None => drop(self.pair.instance.run(&["sh", "-c", line])?),
            }
        }
        Ok(())
    }

    pub(crate) fn ip(&self, line: &str) -> anyhow::Result<()> {
        let words: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
        self.pair.instance.run(&words).map(drop)
    }

    /// What is broken is found, the remedy as printed ends it, and nothing else is left.
    pub(crate) fn cured(&self, id: &str, about: &str, severity: &str) -> anyhow::Result<Value> {
        let finding = eventually(PATIENCE, id, &self.daemon, || self.one(id, about))?;
        ensure!(finding["severity"] == severity, "{finding}");
        self.heed(&finding)?;
        eventually(PATIENCE, "it is over", &self.daemon, || self.none(id))?;
        Ok(finding)
    }
}

fn healthy() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let third = stage.pair.vpc.create_eni(EniSpec::new([Ipv4Addr::new(10, 0, 254, 9)]))?;
    stage.pair.vpc.attach(&third, &stage.pair.instance, "ens7")?;
    eventually(PATIENCE, "the third works", &stage.daemon, || {
        let enis = crate::pair::status(&stage.daemon)?;
        ensure!(enis["enis"].as_array().map(Vec::len) == Some(3), "{enis}");
        ensure!(enis["verdict"] == "converged", "{enis}");
        Ok(())
    })?;
    for (value, word) in [("0", "off"), ("1", "strict"), ("2", "loose")] {
        for link in ["all", "ens5", "ens6", "ens7"] {
            let value = if link == "all" { "0" } else { value };
            stage.pair.instance.sysctl(&format!("net.ipv4.conf.{link}.rp_filter"), value)?;
        }
        let said = stage.check(&[])?;
        ensure!(said.code == Some(0), "{said:?}");
        ensure!(said.stdout.starts_with("nothing broken"), "{}", said.stdout);
        ensure!(said.stdout.contains("3 ENIs, 6 addresses, "), "{}", said.stdout);
        let filter = format!("reverse path filter  ens5 {word}, ens6 {word}, ens7 {word}\n");
        ensure!(said.stdout.contains(&filter), "{}", said.stdout);
        ensure!(said.stdout.lines().all(|line| line.chars().count() <= 100), "{}", said.stdout);
    }
    let json = stage.check(&["--json"])?.json()?;
    ensure!(json["schema"] == 1 && json["daemon"] == true && json["worst"].is_null(), "{json}");
    ensure!(json["findings"] == Value::Array(Vec::new()), "{json}");
    // Twice for each address and each place (the outside, its subnet, two others), once for metadata.
    let ways = 2 * 6 * 4 + 1;
    ensure!(json["checked"]["ways"] == ways, "{json}");
    ensure!(json["checked"]["settings"].as_u64() > Some(10), "{json}");
    // Whoever may do nothing sees the same.
    let program = binary("enictl")?;
    let (program, config) = (program.to_string_lossy(), stage.daemon.config());
    let (config, root) = (config.to_string_lossy(), stage.root.path().to_string_lossy());
    let nobody =
        ["unshare", "--user", &program, "--config", &config, "check", "--json", "--root", &root];
    let said = stage.pair.instance.output(&nobody)?;
    ensure!(said.code == Some(0) && said.json()? == json, "{said:?}\n{json}");
    // A router that enid hears meanwhile changes its routes, once.
    eventually(PATIENCE, "a check changes nothing", &stage.daemon, || {
        let before = picture(&stage.pair.instance)?;
        stage.check(&[])?;
        same(&before, &picture(&stage.pair.instance)?)
    })
}

fn foreign_rules() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let six = v6(2, 4).to_string();
    // To the other ENI, in both families; the first of two addresses counts the other.
    stage.ip("-4 rule add pref 100 from 10.0.2.0/24 lookup main")?;
    let finding = stage.cured("wrong-eni", "10.0.2.4", "broken")?;
    ensure!(finding["link"] == "ens6" && finding["more_addresses"] == 1, "{finding}");
    ensure!(finding["what"].as_str().is_some_and(|what| what.contains("ens5")), "{finding}");
    ensure!(
        finding["remedy"][0] == "ip -4 rule del pref 100 from 10.0.2.0/24 lookup main",
        "{finding}"
    );
    stage.ip(&format!("-6 rule add pref 101 from {six} lookup main"))?;
    let finding = stage.cured("wrong-eni", &six, "broken")?;
    ensure!(finding["address"] == six, "{finding}");
    // To one subnet only.
    stage.ip("-4 rule add pref 102 from 10.0.2.5 to 10.0.1.0/24 lookup main")?;
    let finding = stage.cured("wrong-eni", "10.0.2.5", "broken")?;
    ensure!(finding["what"].as_str().is_some_and(|what| what.contains("10.0.1.0/24")), "{finding}");
    // To a link that is no ENI.
    stage.ip("link add tun0 type bridge")?;
    stage.ip("link set tun0 up")?;
    stage.ip("route add default dev tun0 table 77")?;
    stage.ip("-4 rule add pref 103 from 10.0.2.5 lookup 77")?;
    let finding = stage.cured("diverted", "10.0.2.5", "risk")?;
    ensure!(finding["what"].as_str().is_some_and(|what| what.contains("tun0")), "{finding}");
    // Nowhere.
    for (pref, kind) in [("104", "prohibit"), ("105", "unreachable"), ("106", "blackhole")] {
        stage.ip(&format!("-4 rule add pref {pref} from 10.0.2.5 {kind}"))?;
        let finding = stage.cured("no-way-out", "10.0.2.5", "broken")?;
        ensure!(finding["remedy"][0] == format!("ip -4 rule del pref {pref}"), "{finding}");
    }
    // A rule that somebody else's program removes and that the kernel itself had made.
    for flag in ["-4", "-6"] {
        stage.ip(&format!("{flag} rule del pref 0"))?;
        stage.cured("local-rule-missing", &format!("ip {flag} rule"), "broken")?;
    }
    stage.none("not-delivered")?;
    let said = stage.check(&[])?;
    ensure!(said.stdout.starts_with("nothing broken\n"), "{}", said.stdout);
    Ok(())
}

fn strict() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    stage.pair.instance.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    stage.pair.instance.sysctl("net.ipv4.conf.ens6.rp_filter", "0")?;
    stage.ip("-4 rule add pref 100 from 10.0.2.4 lookup main")?;
    stage.none("strict-reverse-path")?;
    // Either of the two settings is enough.
    for link in ["ens6", "all"] {
        stage.pair.instance.sysctl(&format!("net.ipv4.conf.{link}.rp_filter"), "1")?;
        let finding = stage.cured("strict-reverse-path", "10.0.2.4", "broken")?;
        ensure!(finding["link"] == "ens6" && finding["more_addresses"] == 0, "{finding}");
        ensure!(finding["remedy"][0] == "sysctl -w net.ipv4.conf.ens6.rp_filter=2", "{finding}");
        stage.one("wrong-eni", "10.0.2.4").context("the cause stays")?;
        stage.pair.instance.sysctl("net.ipv4.conf.ens6.rp_filter", "0")?;
    }
    stage.ip("-4 rule del pref 100")?;
    // Where it drops multicast only, that is no more than a note.
    let finding = stage.cured("strict-multicast", "ens6", "note")?;
    ensure!(finding["what"].as_str().is_some_and(|what| what.contains("10.0.2.0/24")), "{finding}");
    Ok(())
}

fn settings() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let sysctl = |name: &str, value: &str| stage.pair.instance.sysctl(name, value);
    // 2 is silent for a /32 only.
    sysctl("net.ipv4.conf.ens6.arp_ignore", "2")?;
    let finding = stage.cured("arp-silent", "10.0.2.5", "broken")?;
    ensure!(finding["more_addresses"] == 0, "{finding}");
    for link in ["ens6", "all"] {
        sysctl(&format!("net.ipv4.conf.{link}.arp_ignore"), "8")?;
        let finding = stage.cured("arp-silent", "\"ens6\"", "broken")?;
        ensure!(finding["more_addresses"] == 1, "{finding}");
    }
    // Filtered by the way back, which is a wrong one.
    sysctl("net.ipv4.conf.ens6.arp_filter", "1")?;
    stage.none("arp-silent")?;
    stage.ip("rule add pref 100 from 10.0.2.4 to 10.0.2.0/24 lookup main")?;
    let finding = stage.cured("arp-silent", "10.0.2.4", "broken")?;
    ensure!(finding["remedy"][0] == "sysctl -w net.ipv4.conf.ens6.arp_filter=0", "{finding}");
    stage.cured("wrong-eni", "10.0.2.4", "broken")?;
    sysctl("net.ipv6.conf.ens6.disable_ipv6", "1")?;
    stage.cured("ipv6-off", "ens6", "broken")?;
    comes_to_rest(&stage.daemon)?;
    sysctl("net.ipv6.conf.ens5.accept_ra", "1")?;
    sysctl("net.ipv6.conf.ens5.forwarding", "1")?;
    stage.cured("router-not-heard", "ens5", "risk")?;
    stage.ip("route add prohibit 169.254.169.254/32")?;
    stage.cured("metadata-way", "169.254.169.254", "risk")?;
    // Held, because enid raises it at once otherwise.
    ensure!(stage.daemon.enictl().run(&["hold", "ens6"])?.code == Some(0));
    stage.ip("link set ens6 down")?;
    stage.cured("link-down", "ens6", "risk")?;
    ensure!(stage.daemon.enictl().run(&["unhold", "ens6"])?.code == Some(0));
    comes_to_rest(&stage.daemon)?;
    eventually(PATIENCE, "nothing is left", &stage.daemon, || {
        let said = stage.check(&[])?.stdout;
        ensure!(said.starts_with("nothing broken\n"), "{said}");
        Ok(())
    })
}

fn daemon_says() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    stage.pair.vpc.metadata().fault(Fault::on("*", Action::Status(403)));
    let refresh = stage.daemon.enictl().run(&["refresh"])?;
    let finding = eventually(PATIENCE, "metadata is refused", &stage.daemon, || {
        stage.one("metadata-unread", "403")
    });
    let finding = finding.with_context(|| format!("{refresh:?}"))?;
    ensure!(finding["severity"] == "risk", "what was read stays in force: {finding}");
    ensure!(
        finding["remedy"][0].as_str().is_some_and(|line| line.contains("http-endpoint")),
        "{finding}"
    );
    stage.one("unfinished", "").context("enid waits")?;
    stage.ip("address del 10.0.1.4/24 dev ens5")?;
    let finding = stage.cured("address-missing", "10.0.1.4", "broken")?;
    ensure!(finding["remedy"][0] == "ip address add 10.0.1.4/24 dev ens5", "{finding}");
    Ok(())
}

/// What an operator has chosen is no more than a risk.
fn chosen() -> anyhow::Result<()> {
    let choice = "[[eni]]\nmatch = { device-number = 1 }\nmanage = \"addresses\"\n";
    let stage = Stage::build_with(choice)?;
    let finding = stage.one("wrong-eni", "10.0.2.4")?;
    ensure!(finding["severity"] == "risk", "{finding}");
    ensure!(finding["remedy"].to_string().contains("manage"), "{finding}");
    stage.daemon.configure("")?;
    ensure!(stage.daemon.enictl().run(&["reload"])?.code == Some(0));
    eventually(PATIENCE, "it is managed in full", &stage.daemon, || stage.none("wrong-eni"))?;
    ensure!(stage.daemon.enictl().run(&["release", "ens6"])?.code == Some(0));
    stage.pair.vpc.configure_as_dhcp(&stage.pair.second)?;
    let finding = stage.one("wrong-eni", "10.0.2.4")?;
    ensure!(finding["severity"] == "risk", "{finding}");
    stage.daemon.enictl().run(&["unhold", &stage.pair.second.0])?;
    let remedy = format!("enictl unhold {}", stage.pair.second.0);
    ensure!(finding["remedy"][0] == remedy, "{finding}");
    eventually(PATIENCE, "it is managed again", &stage.daemon, || stage.none("wrong-eni"))
}

fn traces() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    for id in ["nm-cloud-setup", "vpc-cni", "cilium", "cloud-netconfig", "ec2-net-utils"] {
        stage.none(id)?;
    }
    let ens6 = stage.pair.instance.ip_json(&["link", "show", "ens6"])?[0]["ifindex"].to_string();
    let ens6: u32 = ens6.parse()?;
    let netconfig = 30_000 + ens6;
    for (id, add, del, word) in [
        (
            "nm-cloud-setup",
            "rule add pref 30350 lookup main suppress_prefixlength 0".to_owned(),
            "rule del pref 30350".to_owned(),
            "nm-cloud-setup.timer",
        ),
        (
            "vpc-cni",
            "rule add pref 1024 fwmark 0x80/0x80 lookup main".to_owned(),
            "rule del pref 1024".to_owned(),
            "no_manage",
        ),
        (
            "vpc-cni",
            "rule add pref 512 to 10.0.2.77 lookup main".to_owned(),
            "rule del pref 512".to_owned(),
            "no_manage",
        ),
        (
            "cilium",
            "link add cilium_host type bridge".to_owned(),
            "link del cilium_host".to_owned(),
            "neighbours.cni",
        ),
        (
            "cloud-netconfig",
            format!("route add 192.0.2.0/24 dev ens6 table {netconfig}"),
            format!("route del 192.0.2.0/24 dev ens6 table {netconfig}"),
            "cloud-netconfig.timer",
        ),
        (
            "ec2-net-utils",
            "rule add pref 10001 from 192.0.2.1 lookup 10001".to_owned(),
            "rule del pref 10001".to_owned(),
            "policy-routes@",
        ),
    ] {
        stage.ip(&add)?;
        let finding = stage.one(id, "").with_context(|| add.clone())?;
        ensure!(finding["severity"] == "risk", "{finding}");
        ensure!(finding["remedy"].to_string().contains(word), "{finding}");
        stage.ip(&del)?;
        stage.none(id)?;
    }
    // A VPN that keeps to its own place is nobody's trouble.
    stage.ip("rule add pref 5210 fwmark 0x80000/0xff0000 lookup main")?;
    stage.ip("rule add pref 5270 lookup 52")?;
    eventually(PATIENCE, "nothing is found", &stage.daemon, || {
        let found = stage.found()?;
        ensure!(found.is_empty(), "{found:#?}");
        Ok(())
    })
}

fn put(root: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
    Ok(std::fs::write(path, text)?)
}

fn files() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let root = stage.root.path();
    let (usr, etc) = ("usr/lib/systemd/networkd.conf.d/50-enid.conf", "etc/systemd/networkd.conf");
    let ours = include_str!("../../packaging/networkd/50-enid.conf");
    // It does not run, so that nobody is in danger.
    put(root, etc, "[Network]\nManageForeignRoutes=yes\n")?;
    stage.none("networkd")?;
    put(root, "proc/77/comm", "systemd-network\n")?;
    let finding = stage.one("networkd", "")?;
    ensure!(finding["severity"] == "risk" && finding["file"] == format!("/{etc}"), "{finding}");
    put(root, etc, "[Network]\n")?;
    let finding = stage.one("networkd", "ManageForeignRoutingPolicyRules")?;
    ensure!(finding["file"].is_null(), "{finding}");
    // What the package brings is enough, and what a remedy writes as well.
    put(root, usr, ours)?;
    stage.none("networkd")?;
    std::fs::remove_file(root.join(usr))?;
    for line in finding["remedy"].as_array().context("no remedy")? {
        let line = line.as_str().context("text")?;
        let line = line.replace("/etc/", &format!("{}/etc/", root.display()));
        if !line.starts_with("systemctl") {
            stage.pair.instance.run(&["sh", "-c", &line])?;
        }
    }
    stage.none("networkd")?;
    // It was started long before the file came: it has not read it.
    put(root, "proc/stat", "btime 1000\n")?;
    put(root, "proc/77/stat", &format!("77 (systemd-network) S {}0 0", "0 ".repeat(18)))?;
    let finding = stage.one("networkd-not-restarted", "50-enid.conf")?;
    ensure!(finding["remedy"][0] == "systemctl restart systemd-networkd", "{finding}");
    put(root, "proc/stat", "btime 99999999999\n")?;
    stage.none("networkd-not-restarted")?;
    others(&stage)
}

/// All but systemd-networkd.
fn others(stage: &Stage) -> anyhow::Result<()> {
    let root = stage.root.path();
    let wants = "etc/systemd/system/timers.target.wants";
    let link = |name: &str| stage.pair.instance.ip_json(&["link", "show", name]);
    let number = |name: &str| anyhow::Ok(link(name)?[0]["ifindex"].to_string());
    put(root, "proc/78/comm", "NetworkManager\n")?;
    for name in ["ens5", "ens6"] {
        let file = format!("run/NetworkManager/devices/{}", number(name)?);
        put(root, &file, "[device]\nmanaged=true\n")?;
    }
    let finding = stage.one("network-manager", "ens6")?;
    ensure!(finding["severity"] == "note", "{finding}");
    ensure!(finding["remedy"][0] == "nmcli device set ens6 managed no", "{finding}");
    let found = stage.found()?;
    let count = found.iter().filter(|finding| finding["id"] == "network-manager").count();
    ensure!(count == 1, "the primary ENI is its: {found:#?}");
    for (id, file) in [
        ("nm-cloud-setup", format!("{wants}/nm-cloud-setup.timer")),
        ("cloud-netconfig", format!("{wants}/cloud-netconfig.timer")),
        ("vpc-cni", "proc/79/comm".to_owned()),
        ("ec2-net-utils", "sys/fs/cgroup/system.slice/policy-routes@ens6.service/x".to_owned()),
    ] {
        stage.none(id)?;
        put(root, &file, "aws-k8s-agent\n")?;
        stage.one(id, "")?;
    }
    // Published on one of its addresses, on the other ENI's, and everywhere.
    put(root, "proc/80/comm", "docker-proxy\n")?;
    let proxy = |ip: &str| format!("docker-proxy\0-proto\0tcp\0-host-ip\0{ip}\0-host-port\08443\0");
    for (ip, severity) in
        [("10.0.1.4", None), ("0.0.0.0", Some("note")), ("10.0.2.5", Some("broken"))]
    {
        put(root, "proc/80/cmdline", &proxy(ip))?;
        match severity {
            None => stage.none("published-ports")?,
            Some(severity) => {
                let finding = stage.one("published-ports", "8443")?;
                ensure!(finding["severity"] == severity && finding["link"] == "ens6", "{finding}");
            }
        }
    }
    // The remedy is a configuration that enid accepts, and with it nothing is found.
    let finding = stage.one("published-ports", "8443")?;
    let line = finding["remedy"][0].as_str().context("no remedy")?;
    let file = finding["file"].as_str().context("no file")?;
    let config = stage.daemon.config();
    let line = line.replace(file, &config.to_string_lossy());
    stage.pair.instance.run(&["sh", "-c", &line])?;
    let said = stage.daemon.enictl().run(&["reload"])?;
    ensure!(said.code == Some(0), "{said:?}\n{}", std::fs::read_to_string(config)?);
    eventually(PATIENCE, "the port is taken care of", &stage.daemon, || {
        stage.none("published-ports")
    })?;
    // Its answers come in by a mark.
    stage.pair.instance.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    stage.pair.instance.sysctl("net.ipv4.conf.ens6.rp_filter", "1")?;
    stage.none("mark-not-valid")
}

fn probes() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let host = &stage.pair.host;
    let _service = Echo::start(host, WHOAMI)?;
    let four = format!("{}:{WHOAMI}", crate::pair::HOST);
    let said = stage.check(&["--probe", &four])?;
    ensure!(said.code == Some(0), "{said:?}");
    ensure!(
        said.stdout.contains(&format!("probe {four} ({four}): 3 of 3 sources reach it\n")),
        "{said:?}"
    );
    ensure!(said.stdout.contains("    10.0.2.5 on ens6: works ["), "{}", said.stdout);
    // The internet, in both families.
    let (outside, outside_v6) = (stage.pair.vpc.internet_v4(), stage.pair.vpc.internet_v6());
    let (to, to_v6) = (format!("{outside}:{WHOAMI}"), format!("[{outside_v6}]:{WHOAMI}"));
    let said = stage.check(&["--probe", &to, "--probe", &to_v6, "--json"])?;
    let probes = said.json()?["probes"].as_array().context("no probes")?.clone();
    let works = |source: IpAddr| {
        let one = probes.iter().find(|probe| probe["source"] == source.to_string());
        one.is_some_and(|probe| probe["error"].is_null() && probe["duration_us"].as_u64() > Some(0))
    };
    let public: [IpAddr; 4] = [crate::pair::FIRST.into(), SECOND.into(), v6(1, 4), v6(2, 4)];
    ensure!(public.into_iter().all(works), "{probes:#?}");
    // Without a public address nothing comes back.
    ensure!(!works(SECONDARY.into()) && said.code == Some(3), "{probes:#?}");
    // Somebody on the way drops one source, and nobody listens at the next port.
    let drops = "chain in {\ntype filter hook input priority 0\nip saddr 10.0.2.5 drop\n}";
    host.nft(&format!("table inet gate {{\n{drops}\n}}\n"))?;
    let closed = format!("{}:8", crate::pair::HOST);
    let said = stage.check(&["--probe", &four, "--probe", &closed])?;
    ensure!(said.code == Some(3), "{said:?}");
    ensure!(said.stdout.starts_with("4 probes failed\n"), "{}", said.stdout);
    for part in [
        ": 2 of 3 sources reach it\n",
        "    10.0.2.4 on ens6: works [",
        "    10.0.2.5 on ens6: fails: no answer within 5 s [",
        "    10.0.2.4 on ens6: fails: it was reached and refused: nobody listens there (",
    ] {
        ensure!(said.stdout.contains(part), "{part} is not in:\n{}", said.stdout);
    }
    let said = stage.check(&["--probe", "nonsense"])?;
    ensure!(said.code == Some(1) && said.stderr.contains("not HOST:PORT"), "{said:?}");
    Ok(())
}

fn without_daemon() -> anyhow::Result<()> {
    let mut stage = Stage::build()?;
    let with = stage.check(&["--json"])?.json()?;
    stage.daemon.terminate()?;
    let said = stage.check(&[])?;
    ensure!(said.code == Some(0) && said.stdout.starts_with("nothing broken"), "{said:?}");
    ensure!(said.stdout.contains("\nnot checked  what metadata grants"), "{}", said.stdout);
    let without = stage.check(&["--json"])?.json()?;
    ensure!(without["daemon"] == false, "{without}");
    for field in ["enis", "addresses", "ways", "reverse_paths"] {
        let (a, b) = (&with["checked"][field], &without["checked"][field]);
        ensure!(a == b, "{field}: {a} with the daemon, {b} without");
    }
    // Nor does a daemon that answers nonsense keep anybody from looking.
    let path = stage.root.path().join("control");
    let listener = UnixListener::bind(&path)?;
    let hangs_up = std::thread::spawn(move || listener.accept().map(drop));
    let said = stage.check(&["--socket", &path.to_string_lossy()])?;
    ensure!(said.code == Some(0) && said.stdout.contains("connection to enid broke"), "{said:?}");
    hangs_up.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
    stage.ip("-4 rule add pref 100 from 10.0.2.4 lookup main")?;
    stage.cured("wrong-eni", "10.0.2.4", "broken")?;
    // What enid made and nobody repairs.
    stage.ip("-4 rule flush table 20001")?;
    let finding = stage.one("wrong-eni", "10.0.2.4")?;
    ensure!(finding["remedy"][0] == "systemctl start enid", "{finding}");
    stage.daemon.restart()?;
    stage.daemon.wait_ready(PATIENCE + Duration::from_secs(10))?;
    eventually(PATIENCE, "it is repaired", &stage.daemon, || stage.none("wrong-eni"))
}
