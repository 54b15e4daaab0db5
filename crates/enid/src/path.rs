//! The way of a packet, asked of the kernel; nothing is sent.

use std::net::IpAddr;

use anyhow::Context as _;
use enid_control::Path;
use enid_core::object::{LinkIndex, Object};
use enid_core::observed::{SeenRoute, Snapshot};
use enid_core::path::decides;
use enid_core::plan::words;
use enid_kernel::Kernel;
use enid_kernel::lookup::{Lookup, Question, Way};

/// The way of a packet that a socket with this source would send.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn path(from: IpAddr, to: IpAddr) -> anyhow::Result<Path> {
    let snapshot = Kernel::open()
        .context("opening netlink sockets")?
        .snapshot(false)
        .await
        .context("looking at the kernel")?;
    let mut lookup = Lookup::open().context("opening a netlink socket")?;
    let answer = lookup.ask(&Question::out(from, to)).await.context("asking for a way")?;
    Ok(told(&snapshot, from, to, answer.map_err(|refusal| refusal.to_string())))
}

fn told(snapshot: &Snapshot, from: IpAddr, to: IpAddr, answer: Result<Way, String>) -> Path {
    let name_of = |index: LinkIndex| {
        let link = snapshot.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("if{}", index.0), |link| link.name.clone())
    };
    let route_words = |seen: &SeenRoute| words(&Object::Route(seen.route), false, &name_of);
    let found = decides(snapshot, from, to);
    let mut path = Path {
        from,
        to,
        refused: None,
        table: None,
        route: None,
        rule: None,
        link: None,
        gateway: None,
    };
    let way = match answer {
        Ok(way) => way,
        Err(refusal) => {
            path.refused = Some(refusal);
            return path;
        }
    };
    path.table = way.table.map(|table| table.0);
    path.link = way.link.map(name_of);
    path.gateway = way.gateway;
    let matched = way.route.as_ref().and_then(|matched| {
        snapshot.routes.iter().find(|seen| {
            Some(seen.route.table) == way.table
                && seen.route.destination == matched.destination
                && seen.route.metric == matched.metric
        })
    });
    path.route = matched.map(route_words);
    let agrees = found.filter(|found| {
        Some(found.route.route.table) == way.table
            && matched
                .is_none_or(|matched| matched.route.destination == found.route.route.destination)
    });
    let rule = |found: enid_core::path::Found<'_>| {
        words(&Object::Rule(found.rule.rule.clone()), false, &name_of)
    };
    path.rule = agrees.map(rule);
    path
}
