//! Instances that are virtual machines: their ENIs are taps in the fabric's namespace.

use anyhow::bail;
use imds::{EniId, InstanceId, Mac};

use crate::ports::{End, Plug};
use crate::{EniSpec, Vpc, lock};

/// An instance that is a virtual machine.
///
/// Who runs the machine does so in [`Vpc::fabric`], where its ENIs are persistent taps to be opened
/// by name: `-netdev tap,ifname=NAME,script=no,downscript=no`. A tap has a carrier while it is
/// open; it may be opened again, so that a machine can be started anew. Nothing inside the machine
/// is configured from here.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its id in the model.
    pub id: InstanceId,
    /// What it is called in messages.
    pub name: String,
    /// The ENI with device number 0; its tap is there from the start.
    pub primary: EniId,
}

/// A guest's ENI as the machine's emulator needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The tap in the fabric's namespace.
    pub name: String,
    /// The address that the machine's adapter must have.
    pub mac: Mac,
}

impl Vpc {
    /// Makes a guest whose primary ENI is attached: its tap and metadata are there before the
    /// machine is.
    ///
    /// # Errors
    /// When the specification does not fit the VPC or the system refuses something.
    pub fn guest(&self, name: &str, primary: EniSpec) -> anyhow::Result<Guest> {
        let (id, primary) = self.launch(primary)?;
        let guest = Guest { id, name: name.to_owned(), primary };
        self.attach_tap(&guest.primary, &guest)?;
        Ok(guest)
    }

    /// Attaches an ENI to a guest: makes the tap that the caller then gives to the machine.
    /// Metadata knows before, unless it was told to be late ([`imds::Server::hide`]).
    /// [`Vpc::detach`] takes the tap away again, after the caller took it from the machine.
    ///
    /// # Errors
    /// When it is attached already or the system refuses a tap.
    pub fn attach_tap(&self, eni: &EniId, to: &Guest) -> anyhow::Result<Tap> {
        let plug = Plug { instance: to.id.clone(), end: End::Tap };
        self.plug_in(&mut lock(&self.ports), vec![(eni, plug)])?;
        self.tap(eni)
    }

    /// The tap of an ENI that is attached to a guest.
    ///
    /// # Errors
    /// When it is not.
    pub fn tap(&self, id: &EniId) -> anyhow::Result<Tap> {
        let ports = lock(&self.ports);
        let port = ports.get(id)?;
        match port.plugged.as_ref().map(|plug| &plug.end) {
            Some(End::Tap) => Ok(Tap { name: port.name(), mac: self.eni(id)?.mac }),
            Some(End::Link(link)) => bail!("{id} is {} in {}", link.name, link.netns.name()),
            Some(End::Nothing) => bail!("{id} is attached without a link"),
            None => bail!("{id} is not attached"),
        }
    }
}
