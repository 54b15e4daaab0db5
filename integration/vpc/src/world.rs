//! The process's own world: user, mount and network namespaces in which it is root.

use std::path::Path;

use anyhow::{Context as _, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Moves the process into namespaces of its own, as the first thing in `main`.
///
/// Without root a user namespace comes first, in which the caller is root. Afterwards `/run` is
/// an empty tmpfs, the network has nothing but `lo`, and threads may enter the namespaces that
/// [`crate::Netns`] makes. The host's network, mounts and files stay as they are.
///
/// # Errors
/// When the process already has threads, or the system refuses the namespaces; the error then
/// says which command to run under sudo.
pub fn enter() -> anyhow::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("cannot list the threads")?.count();
    if threads != 1 {
        bail!("vpc::enter() comes first in main: the process has {threads} threads already");
    }
    let root = geteuid().is_root();
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    // Root without the capability (a container's) still may make a user namespace.
    if !(root && unshare(own).is_ok()) {
        become_root().and_then(|()| Ok(unshare(own)?)).with_context(refused)?;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")
        .with_context(refused)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .context("cannot mount a tmpfs on /run")
        .with_context(refused)?;
    std::fs::create_dir(Path::new(crate::netns::DIRECTORY))
        .context("cannot make the directory of network namespaces")?;
    crate::netns::command(&["ip", "link", "set", "lo", "up"])?.success()?;
    Ok(())
}

/// A user namespace that maps root to the user who runs this.
fn become_root() -> anyhow::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context("cannot make a user namespace")?;
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, line).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn refused() -> String {
    let command: Vec<String> = std::env::args().collect();
    let program = std::env::current_exe()
        .map_or_else(|_| command[0].clone(), |path| path.display().to_string());
    format!(
        "this system does not let an ordinary user make namespaces; run it as root:\n    \
         sudo {program} {}\n",
        command.get(1..).unwrap_or_default().join(" "),
    )
}
