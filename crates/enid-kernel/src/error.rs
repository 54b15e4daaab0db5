//! What can go wrong between us and the kernel, and what its error numbers mean here.

use std::io;
use std::path::PathBuf;

use enid_core::object::Object;
use nix::errno::Errno;

/// Looking or acting failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened or set up.
    #[error("opening a netlink socket")]
    Open {
        /// Why not.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("{tried}: {} (errno {errno}{}{})", meaning(*errno), if message.is_some() { ": " } else { "" }, message.as_deref().unwrap_or(""))]
    Refused {
        /// What was tried.
        tried: &'static str,
        /// The kernel's number for the reason.
        errno: i32,
        /// The kernel's own words, where it had some.
        message: Option<String>,
    },
    /// The place of the object is taken by one that is not known to be ours.
    #[error("making an object: another one is in its place{}{}", if message.is_some() { ": " } else { "" }, message.as_deref().unwrap_or(""))]
    Exists {
        /// The object that was to be made.
        object: Box<Object>,
        /// The kernel's own words, where it had some.
        message: Option<String>,
    },
    /// No answer came; whether the request had an effect is not known.
    #[error("{tried}: no answer from the kernel: {why}")]
    NoAnswer {
        /// What was tried.
        tried: &'static str,
        /// How the answer got lost.
        why: String,
    },
    /// The state kept changing while it was read.
    #[error("{tried}: interrupted by changes {times} times in a row")]
    Interrupted {
        /// What was tried.
        tried: &'static str,
        /// How often it was tried.
        times: u32,
    },
    /// The kernel sent something that we cannot read, so nothing can be said about the whole.
    #[error("reading {what} from the kernel: {detail}")]
    Unreadable {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The kernel cannot mark connections.
    #[error(
        "marking connections: this kernel has no nftables, or not all of it (errno {errno}); load the modules nf_tables and nft_ct, or switch published_ports off"
    )]
    NoTables {
        /// How the kernel said it.
        errno: i32,
    },
    /// A kernel setting could not be read or written.
    #[error("setting {}", path.display())]
    Sysctl {
        /// The setting's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The step cannot be said to the kernel.
    #[error("a step that cannot be taken: {why}")]
    NotPossible {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A step before it failed, and it must not be taken without that one.
    #[error("not tried: what it rests on could not be made; what is there stays")]
    Dependent,
}

impl Error {
    /// Whether the link that it was about was not there at that moment.
    #[must_use]
    pub fn is_no_link(&self) -> bool {
        let gone = [Errno::ENODEV as i32, Errno::ENXIO as i32];
        match self {
            Self::Refused { errno, .. } => gone.contains(errno),
            Self::Sysctl { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Open { .. }
            | Self::Exists { .. }
            | Self::NoAnswer { .. }
            | Self::Interrupted { .. }
            | Self::Unreadable { .. }
            | Self::NoTables { .. }
            | Self::NotPossible { .. }
            | Self::Dependent => false,
        }
    }
}

/// What an error number of the kernel means in answers to our requests.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a hundred numbers never answer a request of ours"
)]
pub fn meaning(errno: i32) -> &'static str {
    match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES => "not allowed (CAP_NET_ADMIN is missing)",
        Errno::EEXIST => "it exists already",
        Errno::ESRCH | Errno::ENOENT => "there is no such object",
        Errno::ENODEV | Errno::ENXIO => "there is no such link",
        Errno::EADDRNOTAVAIL => "there is no such address",
        Errno::ENETDOWN => "the link is not up",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => "the gateway is not reachable by the link",
        Errno::EINVAL => "the kernel does not accept these values",
        Errno::ERANGE => "a value is out of its range",
        Errno::EBUSY => "the kernel is busy with it",
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
            "this kernel or driver cannot do it"
        }
        Errno::ENOBUFS | Errno::ENOMEM => "the kernel is out of memory for it",
        Errno::ENOSPC => "a limit of the kernel is reached",
        _ => "the kernel refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_tried_what_it_means_and_the_kernels_words() {
        let refused = |message: Option<&str>| Error::Refused {
            tried: "making a route",
            errno: Errno::ENETDOWN as i32,
            message: message.map(str::to_owned),
        };
        assert_eq!(
            refused(Some("Device for nexthop is not up")).to_string(),
            "making a route: the link is not up (errno 100: Device for nexthop is not up)"
        );
        assert_eq!(refused(None).to_string(), "making a route: the link is not up (errno 100)");
    }
}
