//! The files that make a machine of an image: they are laid over it before its first boot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

/// Files and links to lay over an image, as root's.
#[derive(Debug)]
pub struct Files {
    root: TempDir,
}

impl Files {
    /// None yet.
    ///
    /// # Errors
    /// When there is no room for temporary files.
    pub fn new() -> anyhow::Result<Files> {
        let root = tempfile::Builder::new().prefix("files-").tempdir()?;
        // The machine's root directory gets its mode.
        std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Files { root })
    }

    /// A file with this text, by its absolute path in the machine.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text(self, path: &str, text: &str) -> anyhow::Result<Files> {
        let at = self.place(path)?;
        std::fs::write(&at, text).with_context(|| format!("writing {}", at.display()))?;
        Ok(self)
    }

    /// A copy of a file of this system.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(self, from: &Path, path: &str) -> anyhow::Result<Files> {
        let at = self.place(path)?;
        std::fs::copy(from, &at).with_context(|| format!("copying {}", from.display()))?;
        Ok(self)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn link(self, to: &str, path: &str) -> anyhow::Result<Files> {
        let at = self.place(path)?;
        std::os::unix::fs::symlink(to, &at).with_context(|| format!("making {}", at.display()))?;
        Ok(self)
    }

    /// A service that starts at boot, with `multi-user.target`.
    ///
    /// # Errors
    /// When its link cannot be made.
    pub fn enable(self, unit: &str) -> anyhow::Result<Files> {
        let to = format!("/usr/lib/systemd/system/{unit}");
        self.link(&to, &format!("/etc/systemd/system/multi-user.target.wants/{unit}"))
    }

    /// A unit that nobody starts.
    ///
    /// # Errors
    /// When its link cannot be made.
    pub fn mask(self, unit: &str) -> anyhow::Result<Files> {
        self.link("/dev/null", &format!("/etc/systemd/system/{unit}"))
    }

    /// All of them as an archive, to be read from a disk.
    pub(crate) fn archive(&self, to: &Path) -> anyhow::Result<()> {
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(self.root.path())
            .args(["--owner=0", "--group=0", "-cf"])
            .arg(to)
            .arg(".");
        let output = tar.output().context("starting tar")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tar ended with {}: {said}", output.status);
        Ok(())
    }

    fn place(&self, path: &str) -> anyhow::Result<PathBuf> {
        let below = path.strip_prefix('/').context("a path in the machine begins with /")?;
        let at = self.root.path().join(below);
        let folder = at.parent().context("a path in the machine names a file")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(at)
    }
}
