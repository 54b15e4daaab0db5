//! The control socket: what clients send to the daemon, and what `enictl` hears from whoever
//! listens there.

use std::task::{Context, Poll, Waker};

use enid_control::varlink::{CallFrame, FrameError, Frames, Method, ReplyFrame, encode};
use enid_control::{Affected, Plan, Refreshed, Refused, Request, Status};
use serde_json::Value;

/// The daemon reads no longer request.
const LONGEST_REQUEST: usize = 64 << 10;

/// What clients send.
pub fn call(bytes: &[u8]) {
    for message in messages(bytes) {
        let Ok(call) = serde_json::from_slice::<CallFrame>(&message) else { continue };
        match Method::of(call, "0.0.0") {
            Ok(Method::Control(request)) => {
                let parameters = request.parameters().as_object().cloned().unwrap_or_default();
                assert_eq!(Request::from_wire(request.name(), parameters), Ok(request));
            }
            Ok(Method::Service(parameters)) => assert!(parameters.is_object()),
            Err(refused) => {
                assert!(encode(&ReplyFrame::from(&refused)).is_ok_and(|bytes| one_message(&bytes)));
                let (error, parameters) = refused.to_wire();
                assert_eq!(Refused::from_wire(&error, parameters), refused);
            }
        }
    }
}

/// What comes back.
pub fn reply(bytes: &[u8]) {
    for message in messages(bytes) {
        let Ok(reply) = serde_json::from_slice::<ReplyFrame>(&message) else { continue };
        let parameters = reply.parameters.unwrap_or_default();
        if let Some(error) = reply.error {
            assert!(!Refused::from_wire(&error, parameters).to_string().is_empty());
            continue;
        }
        survives::<Status>(parameters.get("status"));
        survives::<Plan>(parameters.get("plan"));
        survives::<Refreshed>(Some(&parameters));
        survives::<Affected>(Some(&parameters));
    }
}

/// What is understood says the same once more.
fn survives<T>(value: Option<&Value>)
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let Some(read) = value.cloned().and_then(|value| serde_json::from_value::<T>(value).ok())
    else {
        return;
    };
    let again = serde_json::to_value(&read).and_then(serde_json::from_value::<T>);
    assert_eq!(again.ok(), Some(read));
}

fn one_message(bytes: &[u8]) -> bool {
    bytes.iter().position(|byte| *byte == 0) == Some(bytes.len() - 1)
}

/// All messages up to the first error or the end.
fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Frames::new(bytes, LONGEST_REQUEST);
    let all = async move {
        let mut messages = Vec::new();
        loop {
            match frames.next().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break messages,
                Err(error) => {
                    assert!(matches!(error, FrameError::TooLong { .. } | FrameError::Truncated));
                    break messages;
                }
            }
        }
    };
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(messages) = std::pin::pin!(all).poll(&mut context) else {
        panic!("reading from memory waits for nothing");
    };
    for message in &messages {
        assert!(!message.contains(&0) && message.len() <= LONGEST_REQUEST);
    }
    messages
}
