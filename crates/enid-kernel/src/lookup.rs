//! Asks the kernel which way a packet would go. Nothing is sent, and no privilege is needed.

use std::fmt;
use std::net::IpAddr;

use enid_core::object::{Family, LinkIndex, Protocol, RouteKind, TableId};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::connection::Requests;
use crate::error::Error;
use crate::wire::numbers::{RTN_BLACKHOLE, RTN_PROHIBIT};
use crate::wire::read::{Found, found};
use crate::wire::write::question;

/// A connection that asks the kernel for ways, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Lookup {
    requests: Requests,
}

/// A packet that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Its destination.
    pub to: IpAddr,
    /// Its source; without one the kernel chooses, as for a socket that is not bound.
    pub from: Option<IpAddr>,
    /// The link it comes in by; none for a packet that is made here.
    pub iif: Option<LinkIndex>,
    /// The link that its socket is bound to.
    pub oif: Option<LinkIndex>,
    /// Its mark; 0 is none.
    pub mark: u32,
    /// The user whose socket sends it; none for root.
    pub uid: Option<u32>,
}

impl Question {
    /// A packet to there that an unbound socket sends.
    #[must_use]
    pub const fn to(to: IpAddr) -> Self {
        Self { to, from: None, iif: None, oif: None, mark: 0, uid: None }
    }

    /// A packet to there of a socket that is bound to this address.
    #[must_use]
    pub const fn out(from: IpAddr, to: IpAddr) -> Self {
        Self { from: Some(from), ..Self::to(to) }
    }

    /// A packet that comes in by this link.
    #[must_use]
    pub const fn in_by(link: LinkIndex, from: IpAddr, to: IpAddr) -> Self {
        Self { iif: Some(link), ..Self::out(from, to) }
    }
}

/// What the kernel would do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The table whose route decides; none where no route did (a socket that is bound to a link
    /// reaches every IPv4 address on it when nothing else is known).
    pub table: Option<TableId>,
    /// What the route does: it sends or delivers, else there is a [`Refusal`].
    pub kind: RouteKind,
    /// The link it leaves by; loopback for what stays here.
    pub link: Option<LinkIndex>,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Its source: the one asked for, else the one that the kernel chooses.
    pub source: Option<IpAddr>,
    /// The route; none where no route decided, where it went before it was asked for, and where it
    /// was not asked for.
    pub route: Option<Matched>,
}

/// The route that decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Packets to here go by it.
    pub destination: IpNet,
    /// `RTA_PRIORITY`
    pub metric: u32,
    /// Who made it.
    pub protocol: Protocol,
}

/// Why a packet would go nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No rule leads to a route for it; of an IPv4 packet to be sent also: its source is no address
    /// of this host.
    NoRoute,
    /// An `unreachable` route; for a packet that comes in also: it is not for this host, which does
    /// not forward.
    Unreachable,
    /// A `prohibit` route.
    Prohibited,
    /// It comes in by a link that its source is not reached by, and reverse paths are filtered.
    ReversePath,
    /// It must not be. To be sent: a `blackhole` route has it, or (on older kernels) its source is no
    /// address of this host. To come in: its source makes no sense, or (since Linux 6.14) reverse paths are filtered.
    Invalid,
    /// The link that the question names is not there.
    NoLink,
    /// Anything else.
    Other {
        /// The kernel's number for it.
        errno: i32,
        /// The kernel's own words, where it had some.
        message: Option<String>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("there is no route"),
            Self::Unreachable => f.write_str("a route says unreachable"),
            Self::Prohibited => f.write_str("a route prohibits it"),
            Self::ReversePath => f.write_str("the reverse path filter drops it"),
            Self::Invalid => f.write_str("the kernel does not accept such a packet"),
            Self::NoLink => f.write_str("there is no such link"),
            Self::Other { errno, message } => {
                write!(f, "the kernel refuses (errno {errno}")?;
                message.iter().try_for_each(|message| write!(f, ": {message}"))?;
                f.write_str(")")
            }
        }
    }
}

impl Refusal {
    /// What a route of this kind says; none where it sends or delivers.
    const fn by(kind: RouteKind) -> Option<Self> {
        match kind {
            RouteKind::Unreachable => Some(Self::Unreachable),
            RouteKind::Other(RTN_PROHIBIT) => Some(Self::Prohibited),
            RouteKind::Other(RTN_BLACKHOLE) => Some(Self::Invalid),
            RouteKind::Unicast | RouteKind::Local | RouteKind::Other(_) => None,
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a hundred numbers never answer such a question"
    )]
    fn of(errno: i32, message: Option<String>) -> Self {
        match Errno::from_raw(errno) {
            Errno::ENETUNREACH => Self::NoRoute,
            Errno::EHOSTUNREACH => Self::Unreachable,
            Errno::EACCES => Self::Prohibited,
            Errno::EXDEV => Self::ReversePath,
            // With words it is our question that it does not accept.
            Errno::EINVAL if message.is_none() => Self::Invalid,
            Errno::ENODEV => Self::NoLink,
            _ => Self::Other { errno, message },
        }
    }
}

/// What part of an answer is asked for: the kernel tells either the way or the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Way,
    Route,
}

impl Lookup {
    /// Must be called within the runtime that will poll [`Lookup::ask`].
    ///
    /// # Errors
    ///
    /// [`Error::Open`] when a socket cannot be had.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { requests: Requests::open(NETLINK_ROUTE)? })
    }

    /// Which way it would go, or why it would go nowhere.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or not in a way that can be read. What it refuses is an
    /// answer.
    pub async fn ask(&mut self, ask: &Question) -> Result<Result<Way, Refusal>, Error> {
        let mut way = match self.way(ask).await? {
            Ok(way) => way,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Two requests: whoever changes routes in between gets the way of before.
        let route = match way.table {
            Some(_) => self.part(ask, Part::Route).await?.ok(),
            None => None,
        };
        let route = route.filter(|route| Some(route.seen.route.table) == way.table);
        way.route = route.map(|Found { seen, .. }| Matched {
            destination: seen.route.destination,
            metric: seen.route.metric,
            protocol: seen.protocol,
        });
        Ok(Ok(way))
    }

    /// The same without the route that decides, for half the time.
    ///
    /// # Errors
    ///
    /// As of [`Lookup::ask`].
    pub async fn way(&mut self, ask: &Question) -> Result<Result<Way, Refusal>, Error> {
        let Found { seen, table, gateway } = match self.part(ask, Part::Way).await? {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // How the kernel answers for IPv6 depends on its version.
        if let Some(refusal) = Refusal::by(seen.route.kind) {
            return Ok(Err(refusal));
        }
        Ok(Ok(Way {
            table,
            kind: seen.route.kind,
            link: seen.route.link,
            gateway,
            source: ask.from.or(seen.route.source),
            route: None,
        }))
    }

    async fn part(&mut self, ask: &Question, part: Part) -> Result<Result<Found, Refusal>, Error> {
        let told = self.requests.dump("asking for a way", || question(ask, part)).await;
        match told {
            Ok(told) => match told.as_slice() {
                [told] => found(told, Family::of(ask.to)).map(Ok),
                other => Err(Error::Unreadable {
                    what: "the way of a packet",
                    detail: format!("{} answers", other.len()),
                }),
            },
            Err(Error::Refused { errno, message, .. }) => Ok(Err(Refusal::of(errno, message))),
            Err(error) => Err(error),
        }
    }
}
