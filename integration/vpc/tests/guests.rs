//! Guests without an emulator: what the fabric does at their taps is the same.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use vpc::{EniSpec, Guest, Netns, Process, Tap, Vpc, ping_once};

use crate::{A, B, PUBLIC_A, Promise, config, get, ping};

pub(crate) const PROMISES: &[(&str, Promise)] = &[
    ("guests::a_guest_is_reachable_while_it_runs", reachable_while_it_runs),
    ("guests::an_eni_comes_and_goes", an_eni_comes_and_goes),
    ("guests::a_foreign_source_is_dropped_and_counted", a_foreign_source),
];

const SIX: &str = "2600:1f16:67f:f201::4";

/// A running machine: a namespace whose only adapter, `ens5`, is connected with a tap.
struct Machine {
    netns: Netns,
    adapter: Process,
    cable: Process,
}

impl Machine {
    /// Opens the tap as an emulator does; nothing is configured.
    fn start(vpc: &Vpc, netns: &Netns, tap: &Tap) -> anyhow::Result<Machine> {
        let socket = |end| format!("/run/{}-{}-{end}.socket", vpc.fabric().name(), tap.name);
        let (inside, outside) = (socket("inside"), socket("outside"));
        let adapter = netns.spawn(frames("ens5", &inside, &outside))?;
        until("the adapter is there", || Ok(Path::new(&inside).exists()))?;
        let cable = vpc.fabric().spawn(frames(&tap.name, &outside, &inside))?;
        until("the tap is open", || {
            let open = Path::new(&outside).exists();
            Ok(open && state(vpc, tap)? == "UP")
        })?;
        netns.run(&["ip", "link", "set", "ens5", "address", &tap.mac.to_string()])?;
        netns.run(&["ip", "link", "set", "ens5", "mtu", "9001", "up"])?;
        Ok(Machine { netns: netns.clone(), adapter, cable })
    }

    /// As if the power was cut.
    fn stop(self, vpc: &Vpc, tap: &Tap) -> anyhow::Result<()> {
        drop((self.adapter, self.cable));
        until("the tap is closed", || Ok(state(vpc, tap)? == "DOWN"))?;
        until("the adapter is gone", || {
            Ok(self.netns.output(&["ip", "link", "show", "ens5"])?.code != Some(0))
        })
    }
}

/// Carries frames between a tap and a socket to which the other end sends.
fn frames(tap: &str, own: &str, other: &str) -> Command {
    let mut socat = Command::new("socat");
    socat.arg("-b65536").arg(format!("TUN,tun-name={tap},tun-type=tap,iff-no-pi"));
    socat.arg(format!("UNIX-SENDTO:{other},bind={own},unlink-early"));
    // It complains when the other end is gone.
    socat.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    socat
}

fn state(vpc: &Vpc, tap: &Tap) -> anyhow::Result<String> {
    let link = vpc.fabric().ip_json(&["link", "show", &tap.name])?;
    Ok(link[0]["operstate"].as_str().unwrap_or_default().to_owned())
}

/// Waits until something has happened.
pub(crate) fn until(
    what: &str,
    mut happened: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !happened()? {
        ensure!(Instant::now() < deadline, "{what}: not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A guest with both families, its tap, a namespace to run it in, and who talks to it.
struct Stage {
    vpc: Vpc,
    guest: Guest,
    tap: Tap,
    sibling: vpc::Instance,
    room: Netns,
}

impl Stage {
    fn build() -> anyhow::Result<Stage> {
        let vpc = Vpc::new(config())?;
        let six: IpAddr = SIX.parse()?;
        let guest = vpc.guest("guest", EniSpec::new([IpAddr::V4(A), six]).public(A, PUBLIC_A))?;
        let tap = vpc.tap(&guest.primary)?;
        let sibling = "2600:1f16:67f:f201::5".parse()?;
        let spec = EniSpec::new([IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)), sibling]);
        let sibling_instance = vpc.instance("sibling", spec)?;
        // Any namespace will do.
        let room = sibling_instance.pod("room")?;
        Ok(Stage { vpc, guest, tap, sibling: sibling_instance, room })
    }

    fn start(&self) -> anyhow::Result<Machine> {
        let machine = Machine::start(&self.vpc, &self.room, &self.tap)?;
        self.room.ip_batch(&[
            format!("addr add {A}/24 dev ens5"),
            "route add default via 10.0.1.1 dev ens5".to_owned(),
            format!("addr add {SIX}/64 dev ens5 nodad"),
            format!("route add default via {} dev ens5", vpc::GATEWAY_V6),
        ])?;
        Ok(machine)
    }

    fn answers(&self) -> anyhow::Result<()> {
        let six: IpAddr = SIX.parse()?;
        for (from, to) in [
            (self.vpc.internet(), IpAddr::V4(PUBLIC_A)),
            (self.vpc.internet(), six),
            (&self.sibling, IpAddr::V4(A)),
            (&self.sibling, six),
        ] {
            until(&format!("{to} answers {}", from.name()), || ping(from, to))?;
        }
        Ok(())
    }
}

fn reachable_while_it_runs() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let mac = stage.vpc.eni(&stage.guest.primary)?.mac;
    ensure!(stage.tap.mac == mac, "its MAC is {mac}, its tap's {}", stage.tap.mac);
    ensure!(state(&stage.vpc, &stage.tap)? == "DOWN", "nobody has opened the tap");
    ensure!(!ping(stage.vpc.internet(), PUBLIC_A)?, "a machine that is off answers");
    let machine = stage.start()?;
    stage.answers()?;
    let machine_sees = ping_once(&machine.netns, stage.vpc.internet_v4().into(), &A.into())?;
    ensure!(machine_sees, "the internet does not answer the guest");
    stage.vpc.metadata().set_v1(true);
    let text = get(&machine.netns, "/latest/meta-data/instance-id")?;
    ensure!(text.ends_with(&stage.guest.id.0), "it was told {text}");
    let text = get(&machine.netns, "/latest/meta-data/mac")?;
    ensure!(text.ends_with(&mac.to_string()), "its primary MAC is told as {text}");

    machine.stop(&stage.vpc, &stage.tap)?;
    ensure!(!ping(stage.vpc.internet(), PUBLIC_A)?, "a machine that is off answers");
    ensure!(!ping(&stage.sibling, SIX.parse::<IpAddr>()?)?, "nor over IPv6");
    let _machine = stage.start()?;
    stage.answers()?;
    ensure!(stage.vpc.drops(&stage.guest.primary)? == 0, "its packets were dropped");
    Ok(())
}

fn an_eni_comes_and_goes() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let vpc = &stage.vpc;
    let eni = vpc.create_eni(EniSpec::new([B]))?;
    ensure!(vpc.tap(&eni).is_err(), "it is not attached yet");
    let tap = vpc.attach_tap(&eni, &stage.guest)?;
    ensure!(vpc.eni(&eni)?.device == 1, "its device number");
    ensure!(vpc.attach_tap(&eni, &stage.guest).is_err(), "it was attached twice");
    ensure!(vpc.name_of(&eni).is_err(), "what it is called inside is the guest's business");
    let known = || {
        let enis = vpc.model().read(|state| state.instances[&stage.guest.id].enis.clone());
        enis.contains(&eni)
    };
    ensure!(known(), "metadata does not know it");
    let machine = Machine::start(vpc, &stage.room, &tap)?;
    stage.room.run(&["ip", "addr", "add", &format!("{B}/24"), "dev", "ens5"])?;
    ensure!(ping(&stage.room, Ipv4Addr::new(10, 0, 2, 1))?, "the router does not answer");
    // It goes whether or not somebody holds it.
    vpc.detach(&eni)?;
    drop(machine);
    ensure!(!known() && vpc.tap(&eni).is_err(), "it is attached still");
    ensure!(vpc.fabric().output(&["ip", "link", "show", &tap.name])?.code != Some(0), "the tap");
    let other = vpc.instance("other", EniSpec::new([Ipv4Addr::new(10, 0, 2, 9)]))?;
    vpc.attach(&eni, &other, "ens6")?;
    ensure!(vpc.tap(&eni).is_err(), "a namespace has no taps");
    Ok(())
}

fn a_foreign_source() -> anyhow::Result<()> {
    let stage = Stage::build()?;
    let machine = stage.start()?;
    let foreign = Ipv4Addr::new(10, 0, 1, 77);
    machine.netns.run(&["ip", "addr", "add", "10.0.1.77/32", "dev", "ens5"])?;
    let before = stage.vpc.drops(&stage.guest.primary)?;
    let sibling = stage.vpc.eni(&stage.sibling.primary)?.ipv4;
    let to = IpAddr::V4(*sibling.first().context("the sibling has an address")?);
    ensure!(!ping_once(&machine.netns, to, &foreign.into())?, "a foreign source got through");
    ensure!(stage.vpc.drops(&stage.guest.primary)? == before + 1, "the drop was not counted");
    stage.vpc.assign(&stage.guest.primary, foreign, None)?;
    ensure!(ping_once(&machine.netns, to, &foreign.into())?, "an assigned one does not");
    Ok(())
}
