//! Every kind of instance: what enid makes of it is judged by an oracle that knows nothing of enid
//! and simulates Linux's route lookups, at the end and after every single step on the way.

#![expect(clippy::unwrap_used, reason = "a case that cannot be built fails the test")]

#[path = "support/translate.rs"]
mod translate;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use enid_core::choice::Prefixes;
use enid_core::config::Config;
use enid_core::decide::{Decision, decide};
use enid_core::eni::Facts;
use enid_core::ledger::Ledger;
use enid_core::memory::Memory;
use enid_core::metadata::facts::Metadata;
use enid_core::metadata::{Ask, Depth};
use enid_core::object::{self, LinkIndex, Mac};
use enid_core::observed::Observed;
use enid_core::plan::{Planned, Step};
use enid_core::report::Verdict;
use enid_core::time::Instant;
use oracle::{
    Combination, Delegation, Eni, Family, Kept, Main, Promise, Restart, Scene, State, all_hold,
};
use simulation::cloud::Cloud;
use simulation::kernel::Kernel;

/// An instance, its cloud, and enid on it.
struct World {
    scene: Scene,
    kernel: Kernel,
    config: Config,
    metadata: Metadata,
    memory: Memory,
    ledger: Ledger,
    now: Instant,
}

/// What went wrong, in words.
type Check = Result<(), String>;

impl World {
    fn boot(scene: Scene) -> Self {
        let mut kernel = Kernel::default();
        kernel.state.address_protocols = true;
        translate::add(&mut kernel.state, &scene.base(), None);
        let config = Config {
            prefixes: match scene.combination.delegation {
                Delegation::None | Delegation::Rules => Prefixes::Rules,
                Delegation::Local => Prefixes::Local,
                Delegation::Ignore => Prefixes::Ignore,
            },
            ..Config::default()
        };
        let mut world = Self {
            kernel,
            config,
            metadata: Metadata::default(),
            memory: Memory::default(),
            ledger: Ledger::default(),
            now: Instant(Duration::from_secs(100)),
            scene,
        };
        for eni in world.scene.enis.clone() {
            world.plug(&eni);
        }
        let routes = State { routes: world.scene.by_others(), ..State::default() };
        translate::add(&mut world.kernel.state, &routes, None);
        world
    }

    fn plug(&mut self, eni: &Eni) {
        let plugged = self.scene.plugged(eni);
        translate::add(&mut self.kernel.state, &plugged, Some(Mac(eni.mac)));
        self.listen(eni);
    }

    /// The kernel knows the IPv6 router of an ENI's link once it has spoken.
    fn listen(&mut self, eni: &Eni) {
        let index = self.index(&eni.link);
        let routers = &mut self.kernel.state.routers;
        routers.remove(&index);
        if eni.heard && self.scene.families().any(|family| family == Family::V6) {
            routers.insert(index, [Scene::ROUTER].into());
        }
    }

    fn unplug(&mut self, eni: &Eni) {
        let index = self.index(&eni.link);
        let state = &mut self.kernel.state;
        state.links.retain(|link| link.index != index);
        state.addresses.retain(|seen| seen.address.link != index);
        state.routes.retain(|seen| seen.route.link != Some(index));
    }

    fn index(&self, name: &str) -> LinkIndex {
        let found = self.kernel.state.links.iter().find(|link| link.name == name);
        found.map(|link| link.index).unwrap()
    }

    /// The instance becomes another one: ENIs are attached, detached and renamed, addresses moved.
    fn become_like(&mut self, scene: Scene) {
        let number = |eni: &Eni| eni.number;
        let had: BTreeSet<usize> = self.scene.enis.iter().map(number).collect();
        let has: BTreeSet<usize> = scene.enis.iter().map(number).collect();
        for eni in self.scene.enis.clone().iter().filter(|eni| !has.contains(&eni.number)) {
            self.unplug(eni);
        }
        self.scene = scene;
        for eni in &self.scene.enis {
            let mut links = self.kernel.state.links.iter_mut();
            if let Some(link) = links.find(|link| link.mac == Some(Mac(eni.mac))) {
                link.name.clone_from(&eni.link);
            }
        }
        for eni in self.scene.enis.clone().iter().filter(|eni| !had.contains(&eni.number)) {
            self.plug(eni);
        }
    }

    /// enid ends and starts again: it keeps its ledger, and has read nothing yet.
    fn restart(&mut self) {
        self.metadata = Metadata::default();
        self.memory = Memory::default();
        self.now = self.now + Duration::from_secs(3);
    }

    fn poll(&mut self) {
        let cloud = cloud_of(&self.scene);
        let enis = self.scene.enis.iter().map(|eni| (Mac(eni.mac), Depth::Full)).collect();
        let poll = cloud.poll(self.now, &Ask { top: true, enis });
        self.metadata.record(&poll);
    }

    fn decide(&mut self) -> Result<Decision, String> {
        let udev = BTreeSet::new();
        let facts = Facts {
            now: self.now,
            config: &self.config,
            metadata: &self.metadata,
            observed: Observed { snapshot: &self.kernel.state, ledger: &self.ledger },
            udev: &udev,
        };
        let decision = decide(&facts, &mut self.memory);
        decision.gone.iter().for_each(|mac| self.metadata.forget(*mac));
        self.ledger = decision.ledger.clone();
        match &decision.refused {
            Some(refused) => Err(format!("the guard refuses: {refused:?}")),
            None => Ok(decision),
        }
    }

    fn state(&self) -> State {
        translate::state(&self.kernel.state)
    }

    /// Takes steps. What held before the first one, as it was promised then or is promised now, holds
    /// after each of them.
    fn take(&mut self, steps: &[Planned], before: &[Promise]) -> Check {
        let state = self.state();
        let promises = self.scene.promises();
        let theirs = foreign(&state);
        let mut kept = Kept::of(before, &promises, &self.scene, state);
        for planned in steps {
            let done = self.kernel.apply(&planned.step);
            done.map_err(|error| format!("{} fails: {error:?}", self.words(&planned.step)))?;
            let state = self.state();
            if foreign(&state) != theirs {
                return Err(format!("{} changes what is not enid's", self.words(&planned.step)));
            }
            kept.hold(state)
                .map_err(|error| format!("after {}\n{error}", self.words(&planned.step)))?;
        }
        Ok(())
    }

    fn words(&self, step: &Step) -> String {
        step.command(&|index| {
            self.kernel.link(index).map_or_else(|_| format!("{index:?}"), |link| link.name.clone())
        })
    }

    /// Passes until there is nothing left to do; then everything that is promised holds.
    fn converge(&mut self, before: &[Promise]) -> Check {
        // After a restart, metadata has not been read when the first pass runs.
        let early = self.decide()?;
        self.take(early.plan.steps(), before)?;
        self.poll();
        for _ in 0..3 {
            let decision = self.decide()?;
            if decision.plan.is_empty() {
                let report = &decision.report;
                if report.verdict != Verdict::Converged {
                    return Err(format!("nothing to do and not converged: {report:?}"));
                }
                return all_hold(&self.scene.promises(), &self.state());
            }
            self.take(decision.plan.steps(), before)?;
        }
        Err("there is always something left to do".to_owned())
    }

    /// With each ENI's link down in turn, nothing leaks.
    fn fail_closed(&mut self) -> Check {
        for eni in self.scene.enis.clone() {
            // The primary's packets find main behind an empty table, for enid may be stopped when its
            // table is emptied; there, another ENI's default route may be left.
            if eni.number == 0 && self.scene.combination.main == Main::Dhcp {
                continue;
            }
            let up = self.kernel.clone();
            self.lower(&eni);
            all_hold(&self.scene.promises_without(&eni), &self.state())
                .map_err(|error| format!("with {} down: {error}", eni.link))?;
            self.kernel = up;
        }
        Ok(())
    }

    fn lower(&mut self, eni: &Eni) {
        let index = self.index(&eni.link);
        self.kernel.link_mut(index).up = false;
        self.kernel.wipe(index, &[object::Family::V4, object::Family::V6]);
    }

    /// Another ENI than the primary one is raised again, and then hears its router.
    fn come_back(&mut self) -> Check {
        let Some(number) = self.scene.enis.len().checked_sub(1).filter(|last| *last > 0) else {
            return Ok(());
        };
        self.lower(&self.scene.enis[number].clone());
        for (heard, event) in [(false, "is raised again"), (true, "has heard its router")] {
            let promises = self.scene.promises();
            self.scene.enis[number].heard = heard;
            let eni = self.scene.enis[number].clone();
            self.listen(&eni);
            self.converge(&promises)
                .map_err(|error| format!("when {} {event}: {error}", eni.link))?;
        }
        Ok(())
    }
}

/// Everything that is not enid's, and of ENIs' links that they exist.
fn foreign(state: &State) -> State {
    let mut state = state.clone();
    state.addresses.retain(|seen| !seen.ours);
    state.routes.retain(|seen| !seen.ours);
    state.rules.retain(|seen| !seen.ours);
    for link in state.links.iter_mut().filter(|link| link.name.starts_with("ens")) {
        (link.up, link.group) = (true, 0);
    }
    state
}

fn cloud_of(scene: &Scene) -> Cloud {
    let mut cloud = Cloud::default();
    let list = |words: Vec<String>| words.join("\n");
    for eni in &scene.enis {
        let mac = Mac(eni.mac);
        let mut set = |key: &str, value: String| {
            cloud.set(mac, key, if value.is_empty() { "-" } else { &value });
        };
        set("interface-id", eni.id.clone());
        set("device-number", eni.device.to_string());
        set("network-card", eni.card.map(|card| card.to_string()).unwrap_or_default());
        for (family, subnet, vpc, addresses, prefixes) in [
            (
                Family::V4,
                "subnet-ipv4-cidr-block",
                "vpc-ipv4-cidr-blocks",
                "local-ipv4s",
                "ipv4-prefix",
            ),
            (Family::V6, "subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks", "ipv6s", "ipv6-prefix"),
        ] {
            let net = eni.subnet(family);
            set(subnet, net.map(|net| net.to_string()).unwrap_or_default());
            let of = |net: &&ipnet::IpNet| Family::of(net.addr()) == family;
            set(vpc, list(scene.vpc.iter().filter(of).map(ToString::to_string).collect()));
            set(addresses, list(eni.of(family).map(|address| address.to_string()).collect()));
            set(prefixes, list(eni.prefixes.iter().filter(of).map(ToString::to_string).collect()));
        }
    }
    cloud
}

/// One combination, from boot to the end.
fn play(combination: Combination) -> Check {
    let present = Scene::present(combination);
    let before = Scene::former(combination);
    let mut promised = before.promises();
    let mut world = World::boot(before);
    match combination.restart {
        Restart::Fresh => {}
        Restart::Former | Restart::OtherSiblings | Restart::Renamed => {
            world.converge(&promised).map_err(|error| format!("in the former run: {error}"))?;
            world.become_like(present);
            if combination.restart == Restart::Renamed {
                promised = world.scene.promises();
            }
            world.restart();
        }
        Restart::HalfDone => {
            world.poll();
            let plan = world.decide()?.plan;
            let half = &plan.steps()[..plan.steps().len() / 2];
            world.take(half, &promised).map_err(|error| format!("in the first half: {error}"))?;
            world.restart();
        }
    }
    world.converge(&promised)?;
    world.fail_closed()?;
    world.come_back()
}

fn play_all(restart: Restart) {
    let chosen: Vec<Combination> = Combination::all()
        .into_iter()
        .filter(|combination| combination.restart == restart)
        .collect();
    let mut failures = String::new();
    let mut names = Vec::new();
    for combination in &chosen {
        if let Err(error) = play(*combination) {
            // The first ones in full are enough to read.
            if names.len() < 3 {
                let _ = writeln!(failures, "{combination}: {error}");
            }
            names.push(combination.to_string());
        }
    }
    let (failed, of) = (names.len(), chosen.len());
    assert!(names.is_empty(), "{failed} of {of} fail:\n{}\n\n{failures}", names.join("\n"));
}

#[test]
fn more_than_200_combinations_are_played() {
    let all = Combination::all();
    assert!(all.len() > 200, "only {}", all.len());
}

#[test]
fn on_a_fresh_machine_every_packet_leaves_by_the_eni_of_its_source() {
    play_all(Restart::Fresh);
}

#[test]
fn after_a_restart_every_packet_leaves_by_the_eni_of_its_source() {
    play_all(Restart::Former);
}

#[test]
fn while_siblings_come_go_and_exchange_addresses_every_packet_leaves_by_the_eni_of_its_source() {
    play_all(Restart::OtherSiblings);
}

#[test]
fn after_links_were_renamed_every_packet_leaves_by_the_eni_of_its_source() {
    play_all(Restart::Renamed);
}

#[test]
fn after_a_crash_halfway_every_packet_leaves_by_the_eni_of_its_source() {
    play_all(Restart::HalfDone);
}
