//! Ways in for fuzzing: bytes as they come out of a socket, read as if the kernel had sent them.

use enid_core::observed::{SeenMarking, Snapshot};
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};

use crate::connection::answer_of;
use crate::culprit::Culprits;
use crate::snapshot::Heard;
use crate::watch::Routers;
use crate::wire::numbers::{RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE};
use crate::wire::read::seen;
use crate::wire::{Message, Told, words};
use crate::{marking, watch};

/// The messages that answer our dumps.
pub const DUMPED: [u16; 5] = [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE, RTM_NEWNEIGH];

/// What was understood.
#[derive(Debug, Default)]
pub struct Understood {
    /// Of what the kernel has.
    pub snapshot: Snapshot,
    /// Of what it has of nftables.
    pub markings: Vec<SeenMarking>,
    /// Why messages were not understood, and what the kernel refused in which words.
    pub refusals: Vec<String>,
    /// Whether a socket that listens would wake us.
    pub matters: bool,
}

/// Reads a datagram in all the ways in which one is read.
#[must_use]
pub fn datagram(mut bytes: &[u8]) -> Understood {
    let matters = watch::matters(bytes, &Routers::new()) | marking::watch::matters(bytes);
    Culprits::default().hear(bytes);
    let (mut heard, mut told) = (Heard::default(), Vec::new());
    let mut understood = Understood { matters, ..Understood::default() };
    // As the codec of the requests' socket does.
    while let Ok(buffer) = NetlinkBuffer::new_checked(bytes) {
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        let Some((message, rest)) = bytes.split_at_checked(length) else { break };
        bytes = rest;
        match NetlinkMessage::<Message>::deserialize(message) {
            Ok(message) => understood.take(message, &mut heard, &mut told),
            Err(error) => understood.refusals.push(error.to_string()),
        }
    }
    understood.snapshot = heard.snapshot;
    understood.markings = marking::read::whatever(&told);
    understood
}

/// Reads one message without its netlink header.
#[must_use]
pub fn message(kind: u16, body: &[u8]) -> Understood {
    let told = Told { kind, body: body.to_vec() };
    let (mut heard, mut understood) = (Heard::default(), Understood::default());
    understood.put(&told, &mut heard);
    understood.snapshot = heard.snapshot;
    understood.markings = marking::read::whatever(&[told]);
    understood
}

impl Understood {
    fn take(&mut self, message: NetlinkMessage<Message>, heard: &mut Heard, all: &mut Vec<Told>) {
        if let NetlinkPayload::InnerMessage(Message::Told(told)) = message.payload {
            self.put(&told, heard);
            all.push(told);
        } else if let NetlinkPayload::Done(done) = message.payload {
            self.refusals.extend(words(&done.extended_ack));
        } else if let NetlinkPayload::Error(error) = message.payload {
            let answer = answer_of(&error, message.header.flags);
            self.refusals.extend(answer.err().map(|refusal| format!("{refusal:?}")));
        }
    }

    fn put(&mut self, told: &Told, heard: &mut Heard) {
        match seen(told) {
            Ok(seen) => heard.put(seen),
            Err(error) => self.refusals.push(error.to_string()),
        }
    }
}
