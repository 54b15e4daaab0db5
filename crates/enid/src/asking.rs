//! Asks metadata, by the links that lead there, on a thread of its own: reading what a service sends
//! without end holds up nothing else.

use std::future::pending;
use std::io;

use enid_core::metadata::facts::Metadata;
use enid_core::object::{Route, TableId};
use enid_core::observed::Link;
use enid_imds::Via;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use crate::pass::Looked;

/// The thread; it ends with the process.
#[derive(Debug)]
pub(crate) struct Asking(Handle);

impl Asking {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(Self(handle))
    }

    /// Runs there; what is given back can be waited for anywhere.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.spawn(work)
    }
}

/// The primary ENI's link first: a default route may lead elsewhere, where there is no metadata.
pub(crate) fn vias(metadata: &Metadata, looked: &Looked) -> Vec<Via> {
    let links = || looked.snapshot.links.iter().filter(|link| link.may_be_eni() && link.up);
    let primary = links().find(|link| link.mac.is_some() && link.mac == metadata.primary);
    let others = links().filter(|link| {
        link.mac != metadata.primary
            && (metadata.primary.is_none()
                || link.mac.is_some_and(|mac| metadata.enis.contains_key(&mac)))
    });
    // Before metadata has named the primary ENI, it is the link that others send everything by.
    let leads_out = |link: &&Link| {
        let mut routes = looked.snapshot.routes.iter().map(|seen| &seen.route);
        let default = |route: &Route| route.table == TableId::MAIN && route.is_default();
        routes.any(|route| default(route) && route.link == Some(link.index))
    };
    let mut others: Vec<_> = others.collect();
    others.sort_by_key(|link| !leads_out(link));
    let device = |link: &Link| Via::Device(link.name.clone());
    let mut vias: Vec<Via> = primary.map(device).into_iter().collect();
    vias.push(Via::Any);
    vias.extend(others.into_iter().take(2).map(device));
    vias
}
