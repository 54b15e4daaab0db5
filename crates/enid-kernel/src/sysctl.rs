//! Writes a link's settings, which only files offer.

use std::fs;
use std::io;
use std::path::PathBuf;

use enid_core::object::{Family, LinkIndex, Sysctl};
use nix::errno::Errno;
use nix::net::if_::if_indextoname;

use crate::apply::Outcome;
use crate::error::Error;

/// Writes the value, unless it is there.
pub(crate) fn set(link: LinkIndex, sysctl: Sysctl, value: i32) -> Result<Outcome, Error> {
    // The files go by name, and a name may change at any time: it is looked up right before, and
    // again after, because a name that passed to another link would have taken the value along.
    let path = path(link, sysctl)?;
    let outcome =
        write(&path, value).map_err(|source| Error::Sysctl { path: path.clone(), source });
    let renamed = self::path(link, sysctl).is_ok_and(|now| now != path);
    if renamed && outcome.is_ok() {
        let source = io::Error::other("the link was renamed meanwhile");
        return Err(Error::Sysctl { path, source });
    }
    outcome
}

/// The setting's file; `/proc/sys/net` is the one of the calling thread's network namespace.
fn path(link: LinkIndex, sysctl: Sysctl) -> Result<PathBuf, Error> {
    let refused = |errno: Errno| Error::Refused {
        tried: "finding a link's name",
        errno: errno as i32,
        message: None,
    };
    let name = if_indextoname(link.0).map_err(refused)?;
    // nix 0.31 takes the null pointer of a failure for success, and an empty name would lead to
    // the directory of all links.
    if name.is_empty() {
        return Err(refused(Errno::ENODEV));
    }
    let name = name.into_string().map_err(|_| refused(Errno::EINVAL))?;
    let directory = match sysctl.family() {
        Family::V4 => "/proc/sys/net/ipv4/conf",
        Family::V6 => "/proc/sys/net/ipv6/conf",
    };
    Ok([directory, &name, sysctl.name()].iter().collect())
}

fn write(path: &PathBuf, value: i32) -> io::Result<Outcome> {
    if fs::read_to_string(path)?.trim().parse() == Ok(value) {
        return Ok(Outcome::AlreadySo);
    }
    fs::write(path, value.to_string())?;
    Ok(Outcome::Changed)
}
