//! The marking of connections that come in by an ENI: an nftables table of enid's per ENI. Nothing
//! is opened, and no module loaded, before it matters.

use enid_core::object::{Marking, Protocol};
use enid_core::observed::{SeenMarking, Snapshot};
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::apply::Outcome;
use crate::connection::{Refusal, Requests};
use crate::error::Error;
use crate::watch::Change;

mod numbers;
pub(crate) mod read;
mod rules;
pub(crate) mod watch;
mod write;

/// Whether markings are there, as far as the rest tells: an earlier run left rules of ours that
/// look at marks. They go after the markings.
pub(crate) fn left_traces(snapshot: &Snapshot) -> bool {
    let mut ours = snapshot.rules.iter().filter(|seen| seen.protocol == Protocol::ENID);
    ours.any(|seen| seen.rule.mark.is_some())
}

/// The kernel's side of all markings.
#[derive(Debug, Default)]
pub(crate) struct Markings {
    requests: Option<Requests>,
    watch: Option<watch::Watch>,
}

impl Markings {
    /// All of them, and from here on [`Markings::changed`] tells when one changes. Where the kernel
    /// has no nftables there are none.
    pub(crate) async fn look(&mut self) -> Result<Vec<SeenMarking>, Error> {
        match self.listen_and_look().await {
            Err(Error::NoTables { .. }) => Ok(Vec::new()),
            seen => seen,
        }
    }

    async fn listen_and_look(&mut self) -> Result<Vec<SeenMarking>, Error> {
        // Listening begins before the look, so that no change falls in between.
        if self.watch.is_none() {
            self.watch = Some(watch::Watch::open().map_err(opening)?);
        }
        // The kernel says "invalid" where it has the netlink of its packet filter, but no nftables.
        let lacks = |error| lacking(error, &[Errno::EINVAL, Errno::EOPNOTSUPP]);
        read::all(self.requests()?).await.map_err(lacks)
    }

    /// They do not matter any more.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    /// Makes one and replaces what stands in its place, in one transaction.
    pub(crate) async fn make(&mut self, marking: &Marking) -> Result<Outcome, Error> {
        let asks = write::make(marking).map_err(|why| Error::NotPossible { why })?;
        let answer = self.requests()?.transaction(asks).await;
        // "No such object" is a kind of expression or of chain: nothing else is looked up.
        let lacks =
            |error| lacking(error, &[Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::ENOENT]);
        answer
            .map(|()| Outcome::Changed)
            .map_err(|refusal| lacks(refusal.during("marking connections")))
    }

    /// Deletes one, whatever it does.
    pub(crate) async fn delete(&mut self, marking: &Marking) -> Result<Outcome, Error> {
        const GONE: [i32; 2] = [Errno::ENOENT as i32, Errno::EOPNOTSUPP as i32];
        let requests = match self.requests() {
            Err(Error::NoTables { .. }) => return Ok(Outcome::AlreadySo),
            requests => requests?,
        };
        match requests.transaction(write::delete(marking)).await {
            Ok(()) => Ok(Outcome::Changed),
            Err(Refusal::Refused { errno, .. }) if GONE.contains(&errno) => Ok(Outcome::AlreadySo),
            Err(refusal) => Err(refusal.during("ending the marking of connections")),
        }
    }

    /// Waits for a change; for ever where they do not matter. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Change {
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    fn requests(&mut self) -> Result<&mut Requests, Error> {
        match &mut self.requests {
            Some(requests) => Ok(requests),
            none => Ok(none.insert(Requests::open(NETLINK_NETFILTER).map_err(opening)?)),
        }
    }
}

fn opening(error: Error) -> Error {
    lacking(error, &[Errno::EPROTONOSUPPORT])
}

/// The same error, or, where it is one of these, that the kernel lacks what a marking is made of.
fn lacking(error: Error, signs: &[Errno]) -> Error {
    let errno = match &error {
        Error::Refused { errno, .. } => Some(*errno),
        Error::Open { source } => source.raw_os_error(),
        Error::Exists { .. }
        | Error::NoAnswer { .. }
        | Error::Interrupted { .. }
        | Error::Unreadable { .. }
        | Error::NoTables { .. }
        | Error::Sysctl { .. }
        | Error::NotPossible { .. }
        | Error::Dependent => None,
    };
    match errno {
        Some(errno) if signs.contains(&Errno::from_raw(errno)) => Error::NoTables { errno },
        Some(_) | None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nftables_is_told_from_other_failures_and_it_is_said_what_to_do() {
        let refused = |errno: Errno| Error::Refused {
            tried: "marking connections",
            errno: errno as i32,
            message: None,
        };
        let unsupported = std::io::Error::from_raw_os_error(Errno::EPROTONOSUPPORT as i32);
        let none = opening(Error::Open { source: unsupported });
        assert!(matches!(none, Error::NoTables { .. }), "{none}");
        let none = lacking(refused(Errno::EOPNOTSUPP), &[Errno::EOPNOTSUPP]).to_string();
        assert!(none.contains("load") && none.contains("published_ports"), "{none}");
        let other = lacking(refused(Errno::EPERM), &[Errno::EOPNOTSUPP]);
        assert!(matches!(other, Error::Refused { .. }), "{other}");
    }
}
