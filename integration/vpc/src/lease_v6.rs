//! What the VPC's DHCPv6 says to a client: decided from its message and the ENI alone.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
};
use imds::Eni;

use crate::config::Lifetimes;
use crate::fabric::ROUTER_MAC;

/// The resolver of every VPC.
const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);

/// The server's identifier: a link address of the kind Ethernet.
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1], &ROUTER_MAC.0[..]].concat()
}

/// What a client is told beside who tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// What it is leased, and the rest.
    Lease,
    /// That it was heard.
    Heard,
    /// Whether the addresses that it has are good for this link.
    OnLink,
}

/// The answer, if the message deserves one. An ENI has one address to lease: the first of its
/// IPv6 addresses.
pub(crate) fn answer(asked: &Message, eni: &Eni, lease: Lifetimes) -> Option<Message> {
    let address = *eni.ipv6.first()?;
    let (kind, told) = worth(asked)?;
    let mut answer = Message::new_with_id(kind, asked.xid());
    let options = answer.opts_mut();
    options.insert(DhcpOption::ServerId(server_id()));
    if let Some(client) = asked.opts().get(OptionCode::ClientId) {
        options.insert(client.clone());
    }
    match told {
        Told::Heard => options.insert(status(Status::Success)),
        Told::OnLink => {
            let right = associations(asked).all(|(_, had)| had.iter().all(|had| *had == address));
            options.insert(status(if right { Status::Success } else { Status::NotOnLink }));
        }
        Told::Lease => {
            options.insert(DhcpOption::DomainNameServers(vec![RESOLVER]));
            for (id, had) in associations(asked) {
                options.insert(DhcpOption::IANA(granted(id, address, &had, lease)));
            }
        }
    }
    Some(answer)
}

/// What a message that is meant for this server is worth.
fn worth(asked: &Message) -> Option<(MessageType, Told)> {
    use MessageType as Kind;
    let ours = DhcpOption::ServerId(server_id());
    let server = asked.opts().get(OptionCode::ServerId);
    let (to_all, to_us) = (server.is_none(), server == Some(&ours));
    let names_itself = asked.opts().get(OptionCode::ClientId).is_some();
    let (meant, answer) = match asked.msg_type() {
        Kind::Solicit => (to_all && names_itself, (Kind::Advertise, Told::Lease)),
        Kind::Request | Kind::Renew => (to_us && names_itself, (Kind::Reply, Told::Lease)),
        Kind::Rebind => (to_all && names_itself, (Kind::Reply, Told::Lease)),
        Kind::InformationRequest => (to_all || to_us, (Kind::Reply, Told::Lease)),
        Kind::Release | Kind::Decline => (to_us && names_itself, (Kind::Reply, Told::Heard)),
        Kind::Confirm => (to_all && names_itself, (Kind::Reply, Told::OnLink)),
        // What servers and relays say.
        Kind::Advertise
        | Kind::Reply
        | Kind::Reconfigure
        | Kind::RelayForw
        | Kind::RelayRepl
        | Kind::LeaseQuery
        | Kind::LeaseQueryReply
        | Kind::LeaseQueryDone
        | Kind::LeaseQueryData
        | Kind::ReconfigureRequest
        | Kind::ReconfigureReply
        | Kind::DHCPv4Query
        | Kind::DHCPv4Response
        | Kind::Unknown(_) => return None,
    };
    meant.then_some(answer)
}

/// Each association that the client asks for, and the addresses that it has in it.
fn associations(asked: &Message) -> impl Iterator<Item = (u32, Vec<Ipv6Addr>)> {
    asked.opts().iter().filter_map(|option| {
        let DhcpOption::IANA(association) = option else { return None };
        let had = association.opts.iter().filter_map(|option| {
            if let DhcpOption::IAAddr(had) = option { Some(had.addr) } else { None }
        });
        Some((association.id, had.collect()))
    })
}

/// The ENI's address, and an end for every other one that the client has.
fn granted(id: u32, address: Ipv6Addr, had: &[Ipv6Addr], lease: Lifetimes) -> IANA {
    let mut opts = DhcpOptions::new();
    let mut insert = |addr, preferred_life, valid_life| {
        let opts_of_address = DhcpOptions::new();
        let address = IAAddr { addr, preferred_life, valid_life, opts: opts_of_address };
        opts.insert(DhcpOption::IAAddr(address));
    };
    insert(address, lease.preferred, lease.valid);
    had.iter().filter(|had| **had != address).for_each(|had| insert(*had, 0, 0));
    IANA { id, t1: lease.preferred / 2, t2: lease.preferred * 4 / 5, opts }
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, 4);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f16, 0x67f, 0xf201, 0, 0, 0, 5);

    fn eni(ipv6: &[Ipv6Addr]) -> Eni {
        Eni { ipv6: ipv6.to_vec(), ..crate::lease::tests::eni() }
    }

    fn ask(kind: MessageType, server: Option<Vec<u8>>, had: &[Ipv6Addr]) -> Message {
        let mut asked = Message::new_with_id(kind, [1, 2, 3]);
        asked.opts_mut().insert(DhcpOption::ClientId(vec![0, 1]));
        if let Some(server) = server {
            asked.opts_mut().insert(DhcpOption::ServerId(server));
        }
        let mut opts = DhcpOptions::new();
        for addr in had {
            let inner = DhcpOptions::new();
            let had = IAAddr { addr: *addr, preferred_life: 0, valid_life: 0, opts: inner };
            opts.insert(DhcpOption::IAAddr(had));
        }
        asked.opts_mut().insert(DhcpOption::IANA(IANA { id: 7, t1: 0, t2: 0, opts }));
        asked
    }

    /// An address with its preferred and its valid lifetime.
    type Leased = (Ipv6Addr, u32, u32);

    /// The kind of the answer, and what is leased in it.
    fn told(asked: &Message) -> Option<(MessageType, Vec<Leased>)> {
        let lease = Lifetimes { preferred: 140, valid: 450 };
        let answer = answer(asked, &eni(&[OWN, OTHER]), lease)?;
        assert_eq!(answer.xid(), [1, 2, 3]);
        let mut leased = Vec::new();
        for option in answer.opts().iter() {
            if let DhcpOption::IANA(association) = option {
                assert_eq!((association.id, association.t1, association.t2), (7, 70, 112));
                for option in association.opts.iter() {
                    if let DhcpOption::IAAddr(one) = option {
                        leased.push((one.addr, one.preferred_life, one.valid_life));
                    }
                }
            }
        }
        leased.sort();
        Some((answer.msg_type(), leased))
    }

    #[test]
    fn only_the_first_address_is_leased() {
        use MessageType::{Advertise, Rebind, Renew, Reply, Request, Solicit};
        let (us, own) = (Some(server_id()), (OWN, 140, 450));
        assert_eq!(told(&ask(Solicit, None, &[])), Some((Advertise, vec![own])));
        assert_eq!(told(&ask(Request, us.clone(), &[OWN])), Some((Reply, vec![own])));
        assert_eq!(told(&ask(Renew, us, &[OWN])), Some((Reply, vec![own])));
        let both = vec![own, (OTHER, 0, 0)];
        assert_eq!(told(&ask(Rebind, None, &[OWN, OTHER])), Some((Reply, both)));
    }

    #[test]
    fn what_is_not_for_this_server_gets_no_answer() {
        use MessageType::{Reply, Request, Solicit};
        assert_eq!(told(&ask(Request, None, &[])), None);
        assert_eq!(told(&ask(Request, Some(vec![0, 3, 0, 1, 2]), &[])), None);
        assert_eq!(told(&ask(Solicit, Some(server_id()), &[])), None);
        assert_eq!(told(&ask(Reply, None, &[])), None);
        let lease = Lifetimes { preferred: 140, valid: 450 };
        assert_eq!(answer(&ask(Solicit, None, &[]), &eni(&[]), lease), None);
    }

    #[test]
    fn who_returns_an_address_or_asks_about_one_is_told_a_status() {
        use MessageType::{Confirm, Release};
        let lease = Lifetimes { preferred: 140, valid: 450 };
        for (asked, expected) in [
            (ask(Release, Some(server_id()), &[OWN]), Status::Success),
            (ask(Confirm, None, &[OWN]), Status::Success),
            (ask(Confirm, None, &[OTHER]), Status::NotOnLink),
        ] {
            let answer = answer(&asked, &eni(&[OWN]), lease).expect("an answer");
            assert_eq!(answer.opts().get(OptionCode::StatusCode), Some(&status(expected)));
            assert_eq!(answer.opts().get(OptionCode::IANA), None);
        }
    }
}
