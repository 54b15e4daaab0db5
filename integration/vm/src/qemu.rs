//! The emulator: a process in the fabric's namespace, steered over QMP.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use vpc::{Netns, Process, Tap};

use crate::image::Image;
use crate::lines::Lines;

/// How long the emulator or the guest's kernel may take for one request.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel is told: no work that only costs time under emulation.
const KERNEL: &str = "root=/dev/vda rw init=/usr/lib/guest/init console=ttyS0 quiet loglevel=4 \
     systemd.show_status=0 mitigations=off apparmor=0 selinux=0 audit=0 no_timer_check \
     modprobe.blacklist=kvm_amd,kvm_intel,ata_piix,psmouse,floppy";

/// By which programs in the machine tell that it is an EC2 instance.
const UUID: &str = "ec2e1916-9099-7caf-fd21-012345abcdef";

/// A machine's emulator; dropping it is pulling the plug.
#[derive(Debug)]
pub(crate) struct Qemu {
    _process: Process,
    qmp: Lines,
    directory: PathBuf,
}

impl Qemu {
    /// Starts a machine whose adapters are these taps, each in its slot. What it writes to its disk
    /// is gone afterwards.
    pub(crate) fn start(
        fabric: &Netns,
        image: &Image,
        files: &Path,
        directory: &Path,
        taps: &[(u8, Tap)],
    ) -> anyhow::Result<Qemu> {
        let mut command = image.emulator.command();
        let disk =
            |path: &Path| format!("file={},format=raw,if=virtio,snapshot=on", path.display());
        command
            .args([
                "-nodefaults",
                "-machine",
                "pc",
                "-cpu",
                "qemu64",
                "-accel",
                "tcg,thread=single",
            ])
            .args(["-smp", "1", "-m", "640", "-display", "none"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .args(["-append", KERNEL])
            .args(["-uuid", UUID, "-smbios", &format!("type=1,serial={UUID}")])
            .args(["-drive", &disk(&image.disk), "-drive", &disk(files)])
            .args(["-device", "virtio-rng-pci,addr=0x1d", "-device", "virtio-serial-pci,addr=0x1e"])
            .args(["-chardev", &socket("agent", directory)])
            .args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"])
            .args(["-chardev", &socket("qmp", directory), "-mon", "chardev=qmp,mode=control"])
            .args(["-serial", &format!("file:{}", directory.join("console").display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("qemu"))?);
        for (slot, tap) in taps {
            let Adapter { netdev, device } = adapter(*slot, tap);
            command.args(["-netdev", &netdev.to_string(), "-device", &device.to_string()]);
        }
        let process = fabric.spawn(command)?;
        let begin = || -> anyhow::Result<Qemu> {
            let mut qmp = Lines::connect(&directory.join("qmp.socket"))?;
            let greeting = qmp.receive(Instant::now() + PATIENCE)?.context("no greeting")?;
            ensure!(greeting.get("QMP").is_some(), "the greeting is {greeting}");
            let mut qemu = Qemu { _process: process, qmp, directory: directory.to_owned() };
            qemu.execute("qmp_capabilities", &json!({}))?;
            Ok(qemu)
        };
        begin().with_context(|| {
            let said = std::fs::read_to_string(directory.join("qemu")).unwrap_or_default();
            format!("QEMU does not start: {}", said.trim())
        })
    }

    /// The guest agent's socket.
    pub(crate) fn agent(&self) -> PathBuf {
        self.directory.join("agent.socket")
    }

    /// What the machine wrote to its console.
    pub(crate) fn console(&self) -> String {
        let bytes = std::fs::read(self.directory.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Plugs an adapter in; the moment at which the machine had it.
    pub(crate) fn plug(&mut self, slot: u8, tap: &Tap) -> anyhow::Result<Instant> {
        let Adapter { netdev, device } = adapter(slot, tap);
        self.execute("netdev_add", &netdev)?;
        self.execute("device_add", &device)?;
        Ok(Instant::now())
    }

    /// Asks the machine to let go of an adapter, and waits until it has.
    pub(crate) fn unplug(&mut self, slot: u8) -> anyhow::Result<()> {
        let device = format!("nic{slot}");
        self.execute("device_del", &json!({ "id": device }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(said) = self.qmp.receive(deadline)? else {
                bail!("the machine does not let go of {device}")
            };
            if said["event"] == "DEVICE_DELETED" && said["data"]["device"] == *device {
                break;
            }
        }
        self.execute("netdev_del", &json!({ "id": format!("net{slot}") }))?;
        Ok(())
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.qmp.send(&json!({ "execute": command, "arguments": arguments }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(mut said) = self.qmp.receive(deadline)? else {
                bail!("QEMU does not answer {command}")
            };
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses {command} {arguments}: {error}");
            }
            // Events come in between.
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}

/// An adapter's two halves, as QEMU takes them on its command line and over QMP alike.
struct Adapter {
    netdev: Value,
    device: Value,
}

fn adapter(slot: u8, tap: &Tap) -> Adapter {
    let (net, nic) = (format!("net{slot}"), format!("nic{slot}"));
    let netdev = json!({
        "type": "tap", "id": net, "ifname": tap.name, "script": "no", "downscript": "no",
    });
    let device = json!({
        "driver": "virtio-net-pci", "id": nic, "netdev": net, "mac": tap.mac.to_string(),
        "addr": format!("{slot:#x}"), "romfile": "",
    });
    Adapter { netdev, device }
}

fn socket(name: &str, directory: &Path) -> String {
    let path = directory.join(name).with_extension("socket");
    format!("socket,id={name},path={},server=on,wait=off", path.display())
}

/// The emulator of Debian's that was unpacked for the tests: the same one everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    /// The folder that its packages were unpacked to.
    pub(crate) root: PathBuf,
}

impl Emulator {
    /// Run by its own loader with its own libraries, whatever system this is.
    fn command(&self) -> Command {
        let usr = self.root.join("usr");
        let mut command = Command::new(usr.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(usr.join("lib/x86_64-linux-gnu"));
        command.arg(usr.join("bin/qemu-system-x86_64"));
        for firmware in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(usr.join(firmware));
        }
        command
    }
}
