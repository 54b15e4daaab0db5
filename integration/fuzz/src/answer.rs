//! Answers of a metadata service, as bytes of a connection: whatever they are, each request has an
//! end, and what comes out is text of bounded length.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use enid_core::metadata::{Answer, Ask, Depth, Failure, Poll};
use enid_core::object::Mac;
use enid_core::time::Instant;
use enid_imds::{Client, Options, Via};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::text::assert_printable;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 10;
const TOKEN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken";

thread_local! {
    /// One for all inputs: building it costs more than a request.
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// What the service sends: the first byte chooses whether to the token's request as well.
pub fn answer(bytes: &[u8]) {
    let Some((first, wire)) = bytes.split_first() else { return };
    let token = if first & 1 == 1 { wire } else { TOKEN };
    let polled = RUNTIME.with_borrow_mut(|runtime| {
        let runtime = match runtime {
            Some(runtime) => runtime,
            none => {
                none.insert(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
            }
        };
        runtime.block_on(poll(token, wire))
    });
    // Without a socket there is nothing to be tried.
    let Ok(poll) = polled else { return };
    let enis = poll.enis.values();
    let keys = enis.flat_map(|eni| eni.keys.values().chain([&eni.listing]));
    for answer in poll.mac.iter().chain(&poll.macs).chain(keys) {
        match answer {
            Answer::Text(text) => assert!(text.len() <= LONGEST),
            Answer::NotFound => {}
            Answer::Failed(failure) => {
                assert!(!matches!(failure, Failure::Lacks(_)));
                assert_printable(&failure.to_string());
            }
        }
    }
}

/// One poll of a service that sends these bytes to each request and closes.
async fn poll(token: &[u8], wire: &[u8]) -> io::Result<Poll> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let options = Options {
        endpoints: vec![format!("http://{}", listener.local_addr()?)],
        connect_timeout: Duration::from_millis(100),
        request_timeout: Duration::from_millis(100),
        poll_timeout: Duration::from_millis(8),
        rate: 1_000_000,
        ..Options::default()
    };
    let client = Client::new(options).map_err(io::Error::other)?;
    let ask = Ask { top: true, enis: BTreeMap::from([(MAC, Depth::Lists)]) };
    let serving = async {
        loop {
            // The client's end of a connection is its own business.
            let _ = serve(&listener, token, wire).await;
        }
    };
    tokio::select! {
        poll = client.poll(&ask, Instant(Duration::from_secs(100)), &[Via::Any]) => Ok(poll),
        () = serving => Err(io::ErrorKind::Other.into()),
    }
}

async fn serve(listener: &TcpListener, token: &[u8], wire: &[u8]) -> io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    let mut request = [0; 1024];
    let count = stream.read(&mut request).await?;
    let asks_token = request.get(..count).is_some_and(|request| request.starts_with(b"PUT"));
    stream.write_all(if asks_token { token } else { wire }).await?;
    stream.shutdown().await
}
