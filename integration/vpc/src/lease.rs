//! What the VPC's DHCP says to a client: decided from its message and the ENI alone.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use imds::Eni;
use ipnet::Ipv4Net;

use crate::fabric;

/// What is the same for every ENI of a VPC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Bytes.
    pub(crate) mtu: u16,
    /// Seconds.
    pub(crate) lease: u32,
}

/// What an ENI has to lease, and who leases it.
#[derive(Clone, Copy)]
struct Place {
    address: Ipv4Addr,
    net: Ipv4Net,
    server: Ipv4Addr,
}

fn place(eni: &Eni) -> Option<Place> {
    if let Some(address) = eni.link_local {
        return Some(Place { address, net: address.into(), server: fabric::LINK_LOCAL_V4 });
    }
    let (address, net) = eni.ipv4.first().copied().zip(eni.subnet_v4)?;
    Some(Place { address, net, server: fabric::router(net) })
}

/// Who answers at an ENI.
pub(crate) fn server(eni: &Eni) -> Option<Ipv4Addr> {
    Some(place(eni)?.server)
}

/// The answer, if the message deserves one. An ENI has one address to lease: its primary one, or
/// a link-local one where the subnet has no IPv4.
pub(crate) fn answer(asked: &Message, eni: &Eni, terms: Terms) -> Option<Message> {
    let place = place(eni)?;
    let for_us = asked.opcode() == Opcode::BootRequest
        && asked.giaddr().is_unspecified()
        && asked.chaddr() == eni.mac.0;
    if !for_us {
        return None;
    }
    let kind = asked.opts().msg_type()?;
    if kind == MessageType::Discover {
        return Some(grant(asked, MessageType::Offer, place, eni, terms));
    }
    if kind == MessageType::Inform {
        let mut told = reply(asked, MessageType::Ack, place);
        told.set_ciaddr(asked.ciaddr());
        describe(&mut told, place, eni, terms);
        return Some(told);
    }
    // DECLINE and RELEASE are not answered, and nothing needs to be remembered: the address stays
    // the ENI's.
    if kind != MessageType::Request {
        return None;
    }
    let wanted = match asked.opts().get(OptionCode::ServerIdentifier) {
        // The client took an offer, perhaps somebody else's.
        Some(DhcpOption::ServerIdentifier(server)) if *server == place.server => requested(asked)?,
        Some(_) => return None,
        // It asks whether an old lease is still good, or for more time.
        None if asked.ciaddr().is_unspecified() => requested(asked)?,
        None => asked.ciaddr(),
    };
    if wanted != place.address {
        return Some(reply(asked, MessageType::Nak, place));
    }
    Some(grant(asked, MessageType::Ack, place, eni, terms))
}

/// Where an answer goes: a client without an address hears only what is said to all.
pub(crate) fn destination(asked: &Message, answer: &Message) -> Ipv4Addr {
    let refused = answer.opts().has_msg_type(MessageType::Nak);
    if refused || asked.ciaddr().is_unspecified() { Ipv4Addr::BROADCAST } else { asked.ciaddr() }
}

fn requested(asked: &Message) -> Option<Ipv4Addr> {
    let option = asked.opts().get(OptionCode::RequestedIpAddress)?;
    if let DhcpOption::RequestedIpAddress(address) = option { Some(*address) } else { None }
}

fn grant(asked: &Message, kind: MessageType, place: Place, eni: &Eni, terms: Terms) -> Message {
    let mut granted = reply(asked, kind, place);
    if kind == MessageType::Ack {
        granted.set_ciaddr(asked.ciaddr());
    }
    granted.set_yiaddr(place.address);
    granted.opts_mut().insert(DhcpOption::AddressLeaseTime(terms.lease));
    describe(&mut granted, place, eni, terms);
    granted
}

/// A router for every ENI, secondary ones too: that is what the real one says.
fn describe(told: &mut Message, place: Place, eni: &Eni, terms: Terms) {
    let options = told.opts_mut();
    options.insert(DhcpOption::SubnetMask(place.net.netmask()));
    options.insert(DhcpOption::InterfaceMtu(terms.mtu));
    options.insert(DhcpOption::DomainName("ec2.internal".to_owned()));
    if eni.link_local.is_some() {
        let on_link = Ipv4Addr::UNSPECIFIED;
        let services = vec![(fabric::LINK_LOCAL_NET, on_link)];
        options.insert(DhcpOption::ClasslessStaticRoute(services));
        return;
    }
    options.insert(DhcpOption::BroadcastAddr(place.net.broadcast()));
    options.insert(DhcpOption::Router(vec![place.server]));
    if let Some(vpc) = eni.vpc_v4.first() {
        let resolver = Ipv4Addr::from(u32::from(vpc.network()) + 2);
        options.insert(DhcpOption::DomainNameServer(vec![resolver]));
    }
}

fn reply(asked: &Message, kind: MessageType, place: Place) -> Message {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut told =
        Message::new_with_id(asked.xid(), nobody, nobody, nobody, nobody, asked.chaddr());
    told.set_opcode(Opcode::BootReply).set_flags(asked.flags());
    let options = told.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(place.server));
    if let Some(client) = asked.opts().get(OptionCode::ClientIdentifier) {
        options.insert(client.clone());
    }
    told
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use imds::{EniId, Mac};

    use super::*;

    const MAC: Mac = Mac([0x0e, 0xee, 1, 0, 0, 1]);
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    pub(crate) fn eni() -> Eni {
        Eni {
            id: EniId("eni-1".to_owned()),
            mac: MAC,
            device: 1,
            card: None,
            owner: String::new(),
            subnet: String::new(),
            vpc: String::new(),
            subnet_v4: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 1, 0), 24)),
            subnet_v6: Vec::new(),
            vpc_v4: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16)],
            vpc_v6: Vec::new(),
            ipv4: vec![OWN, OTHER],
            link_local: None,
            ipv6: Vec::new(),
            prefixes_v4: Vec::new(),
            prefixes_v6: Vec::new(),
            public: BTreeMap::new(),
        }
    }

    fn ask(kind: MessageType, ciaddr: Ipv4Addr, options: &[DhcpOption]) -> Message {
        let mut asked = Message::new_with_id(7, ciaddr, NONE, NONE, NONE, &MAC.0);
        asked.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            asked.opts_mut().insert(option.clone());
        }
        asked
    }

    /// What is answered, and where to.
    fn told(asked: &Message) -> Option<(MessageType, Ipv4Addr)> {
        let answer = answer(asked, &eni(), Terms { mtu: 9001, lease: 3600 })?;
        Some((answer.opts().msg_type()?, destination(asked, &answer)))
    }

    #[test]
    fn an_offer_has_all_that_a_client_needs() {
        let asked = ask(MessageType::Discover, NONE, &[]);
        let offer = answer(&asked, &eni(), Terms { mtu: 9001, lease: 3600 }).expect("an offer");
        assert_eq!((offer.xid(), offer.yiaddr(), offer.chaddr()), (7, OWN, &MAC.0[..]));
        let options = [
            DhcpOption::MessageType(MessageType::Offer),
            DhcpOption::ServerIdentifier(SERVER),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 0, 1, 255)),
            DhcpOption::Router(vec![SERVER]),
            DhcpOption::InterfaceMtu(9001),
            DhcpOption::DomainName("ec2.internal".to_owned()),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 0, 0, 2)]),
        ];
        for option in &options {
            assert_eq!(offer.opts().get(OptionCode::from(option)), Some(option));
        }
        assert_eq!(offer.opts().len(), options.len());
    }

    #[test]
    fn only_the_primary_address_is_leased() {
        use MessageType::{Ack, Nak, Request};
        let (server, all) = (DhcpOption::ServerIdentifier(SERVER), Ipv4Addr::BROADCAST);
        let wants = DhcpOption::RequestedIpAddress;
        for (asked, expected) in [
            // It takes the offer, or another server's.
            (ask(Request, NONE, &[server.clone(), wants(OWN)]), Some((Ack, all))),
            (ask(Request, NONE, &[server, wants(OTHER)]), Some((Nak, all))),
            (ask(Request, NONE, &[DhcpOption::ServerIdentifier(OTHER), wants(OWN)]), None),
            // It was restarted.
            (ask(Request, NONE, &[wants(OWN)]), Some((Ack, all))),
            (ask(Request, NONE, &[wants(OTHER)]), Some((Nak, all))),
            // It asks for more time.
            (ask(Request, OWN, &[]), Some((Ack, OWN))),
            (ask(Request, OTHER, &[]), Some((Nak, all))),
            (ask(Request, NONE, &[]), None),
        ] {
            assert_eq!(told(&asked), expected, "{asked}");
        }
    }

    #[test]
    fn who_has_an_address_is_told_the_rest_and_who_returns_one_is_not_answered() {
        let asked = ask(MessageType::Inform, OTHER, &[]);
        assert_eq!(told(&asked), Some((MessageType::Ack, OTHER)));
        let ack = answer(&asked, &eni(), Terms { mtu: 9001, lease: 3600 }).expect("an answer");
        assert_eq!(ack.yiaddr(), NONE);
        assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
        assert_eq!(told(&ask(MessageType::Release, OWN, &[])), None);
        assert_eq!(told(&ask(MessageType::Decline, NONE, &[])), None);
    }

    #[test]
    fn without_ipv4_in_the_subnet_a_link_local_address_is_leased() {
        let own = Ipv4Addr::new(169, 254, 16, 1);
        let only_v6 = Eni { ipv4: Vec::new(), subnet_v4: None, link_local: Some(own), ..eni() };
        let asked = ask(MessageType::Discover, NONE, &[]);
        let offer = answer(&asked, &only_v6, Terms { mtu: 9001, lease: 3600 }).expect("an offer");
        assert_eq!(offer.yiaddr(), own);
        let mask = DhcpOption::SubnetMask(Ipv4Addr::BROADCAST);
        assert_eq!(offer.opts().get(OptionCode::SubnetMask), Some(&mask));
        assert_eq!(offer.opts().get(OptionCode::Router), None);
        assert!(offer.opts().get(OptionCode::ClasslessStaticRoute).is_some());
    }

    #[test]
    fn another_mac_a_relay_and_an_eni_without_ipv4_get_no_answer() {
        let mut asked = ask(MessageType::Discover, NONE, &[]);
        asked.set_chaddr(&[2, 0, 0, 0, 0, 1]);
        assert_eq!(told(&asked), None);
        let mut asked = ask(MessageType::Discover, NONE, &[]);
        asked.set_giaddr(OTHER);
        assert_eq!(told(&asked), None);
        let six = Eni { ipv4: Vec::new(), subnet_v4: None, ..eni() };
        let asked = ask(MessageType::Discover, NONE, &[]);
        assert!(answer(&asked, &six, Terms { mtu: 9001, lease: 3600 }).is_none());
    }
}
