//! Debian as a disk image, made from the archive's packages and kept under `target/vm`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::qemu::Emulator;

/// A release of Debian, with the kernel and the systemd that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Release {
    /// Debian 11: Linux 5.10, which does not keep who made an address; systemd 247.
    Bullseye,
    /// Debian 12: Linux 6.1, systemd 252.
    Bookworm,
    /// Debian 13: Linux 6.12, systemd 257.
    Trixie,
}

impl Release {
    /// Its name in the archive.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Release::Bullseye => "bullseye",
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

/// Where an old release comes from: what was updated after its end is no longer kept complete.
const ARCHIVE: &str = "deb http://deb.debian.org/debian bullseye main";

/// What every machine has.
const BASE: &[&str] = &[
    "curl",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "netcat-openbsd",
    "nftables",
    "procps",
    "qemu-guest-agent",
    "systemd-sysv",
    // Instead of the usual initial RAM disk: seconds, under emulation.
    "tiny-initramfs",
    "udev",
];

/// The emulator is this release's, whatever system this is: older ones crash newer kernels.
const EMULATOR: Release = Release::Trixie;

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipe {
    release: Release,
    packages: Vec<&'static str>,
}

/// A disk that machines boot from, never changed by them.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) disk: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) emulator: Emulator,
}

impl Recipe {
    /// A release with nothing but what every machine has.
    #[must_use]
    pub fn new(release: Release) -> Recipe {
        Recipe { release, packages: Vec::new() }
    }

    /// With these packages of the same release besides; what they recommend is left out.
    #[must_use]
    pub fn with(mut self, packages: &[&'static str]) -> Recipe {
        self.packages.extend(packages);
        self
    }

    /// Makes the image, or finds the one that was made before.
    ///
    /// # Errors
    /// When the archive cannot be reached or a package is not there; what mmdebstrap said.
    pub fn image(&self) -> anyhow::Result<Image> {
        let store = store()?;
        let emulator = emulator(&store)?;
        let name = format!("{}-{:016x}", self.release.name(), self.fingerprint());
        let file = |extension: &str| store.join(&name).with_extension(extension);
        let image =
            Image { disk: file("disk"), kernel: file("kernel"), initrd: file("initrd"), emulator };
        if image.disk.exists() {
            return Ok(image);
        }
        tell(&format!("making an image of {} {:?}", self.release.name(), self.packages));
        let (script, unfinished) = (file("sh"), file("unfinished"));
        std::fs::write(&script, FINISH).context("writing the script that finishes the image")?;
        let packages = [BASE, &self.packages].concat().join(",");
        let hook = format!(
            "sh {} \"$1\" {} {} {}",
            script.display(),
            image.kernel.display(),
            image.initrd.display(),
            unfinished.display()
        );
        let (include, hook) = (format!("--include={packages}"), format!("--customize-hook={hook}"));
        let mut arguments = vec![
            "--variant=minbase",
            "--aptopt=Apt::Install-Recommends \"false\"",
            &include,
            &hook,
            self.release.name(),
            "/dev/null",
        ];
        if self.release == Release::Bullseye {
            arguments.push(ARCHIVE);
        }
        mmdebstrap(&arguments)?;
        std::fs::rename(&unfinished, &image.disk).context("naming the finished image")?;
        std::fs::remove_file(&script).context("removing the script")?;
        Ok(image)
    }

    /// Changes with everything that the image is made of.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self, BASE, FINISH).hash(&mut hasher);
        hasher.finish()
    }
}

/// Unpacks QEMU.
fn emulator(store: &Path) -> anyhow::Result<Emulator> {
    ensure!(cfg!(target_arch = "x86_64"), "the machines are amd64 ones, and so is their emulator");
    let root = store.join(format!("qemu-{}", EMULATOR.name()));
    if !root.exists() {
        tell("unpacking QEMU");
        let unfinished = root.with_extension("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).context("removing what is left of QEMU")?;
        }
        mmdebstrap(&[
            "--variant=extract",
            "--include=qemu-system-x86,seabios",
            "--format=directory",
            EMULATOR.name(),
            &unfinished.to_string_lossy(),
        ])?;
        std::fs::rename(&unfinished, &root).context("naming the finished folder")?;
    }
    Ok(Emulator { root })
}

fn mmdebstrap(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("mmdebstrap");
    let output = command
        .arg("--quiet")
        .args(arguments)
        .output()
        .context("cannot start mmdebstrap; install the Debian package mmdebstrap")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    Ok(())
}

/// Where images are kept.
fn store() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let store = here.ancestors().nth(2).unwrap_or(here).join("target/vm");
    std::fs::create_dir_all(&store).with_context(|| format!("making {}", store.display()))?;
    Ok(store)
}

#[expect(clippy::print_stderr, reason = "minutes pass, and who runs the test wants to know why")]
fn tell(line: &str) {
    eprintln!("{line}");
}

/// The last step inside the new root: `$1` is the root, the others are the files to write.
///
/// What only costs time under emulation is masked; a machine logs in nobody.
const FINISH: &str = r#"
set -e
root=$1 kernel=$2 initrd=$3 disk=$4
version=$(ls "$root/lib/modules")
chroot "$root" mktirfs -o /boot/initrd -m no --include-modules=virtio_pci,virtio_blk,ext4 "$version"
cp "$root/boot/vmlinuz-$version" "$kernel"
mv "$root/boot/initrd" "$initrd"

mkdir -p "$root/usr/lib/guest" "$root/etc/systemd/system"
cat > "$root/usr/lib/guest/init" <<'END'
#!/bin/sh
# What makes this machine of the image is an archive on the second disk.
if ! test -e /usr/lib/guest/done; then
    tar -C / -xf /dev/vdb && touch /usr/lib/guest/done
fi
exec /lib/systemd/systemd "$@"
END
chmod +x "$root/usr/lib/guest/init"
# The agent's own messages would drown the journal.
mkdir -p "$root/etc/systemd/system/qemu-guest-agent.service.d"
printf '[Service]\nLogLevelMax=warning\n' \
    > "$root/etc/systemd/system/qemu-guest-agent.service.d/quiet.conf"
for unit in \
    modprobe@.service kmod-static-nodes.service sys-kernel-debug.mount sys-kernel-config.mount \
    sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-mqueue.mount dev-hugepages.mount \
    systemd-remount-fs.service systemd-pcrphase.service systemd-tpm2-setup-early.service \
    systemd-update-utmp.service systemd-backlight@.service systemd-rfkill.service \
    systemd-random-seed.service systemd-resolved.service systemd-timesyncd.service \
    getty@tty1.service serial-getty@ttyS0.service getty-static.service \
    systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service \
    e2scrub_reap.service e2scrub_all.timer fstrim.timer dpkg-db-backup.timer logrotate.timer \
    apt-daily.timer apt-daily-upgrade.timer systemd-tmpfiles-clean.timer
do
    ln -sfn /dev/null "$root/etc/systemd/system/$unit"
done
# Left by mmdebstrap, which lets no service start while it works.
rm -f "$root/usr/sbin/policy-rc.d"
if test -e "$root/sbin/start-stop-daemon.REAL"; then
    mv "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"
fi
touch "$root/etc/.updated" "$root/var/.updated"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
: > "$root/etc/machine-id"

# Without what the host has mounted there.
unshare --mount sh -ec '
    for below in proc sys dev run; do
        umount --recursive --quiet "$1/$below" || true
    done
    rm -f "$2"
    mke2fs -q -t ext4 -d "$1" "$2" 3G
' sh "$root" "$disk"
"#;
