//! A network namespace per test, and `ip` in it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enid_core::object::{
    Address, Family, LinkIndex, Marking, Object, Route, RouteKind, Rule, TableId,
};
use enid_core::observed::Snapshot;
use enid_core::plan::Step;
use enid_kernel::{Change, Error, Kernel, Outcome};
use libtest_mimic::{Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};
use tokio::runtime::{Builder, Runtime};

/// Makes a list of tests out of their functions, named as they are.
macro_rules! tests {
    ($($test:ident,)+) => {
        pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
            vec![$($crate::world::trial(stringify!($test), $test),)+]
        }
    };
}
pub(crate) use tests;

/// Leaves the machine's namespaces. Whoever cannot fails all tests instead of passing none.
pub(crate) fn enter() {
    let (uid, gid) = (Uid::current(), Gid::current());
    if !uid.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).unwrap();
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
}

/// A test that runs in a thread, and with it in a namespace, of its own.
pub(crate) fn trial(name: &str, test: fn(&mut World)) -> Trial {
    Trial::test(name, move || {
        let run = move || test(&mut World::new());
        std::thread::spawn(run).join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed::from(text.unwrap_or_else(|| "it panicked".to_owned()))
        })
    })
}

/// The namespace, a kernel opened in it, and the links `ens5` and `ens6`, which are up.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) kernel: Kernel,
    pub(crate) ens5: LinkIndex,
    pub(crate) ens6: LinkIndex,
}

impl World {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        for (link, peer) in [("ens5", "peer5"), ("ens6", "peer6")] {
            ip(&format!("link add {link} type veth peer name {peer}"));
            ip(&format!("link set {link} addrgenmode none up"));
            ip(&format!("link set {peer} addrgenmode none up"));
        }
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let kernel = runtime.block_on(async { Kernel::open() }).unwrap();
        let (ens5, ens6) = (index("ens5"), index("ens6"));
        let mut world = Self { runtime, kernel, ens5, ens6 };
        // The kernel goes on by itself for a moment: carriers and multicast routes appear.
        world.quiet();
        world
    }

    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.runtime.block_on(self.kernel.snapshot(false)).unwrap()
    }

    /// A look for one who wants connections marked.
    pub(crate) fn snapshot_with_markings(&mut self) -> Snapshot {
        self.runtime.block_on(self.kernel.snapshot(true)).unwrap()
    }

    pub(crate) fn apply(&mut self, steps: &[Step]) -> Vec<Result<Outcome, Error>> {
        let outcomes = self.runtime.block_on(self.kernel.apply(steps));
        assert_eq!(outcomes.len(), steps.len());
        outcomes
    }

    /// Takes one step.
    pub(crate) fn take(&mut self, step: Step) -> Result<Outcome, Error> {
        self.apply(&[step]).remove(0)
    }

    /// The next change, if there is one within the time.
    pub(crate) fn changed(&mut self, within: Duration) -> Option<Change> {
        let changed = async { tokio::time::timeout(within, self.kernel.changed()).await.ok() };
        self.runtime.block_on(changed)
    }

    /// Hears all changes until there are none; how many.
    pub(crate) fn quiet(&mut self) -> usize {
        let mut count = 0;
        while self.changed(Duration::from_millis(50)).is_some() {
            count += 1;
        }
        count
    }
}

/// A namespace at the other end of a link.
pub(crate) struct Far(File);

impl Far {
    /// Where `peer5` is, once it was moved.
    pub(crate) fn of_ens5(world: &mut World) -> Self {
        let unshared = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let far = Self(unshared.join().unwrap());
        let (process, file) = (std::process::id(), far.0.as_raw_fd());
        ip(&format!("link set peer5 netns /proc/{process}/fd/{file}"));
        far.run(|| {
            ip("link set lo up");
            ip("link set peer5 addrgenmode none up");
            ip("address add fe80::1/64 dev peer5 nodad");
        });
        ip("address add fe80::5/64 dev ens5 nodad");
        // Without a carrier, which comes by itself, packets would be lost.
        world.quiet();
        far
    }

    /// Gives `peer5` an address, and waits for the kernel's route that comes a moment later.
    pub(crate) fn has(&self, address: &str, length: &str) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.run(|| {
            ip(&format!("address add {address}{length} dev peer5 {nodad}"));
            while !ip(&format!("route get {address}")).contains("dev lo") {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    /// Does something there.
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let there = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        };
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }
}

/// Whether somebody answers a ping.
pub(crate) fn answers(address: &str) -> bool {
    let ping = Command::new("ping").args(["-q", "-c1", "-W1", address]).output().unwrap();
    ping.status.success()
}

/// The hardware address of a link, as `ip` says.
pub(crate) fn mac(link: &str) -> String {
    let line = ip(&format!("-o link show dev {link}"));
    line.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned()
}

/// Runs `ip` with these arguments in the thread's namespace; what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs many commands in one `ip`.
pub(crate) fn ip_batch(commands: impl IntoIterator<Item = String>) {
    let text: String = commands.into_iter().map(|command| command + "\n").collect();
    feed(&["ip", "-batch", "-"], &text);
}

/// Loads a script into `nft`; what it prints.
pub(crate) fn nft(script: &str) -> String {
    feed(&["nft", "-f", "-"], script)
}

fn feed(command: &[&str], text: &str) -> String {
    let mut child = Command::new(command[0]);
    child.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Does something all the time in another process while the test looks.
pub(crate) fn meanwhile(commands: impl Fn() -> Vec<String> + Send + Sync, look: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            while !done.load(Ordering::Relaxed) {
                ip_batch(commands());
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = looked {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The number of a link, as `ip` says.
pub(crate) fn index(link: &str) -> LinkIndex {
    let line = ip(&format!("-o link show dev {link}"));
    LinkIndex(line.split(':').next().unwrap().parse().unwrap())
}

/// An address as enid makes it: no prefix route, preferred.
pub(crate) fn address(link: LinkIndex, text: &str) -> Address {
    let net: ipnet::IpNet = text.parse().unwrap();
    Address {
        link,
        address: net.addr(),
        prefix_length: net.prefix_len(),
        prefix_route: false,
        preferred: true,
    }
}

/// A unicast route in a table of its own.
pub(crate) fn route(link: LinkIndex, destination: &str, gateway: Option<&str>) -> Route {
    Route {
        table: TableId(20001),
        destination: destination.parse().unwrap(),
        kind: RouteKind::Unicast,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        link: Some(link),
        on_link: false,
        source: None,
        metric: 512,
    }
}

/// A rule `from SOURCE lookup 20001`.
pub(crate) fn rule(priority: u32, source: &str) -> Rule {
    let source: ipnet::IpNet = source.parse().unwrap();
    let rule = Rule::lookup(Family::of(source.addr()), priority, TableId(20001));
    Rule { source: Some(source), ..rule }
}

pub(crate) fn create(object: impl IntoObject) -> Step {
    Step::Create(object.into_object())
}

pub(crate) fn delete(object: impl IntoObject) -> Step {
    Step::Delete(object.into_object())
}

/// What can be made into an object, so that tests read well.
pub(crate) trait IntoObject {
    fn into_object(self) -> Object;
}

impl IntoObject for Address {
    fn into_object(self) -> Object {
        Object::Address(self)
    }
}

impl IntoObject for Route {
    fn into_object(self) -> Object {
        Object::Route(self)
    }
}

impl IntoObject for Rule {
    fn into_object(self) -> Object {
        Object::Rule(self)
    }
}

impl IntoObject for Marking {
    fn into_object(self) -> Object {
        Object::Marking(self)
    }
}
