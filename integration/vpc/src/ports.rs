//! The ENIs' places in the fabric, and what they lead to while they are attached.

use std::collections::BTreeMap;

use anyhow::Context as _;
use imds::{EniId, InstanceId};

use crate::Netns;

/// All places, by ENI.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) by_eni: BTreeMap<EniId, Port>,
    pub(crate) instances: u32,
}

/// An ENI's place in the fabric; the number never changes.
pub(crate) struct Port {
    pub(crate) number: u32,
    pub(crate) device: Option<u32>,
    pub(crate) efa_only: bool,
    pub(crate) plugged: Option<Plug>,
}

/// Where an ENI is attached.
#[derive(Clone)]
pub(crate) struct Plug {
    pub(crate) instance: InstanceId,
    pub(crate) end: End,
}

/// What is at the other end of a port.
#[derive(Clone)]
pub(crate) enum End {
    /// A link in an instance's namespace.
    Link(Link),
    /// Whatever opens the port, which is a tap.
    Tap,
    /// Nothing: there is no port, only metadata knows.
    Nothing,
}

/// A link in a namespace.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) netns: Netns,
    pub(crate) name: String,
}

impl Ports {
    pub(crate) fn get(&self, eni: &EniId) -> anyhow::Result<&Port> {
        self.by_eni.get(eni).with_context(|| format!("there is no {eni}"))
    }

    pub(crate) fn get_mut(&mut self, eni: &EniId) -> anyhow::Result<&mut Port> {
        self.by_eni.get_mut(eni).with_context(|| format!("there is no {eni}"))
    }
}

impl Port {
    /// Whether the port's device is in the fabric's namespace.
    pub(crate) fn is_wired(&self) -> bool {
        match self.plugged.as_ref().map(|plug| &plug.end) {
            Some(End::Link(_) | End::Tap) => true,
            Some(End::Nothing) | None => false,
        }
    }

    /// The port's device in the fabric's namespace.
    pub(crate) fn name(&self) -> String {
        format!("p{}", self.number)
    }
}
