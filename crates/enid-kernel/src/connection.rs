//! The connection for requests: one at a time, each with its own end, none without an end.

use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, Stream, StreamExt};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_CAPPED, NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::proto::{
    Connection, ConnectionHandle, NetlinkCodec, ReplyExpectation, new_connection_with_codec,
};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::wire::{self, Message, Told};

/// How long the kernel may say nothing while it owes an answer. It answers within the system call
/// that asks, so silence means that the answer was dropped.
const SILENCE: Duration = Duration::from_secs(1);
/// An interrupted dump is repeated so often.
const INTERRUPTIONS: u32 = 20;

/// What the kernel says to a request that only wants a yes.
pub(crate) type Answer = Result<(), Refusal>;

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The kernel refused.
    Refused { errno: i32, message: Option<String> },
    /// Nothing is known, because the answer was lost.
    Lost(String),
}

impl Refusal {
    /// The same with what was tried.
    pub(crate) fn during(self, tried: &'static str) -> Error {
        match self {
            Self::Refused { errno, message } => Error::Refused { tried, errno, message },
            Self::Lost(why) => Error::NoAnswer { tried, why },
        }
    }
}

/// A socket for requests, replaced whenever it may be out of step with us.
#[derive(Debug)]
pub(crate) struct Requests {
    protocol: isize,
    socket: Socket,
    /// A request has been sent whose end has not been seen: somebody gave up waiting, or the
    /// answer was lost. The next answer would not be the next request's.
    unfinished: bool,
}

impl Requests {
    /// Of a netlink protocol (`NETLINK_…`).
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        Ok(Self { protocol, socket: Socket::open(protocol)?, unfinished: false })
    }

    /// Everything that a dump yields, or a question about one object; it is repeated while changes
    /// interrupt it, and once on a new socket if the old one lost the answer.
    pub(crate) async fn dump(
        &mut self,
        tried: &'static str,
        ask: impl Fn() -> NetlinkMessage<Message>,
    ) -> Result<Vec<Told>, Error> {
        self.dump_within(INTERRUPTIONS, tried, ask).await
    }

    /// The same, given up when so many dumps were interrupted.
    pub(crate) async fn dump_within(
        &mut self,
        times: u32,
        tried: &'static str,
        ask: impl Fn() -> NetlinkMessage<Message>,
    ) -> Result<Vec<Told>, Error> {
        let mut reopened = false;
        for time in 0..times {
            // A writer that has been busy this long gets some time to come to an end. Even no time
            // at all is slept until the timer's next millisecond.
            if let Some(pause @ 1..) = time.checked_sub(4) {
                tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
            }
            let mut dump = self.dump_once(ask()).await;
            if let Err(Refusal::Lost(why)) = &dump
                && !reopened
            {
                tracing::warn!(tried, why, "asking the kernel again on a new socket");
                reopened = true;
                dump = self.dump_once(ask()).await;
            }
            let dump = dump.map_err(|refusal| refusal.during(tried))?;
            #[cfg(feature = "faults")]
            if crate::faults::interrupts(tried, dump.told.len()) {
                continue;
            }
            if !dump.interrupted {
                return Ok(dump.told);
            }
        }
        Err(Error::Interrupted { tried, times })
    }

    async fn dump_once(&mut self, ask: NetlinkMessage<Message>) -> Result<Dump, Refusal> {
        let socket = self.ready()?;
        let mut dump = Dump { told: Vec::new(), interrupted: false };
        let mut answers = socket.send(vec![ask])?;
        let end = loop {
            let answer = socket.next(&mut answers).await?;
            dump.interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(Message::Told(told)) => dump.told.push(told),
                // The end of a dump has room for an error: without reading it, a refused dump
                // would look like an empty table.
                NetlinkPayload::Done(done) if done.code == 0 => break Ok(dump),
                NetlinkPayload::Done(done) => {
                    let message = wire::words(&done.extended_ack);
                    break Err(Refusal::Refused { errno: done.code.saturating_abs(), message });
                }
                NetlinkPayload::Error(error) => {
                    break answer_of(&error, answer.header.flags).map(|()| dump);
                }
                other @ (NetlinkPayload::Noop
                | NetlinkPayload::Overrun(_)
                | NetlinkPayload::InnerMessage(Message::Ask(_))
                | _) => return Err(Refusal::Lost(format!("instead came {other:?}"))),
            }
        };
        self.unfinished = false;
        end
    }

    /// Sends the requests in one datagram; exactly one answer for each, in their order. Each must
    /// ask for an acknowledgment.
    pub(crate) async fn batch(&mut self, asks: Vec<NetlinkMessage<Message>>) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = asks.iter().map(|_| None).collect();
        let lost = self.fill(asks, &mut answers).await.err().unwrap_or_else(|| {
            self.unfinished = false;
            Refusal::Lost("it was not answered".to_owned())
        });
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(lost.clone()))).collect()
    }

    /// Sends the requests in one datagram of which the kernel does all or nothing. The first and the
    /// last frame it; they are answered only where something is wrong with the whole.
    pub(crate) async fn transaction(&mut self, asks: Vec<NetlinkMessage<Message>>) -> Answer {
        let mut missing = asks.len().saturating_sub(2);
        let socket = self.ready()?;
        let mut answers = socket.send_framed(asks)?;
        while missing > 0 {
            let answer = socket.next(&mut answers).await?;
            let NetlinkPayload::Error(error) = &answer.payload else {
                return Err(Refusal::Lost(format!("instead came {:?}", answer.payload)));
            };
            // After a refusal more answers may come, so the request stays unfinished.
            answer_of(error, answer.header.flags)?;
            missing -= 1;
        }
        // What fails at the very end is told before all is acknowledged that went well.
        while let Some(Some((stray, _))) = socket.unsolicited.next().now_or_never() {
            if let (true, NetlinkPayload::Error(error)) = (socket.is_frame(&stray), &stray.payload)
            {
                answer_of(error, stray.header.flags)?;
            }
        }
        self.unfinished = false;
        Ok(())
    }

    async fn fill(
        &mut self,
        asks: Vec<NetlinkMessage<Message>>,
        answers: &mut [Option<Answer>],
    ) -> Result<(), Refusal> {
        let socket = self.ready()?;
        let first = socket.next_sequence;
        let mut stream = socket.send(asks)?;
        let mut missing = answers.len();
        while missing > 0 {
            let answer = socket.next(&mut stream).await?;
            // By number, not by turn: a lost answer must not shift the others.
            let place = answer.header.sequence_number.wrapping_sub(first);
            let place = usize::try_from(place).ok().and_then(|place| answers.get_mut(place));
            let (Some(place), NetlinkPayload::Error(error)) = (place, &answer.payload) else {
                return Err(Refusal::Lost(format!("instead came {:?}", answer.payload)));
            };
            if place.replace(answer_of(error, answer.header.flags)).is_none() {
                missing -= 1;
            }
        }
        Ok(())
    }

    /// A socket on which nothing is under way; from here on, something is.
    fn ready(&mut self) -> Result<&mut Socket, Refusal> {
        #[cfg(feature = "faults")]
        if crate::faults::lose() {
            self.socket.task.abort();
        }
        if self.unfinished {
            self.socket = Socket::open(self.protocol).map_err(|error| {
                Refusal::Lost(format!("the socket could not be opened again: {error:?}"))
            })?;
        }
        self.unfinished = true;
        Ok(&mut self.socket)
    }
}

/// What a dump yields.
struct Dump {
    told: Vec<Told>,
    interrupted: bool,
}

/// An acknowledgment or a refusal with the kernel's own words.
pub(crate) fn answer_of(error: &ErrorMessage, flags: u16) -> Answer {
    const HEADER: usize = 16;
    if error.code.is_none() {
        return Ok(());
    }
    // The answer quotes the request before its attributes: only its header if capped.
    let quoted = match error.header.first_chunk() {
        Some(length) if flags & NLM_F_CAPPED == 0 => {
            usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX)
        }
        _ => HEADER,
    };
    let attributes = error.header.get(quoted.next_multiple_of(4)..).unwrap_or_default();
    let errno = error.raw_code().saturating_abs();
    Err(Refusal::Refused { errno, message: wire::words(attributes) })
}

type Received = NetlinkMessage<Message>;

/// What comes out of the socket.
enum Event {
    /// For the request, or the end of its answers.
    Answer(Option<Received>),
    /// For nobody.
    Stray(Received),
}

/// A netlink socket with the task that serves it.
struct Socket {
    handle: ConnectionHandle<Message>,
    /// What answers no request of ours: nothing but reports of lost messages.
    unsolicited: UnboundedReceiver<(Received, SocketAddr)>,
    task: JoinHandle<()>,
    /// The number that the next request will get from the task.
    next_sequence: u32,
    /// The number of the request that began the last transaction.
    frame: Option<u32>,
}

impl Socket {
    fn open(protocol: isize) -> Result<Self, Error> {
        Self::try_open(protocol, None).map_err(|source| Error::Open { source })
    }

    fn try_open(protocol: isize, receive_buffer: Option<usize>) -> std::io::Result<Self> {
        let (mut connection, handle, unsolicited): (
            Connection<Message, TokioSocket, NetlinkCodec>,
            _,
            _,
        ) = new_connection_with_codec(protocol)?;
        let socket = connection.socket_mut().socket_mut();
        socket.bind_auto()?;
        // Refuses what the kernel would otherwise ignore without a word.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        if let Some(size) = receive_buffer {
            nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBuf, &size)?;
        }
        // Otherwise a request that failed looks like one that found nothing.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let task = tokio::spawn(connection);
        Ok(Self { handle, unsolicited, task, next_sequence: 1, frame: None })
    }

    fn send(
        &mut self,
        asks: Vec<Received>,
    ) -> Result<impl Stream<Item = Received> + use<>, Refusal> {
        self.count(asks.len());
        self.handle
            .request_batch(asks, SocketAddr::new(0, 0))
            .map_err(|error| Refusal::Lost(error.to_string()))
    }

    /// Sends requests of which the first and the last need not be answered.
    fn send_framed(
        &mut self,
        asks: Vec<Received>,
    ) -> Result<impl Stream<Item = Received> + use<>, Refusal> {
        self.frame = Some(self.next_sequence);
        self.count(asks.len());
        let last = asks.len().saturating_sub(1);
        let expected = |place| match place == 0 || place == last {
            true => ReplyExpectation::NotExpected,
            false => ReplyExpectation::Expected,
        };
        let asks: Vec<_> =
            asks.into_iter().enumerate().map(|(n, ask)| (ask, expected(n))).collect();
        self.handle
            .request_batch_with_expectation(asks, SocketAddr::new(0, 0))
            .map_err(|error| Refusal::Lost(error.to_string()))
    }

    fn count(&mut self, sent: usize) {
        self.next_sequence =
            self.next_sequence.wrapping_add(u32::try_from(sent).unwrap_or(u32::MAX));
    }

    fn is_frame(&self, answer: &Received) -> bool {
        self.frame == Some(answer.header.sequence_number)
    }

    /// The next answer; an error when it will not come.
    async fn next(
        &mut self,
        answers: &mut (impl Stream<Item = Received> + Unpin),
    ) -> Result<Received, Refusal> {
        // Waits twice, because our own thread may have been held up for the first time, and then
        // the answers are there but the task has not had its turn yet.
        let mut patience = 2;
        while patience > 0 {
            let event = tokio::time::timeout(SILENCE, async {
                tokio::select! {
                    biased;
                    answer = answers.next() => Event::Answer(answer),
                    Some((message, _)) = self.unsolicited.next() => Event::Stray(message),
                }
            });
            match event.await {
                Ok(Event::Answer(Some(answer))) => return Ok(answer),
                Ok(Event::Answer(None)) => return Err(Refusal::Lost(self.ended())),
                Ok(Event::Stray(message)) => {
                    if matches!(message.payload, NetlinkPayload::Overrun(_)) {
                        return Err(Refusal::Lost("the socket overran".to_owned()));
                    }
                    if self.is_frame(&message) {
                        return Ok(message);
                    }
                    tracing::debug!(?message, "the kernel says what nobody asked");
                }
                Err(_elapsed) => patience -= 1,
            }
        }
        Err(Refusal::Lost(format!("silence for {:?}", 2 * SILENCE)))
    }

    /// Why the answers ended before the last one.
    fn ended(&self) -> String {
        if self.task.is_finished() {
            "the task that serves the socket has ended".to_owned()
        } else {
            "the answers ended early".to_owned()
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("next_sequence", &self.next_sequence).finish_non_exhaustive()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The task would live on as long as an answer is outstanding.
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use enid_core::object::{LinkIndex, Object, Route, RouteKind, TableId};
    use enid_core::plan::Step;
    use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
    use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

    use super::*;
    use crate::wire::write::{Way, dumps, way};

    /// A request that the kernel refuses, in whatever namespace and with whatever rights.
    fn refused() -> NetlinkMessage<Message> {
        let route = Route {
            table: TableId(4_000_000_001),
            destination: "192.0.2.0/24".parse().unwrap(),
            kind: RouteKind::Unicast,
            gateway: None,
            link: Some(LinkIndex(1)),
            on_link: false,
            source: None,
            metric: 77,
        };
        match way(&Step::Delete(Object::Route(route))) {
            Way::Request(ask) => ask,
            other @ (Way::Sysctl(..) | Way::Mark(_) | Way::Unmark(_) | Way::Not(_)) => {
                panic!("{other:?}")
            }
        }
    }

    fn links() -> NetlinkMessage<Message> {
        let [(_, ask), ..] = dumps();
        ask
    }

    fn is_refused(answer: &Answer) -> bool {
        matches!(answer, Err(Refusal::Refused { .. }))
    }

    #[tokio::test]
    async fn a_dump_error_is_an_error_not_an_empty_table() {
        let mut requests = Requests::open(NETLINK_ROUTE).unwrap();
        let ask = || {
            let mut message = RouteMessage::default();
            message.attributes.push(RouteAttribute::Table(4_000_000_002));
            message.header.address_family = rtnetlink::packet_route::AddressFamily::Inet;
            let message = RouteNetlinkMessage::GetRoute(message);
            let mut ask = NetlinkMessage::from(Message::Ask(Box::new(message)));
            ask.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            ask
        };
        let error = requests.dump("listing", ask).await.unwrap_err().to_string();
        assert!(error.starts_with("listing: there is no such object (errno 2"), "{error}");
        assert!(error.contains("FIB table does not exist"), "{error}");
    }

    #[tokio::test]
    async fn a_dead_task_is_an_error_for_steps_and_no_more_than_a_delay_for_a_look() {
        let mut requests = Requests::open(NETLINK_ROUTE).unwrap();
        requests.socket.task.abort();
        assert!(!requests.dump("listing", links).await.unwrap().is_empty());
        requests.socket.task.abort();
        let answers = requests.batch(vec![refused(), refused()]).await;
        assert!(matches!(answers[..], [Err(Refusal::Lost(_)), Err(Refusal::Lost(_))]));
        let answers = requests.batch(vec![refused()]).await;
        assert!(is_refused(&answers[0]), "the socket was opened again: {answers:?}");
    }

    #[tokio::test]
    async fn lost_answers_neither_hang_nor_shift_the_others() {
        let mut requests = Requests::open(NETLINK_ROUTE).unwrap();
        requests.socket = Socket::try_open(NETLINK_ROUTE, Some(1)).unwrap();
        let answers = requests.batch(vec![refused(); 1000]).await;
        assert_eq!(answers.len(), 1000);
        assert!(is_refused(&answers[0]), "{:?}", answers[0]);
        let lost = |answer: &Answer| matches!(answer, Err(Refusal::Lost(_)));
        assert!(lost(&answers[999]), "{:?}", answers[999]);
        let first_lost = answers.iter().position(lost).unwrap();
        assert!(answers[first_lost..].iter().all(lost));
        let answers = requests.batch(vec![refused(); 128]).await;
        assert!(answers.iter().all(is_refused), "the socket was opened again: {answers:?}");
    }

    #[tokio::test]
    async fn a_request_given_up_takes_no_later_answer() {
        let mut requests = Requests::open(NETLINK_ROUTE).unwrap();
        {
            let mut batch = std::pin::pin!(requests.batch(vec![refused(); 3]));
            let polled = futures::poll!(batch.as_mut());
            assert!(polled.is_pending());
        }
        assert!(requests.unfinished);
        assert!(!requests.dump("listing", links).await.unwrap().is_empty());
        assert!(!requests.unfinished);
    }

    #[tokio::test]
    async fn a_transaction_that_is_refused_as_a_whole_is_refused_at_once() {
        const NO_SUBSYSTEM: u8 = 63;
        let message = |kind: u16, flags: u16| {
            let body = vec![0, 0, 0, NO_SUBSYSTEM];
            let mut ask = NetlinkMessage::from(Message::Bytes { kind, body });
            ask.header.flags = NLM_F_REQUEST | flags;
            ask
        };
        let asks = || vec![message(16, 0), message(0, NLM_F_ACK), message(17, 0)];
        let mut requests = Requests::open(NETLINK_NETFILTER).unwrap();
        for _ in 0..2 {
            let start = std::time::Instant::now();
            let answer = requests.transaction(asks()).await;
            assert!(is_refused(&answer), "{answer:?}");
            assert!(start.elapsed() < SILENCE, "{:?}", start.elapsed());
        }
    }

    #[test]
    fn the_kernels_words_are_found_behind_the_quoted_request() {
        let words = b"\x0b\x00\x01\x00no way\x00\x00";
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(-22);
        error.header = [&[16, 0, 0, 0][..], &[0; 12], words].concat();
        let expected = Err(Refusal::Refused { errno: 22, message: Some("no way".to_owned()) });
        assert_eq!(answer_of(&error, NLM_F_CAPPED), expected);
        error.header = [&[21, 0, 0, 0][..], &[0; 20], words].concat();
        assert_eq!(answer_of(&error, 0), expected, "a request of 21 bytes, quoted in full");
        error.header = vec![0; 3];
        let expected = Err(Refusal::Refused { errno: 22, message: None });
        assert_eq!(answer_of(&error, 0), expected, "cut off");
    }
}
