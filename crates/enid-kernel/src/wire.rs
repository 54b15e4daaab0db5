//! The edge: messages as they go over the socket; `read` and `write` turn them into nouns.
//!
//! Requests are built from `packet_route`'s types. What the kernel sends is kept as bytes and read
//! attribute by attribute: one exotic attribute of a foreign link must not hide the link.

use std::convert::Infallible;

use rtnetlink::packet_core::{
    DecodeError, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

pub(crate) mod numbers;
pub(crate) mod read;
pub(crate) mod write;

/// Either direction's message, without its netlink header.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// What we ask.
    Ask(Box<RouteNetlinkMessage>),
    /// What we ask in bytes of our own.
    Bytes {
        /// `nlmsg_type`
        kind: u16,
        /// The family's header and the attributes.
        body: Vec<u8>,
    },
    /// What the kernel tells, whatever it is.
    Told(Told),
}

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// `nlmsg_type`
    pub(crate) kind: u16,
    /// The family's header and the attributes.
    pub(crate) body: Vec<u8>,
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self::Told(Told { kind: header.message_type, body: payload.to_vec() }))
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Ask(message) => message.message_type(),
            Self::Bytes { kind, .. } => *kind,
            Self::Told(told) => told.kind,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Ask(message) => message.buffer_len(),
            Self::Bytes { body, .. } => body.len(),
            Self::Told(told) => told.body.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Ask(message) => message.serialize(buffer),
            Self::Bytes { body, .. } => buffer.copy_from_slice(body),
            Self::Told(told) => buffer.copy_from_slice(&told.body),
        }
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

/// The kernel's own words in the attributes of an answer (`NLMSGERR_ATTR_MSG`).
pub(crate) fn words(attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    nested(attributes, NLMSGERR_ATTR_MSG).map(read::text).filter(|words| !words.is_empty())
}

/// The attributes in these bytes, each by kind and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), DecodeError>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Ok((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end).unwrap_or_default()))
    })
}

/// The value of the attribute of this kind among those in these bytes.
pub(crate) fn nested(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).map_while(Result::ok).find(|&(its, _)| its == kind).map(|(_, value)| value)
}
