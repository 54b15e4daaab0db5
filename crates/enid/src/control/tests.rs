//! The control socket with real clients and a main loop that answers by rote.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chronicle::Chronicle;
use enid_control::status::{Health, Metadata, Verdict};
use enid_control::{
    Affected, Client, ClientError, Metrics, Objects, Plan, Refreshed, Refused, Reloaded, Reply,
    Request, SCHEMA, Status, Target, Waited,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::permission::Peer;
use super::{Call, Limits, Server, serve, serve_within};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

const LIMITS: Limits = Limits {
    request: 1000,
    idle: Duration::from_millis(300),
    write: Duration::from_millis(300),
    answer: Duration::from_millis(500),
    pace: Duration::from_millis(1),
};

/// Runs a test next to a main loop that answers everything at once, but leaves a `Refresh` with
/// `wait` unanswered.
fn with_daemon<T: Future<Output = ()>>(limits: Limits, test: impl FnOnce(PathBuf) -> T) {
    with_main_loop(limits, rote, test);
}

fn with_main_loop<T: Future<Output = ()>>(
    limits: Limits,
    main_loop: impl AsyncFnOnce(Server),
    test: impl FnOnce(PathBuf) -> T,
) {
    block_on(async {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("control.sock");
        let server = serve_within(&path, None, Chronicle::default(), limits).await.unwrap();
        let test = timeout(LONG, test(path));
        tokio::select! {
            result = test => result.unwrap(),
            () = main_loop(server) => panic!("the main loop ended"),
        }
    });
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

async fn rote(mut server: Server) {
    let mut unanswered = Vec::new();
    loop {
        let Call { request, privileged: _, reply } = server.next().await;
        if matches!(request, Request::Refresh { wait: true, .. } | Request::Wait { .. }) {
            unanswered.push(reply);
        } else {
            // A client that has gone is its own affair.
            let _ = reply.send(answer(request));
        }
    }
}

fn answer(request: Request) -> Result<Reply, Refused> {
    match request {
        Request::Status => Ok(Reply::Status(Box::new(status()))),
        Request::Plan => Ok(Reply::Plan(Plan::new(Vec::new()))),
        Request::Objects => {
            Ok(Reply::Objects(Box::new(Objects { schema: SCHEMA, enis: vec![], left: vec![] })))
        }
        Request::Explain { what } => {
            Err(Refused::NoSuchSubject { what, known: vec!["eni-1 (ens6)".to_owned()] })
        }
        Request::Refresh { .. } => Ok(Reply::Refreshed(Refreshed {
            verdict: Verdict::Converged,
            timed_out: false,
            waiting: Vec::new(),
        })),
        Request::Release { target: Target::Eni(eni) }
        | Request::Unhold { target: Target::Eni(eni) }
            if eni != "ens6" =>
        {
            Err(Refused::NoSuchEni { eni, known: vec!["eni-1 (ens6)".to_owned()] })
        }
        Request::Release { .. }
        | Request::Unhold { .. }
        | Request::Drop { .. }
        | Request::Hold { .. } => {
            Ok(Reply::Affected(Affected { enis: vec!["eni-1 (ens6)".to_owned()] }))
        }
        Request::Wait { .. } => Ok(Reply::Waited(Waited { met: true, waiting: Vec::new() })),
        Request::Events { .. } => unreachable!("the main loop is not asked"),
        Request::Metrics => Ok(Reply::Metrics(Metrics::new("# EOF\n".to_owned()))),
        Request::Reload => Ok(Reply::Reloaded(Reloaded { changed: false, notices: Vec::new() })),
    }
}

fn status() -> Status {
    Status {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        verdict: Verdict::Converged,
        since_seconds: 3,
        metadata: Metadata {
            health: Health::Ok,
            since_seconds: 3,
            reason: None,
            endpoint: None,
            requests: 12,
            poll_interval_ms: 5000,
            next_poll_ms: None,
            read_seconds: None,
        },
        last_pass: None,
        last_error: None,
        enis: Vec::new(),
    }
}

/// A client that says what it likes.
struct Raw(UnixStream);

impl Raw {
    async fn connect(path: &Path) -> Self {
        Self(UnixStream::connect(path).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn reply(&mut self) -> Value {
        let mut bytes = Vec::new();
        loop {
            match self.0.read_u8().await.unwrap() {
                0 => return serde_json::from_slice(&bytes).unwrap(),
                byte => bytes.push(byte),
            }
        }
    }

    /// Waits until the server has hung up.
    async fn end(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest).await {
            Ok(_) => assert_eq!(rest, b"", "something came before the end"),
            // What it had not read yet was thrown away.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn each_request_is_answered_to_the_client_of_this_project() {
    with_daemon(Limits::USUAL, async |path| {
        let mut client = Client::connect(&path).await.unwrap();
        assert_eq!(client.status().await.unwrap(), status());
        assert_eq!(client.plan().await.unwrap(), Plan::new(Vec::new()));
        let refreshed = client.refresh(false, LONG).await.unwrap();
        assert_eq!(refreshed.verdict, Verdict::Converged);
        let affected = client.release(Target::All).await.unwrap();
        assert_eq!(affected.enis, ["eni-1 (ens6)"]);
        client.drop("10.0.0.9".parse().unwrap()).await.unwrap();
        let refused = client.unhold(Target::Eni("ens9".to_owned())).await;
        assert!(
            matches!(
                &refused,
                Err(ClientError::Refused(Refused::NoSuchEni { eni, .. })) if eni == "ens9"
            ),
            "{refused:?}"
        );
        // An error is an answer: the connection goes on.
        assert_eq!(client.status().await.unwrap(), status());
    });
}

#[test]
fn a_stuck_client_does_not_hold_up_another() {
    with_daemon(Limits::USUAL, async |path| {
        let mut half_a_request = Raw::connect(&path).await;
        half_a_request.send(b"{\"method\":").await;
        let mut waiting = Raw::connect(&path).await;
        waiting
            .send(b"{\"method\":\"io.enid.Control.Refresh\",\"parameters\":{\"wait\":true}}\0")
            .await;
        // This one asks and asks, and never takes an answer.
        let deaf = Raw::connect(&path).await;
        for _ in 0..5000 {
            let request = b"{\"method\":\"org.varlink.service.GetInfo\"}\0";
            if deaf.0.try_write(request).is_err() {
                tokio::task::yield_now().await;
            }
        }
        let mut client = Client::connect(&path).await.unwrap();
        assert_eq!(client.status().await.unwrap(), status());
    });
}

#[test]
fn a_client_that_takes_no_answers_is_let_go() {
    with_daemon(LIMITS, async |path| {
        let mut deaf = Raw::connect(&path).await;
        let request = br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.enid.Control"}}"#;
        // The server hangs up while this is still asking.
        while deaf.0.write_all(request).await.is_ok() && deaf.0.write_all(b"\0").await.is_ok() {}
    });
}

#[test]
fn half_a_request_is_not_waited_for_for_ever() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client.send(b"{\"method\":").await;
        client.end().await;
    });
}

#[test]
fn a_request_past_the_limit_is_refused() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client.send(&vec![b' '; 1001]).await;
        let reply = client.reply().await;
        assert_eq!(reply["error"], "io.enid.Control.Malformed");
        assert_eq!(reply["parameters"]["message"], "it is longer than 1000 bytes");
        client.end().await;
    });
}

#[test]
fn what_is_no_call_is_refused_and_ends_the_connection() {
    with_daemon(LIMITS, async |path| {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n\0"[..],
            b"\0",
            b"[]\0",
            b"{}\0",
            b"{\"method\":7}\0",
            b"{\"method\":\"a.B\",\"parameters\":[]}\0",
            b"\xff\xfe\0",
        ] {
            let mut client = Raw::connect(&path).await;
            client.send(bytes).await;
            assert_eq!(client.reply().await["error"], "io.enid.Control.Malformed", "{bytes:?}");
            client.end().await;
        }
        let nested = vec![b'['; 900];
        let mut client = Raw::connect(&path).await;
        client.send(&nested).await;
        client.send(b"\0").await;
        assert_eq!(client.reply().await["error"], "io.enid.Control.Malformed");
    });
}

#[test]
fn errors_have_the_shape_that_varlink_defines() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        for (call, reply) in [
            (
                json!({ "method": "io.enid.Control.Explode" }),
                json!({
                    "error": "org.varlink.service.MethodNotFound",
                    "parameters": { "method": "io.enid.Control.Explode" },
                }),
            ),
            (
                json!({ "method": "io.systemd.Machine.List" }),
                json!({
                    "error": "org.varlink.service.InterfaceNotFound",
                    "parameters": { "interface": "io.systemd.Machine" },
                }),
            ),
            (
                json!({ "method": "Status" }),
                json!({
                    "error": "org.varlink.service.MethodNotFound",
                    "parameters": { "method": "Status" },
                }),
            ),
            (
                json!({ "method": "io.enid.Control.Drop", "parameters": { "address": "ten" } }),
                json!({
                    "error": "org.varlink.service.InvalidParameter",
                    "parameters": { "parameter": "address" },
                }),
            ),
            (
                json!({ "method": "io.enid.Control.Status", "upgrade": true }),
                json!({
                    "error": "org.varlink.service.MethodNotImplemented",
                    "parameters": { "method": "io.enid.Control.Status" },
                }),
            ),
            (
                json!({ "method": "io.enid.Control.Release", "parameters": { "eni": "ens9" } }),
                json!({
                    "error": "io.enid.Control.NoSuchEni",
                    "parameters": {
                        "eni": "ens9",
                        "known": ["eni-1 (ens6)"],
                        "message": "no ENI here has the id, MAC address or link name \"ens9\"; there are: eni-1 (ens6)",
                    },
                }),
            ),
        ] {
            client.send(call.to_string().as_bytes()).await;
            client.send(b"\0").await;
            assert_eq!(client.reply().await, reply, "{call}");
        }
    });
}

#[test]
fn the_service_describes_itself() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client.send(b"{\"method\":\"org.varlink.service.GetInfo\",\"parameters\":{}}\0").await;
        let info = client.reply().await;
        assert_eq!(info["parameters"]["product"], "enid");
        for interface in info["parameters"]["interfaces"].as_array().unwrap() {
            let call = json!({
                "method": "org.varlink.service.GetInterfaceDescription",
                "parameters": { "interface": interface },
            });
            client.send(call.to_string().as_bytes()).await;
            client.send(b"\0").await;
            let reply = client.reply().await;
            let description = reply["parameters"]["description"].as_str().unwrap();
            let line = format!("interface {}", interface.as_str().unwrap());
            assert!(description.lines().any(|l| l == line), "{line}");
        }
    });
}

#[test]
fn two_requests_in_one_write_get_two_replies_in_their_order() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client
            .send(
                b"{\"method\":\"io.enid.Control.Status\"}\0{\"method\":\"io.enid.Control.Plan\"}\0",
            )
            .await;
        assert_eq!(client.reply().await["parameters"]["status"]["schema"], 1);
        assert_eq!(
            client.reply().await,
            json!({ "parameters": { "plan": { "schema": 1, "daemon": true, "steps": [] } } })
        );
    });
}

#[test]
fn a_oneway_call_gets_no_reply() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client
            .send(b"{\"method\":\"io.enid.Control.Status\",\"oneway\":true}\0{\"method\":\"io.enid.Control.Plan\"}\0")
            .await;
        assert!(client.reply().await["parameters"]["plan"].is_object());
    });
}

#[test]
fn a_client_that_sends_nothing_more_still_gets_its_reply() {
    with_daemon(LIMITS, async |path| {
        let mut client = Raw::connect(&path).await;
        client.send(b"{\"method\":\"io.enid.Control.Plan\"}\0").await;
        client.0.shutdown().await.unwrap();
        assert!(client.reply().await["parameters"]["plan"].is_object());
        client.end().await;
    });
}

#[test]
fn the_main_loop_learns_that_a_waiting_client_has_gone() {
    let gone = std::rc::Rc::new(std::cell::Cell::new(false));
    let seen = std::rc::Rc::clone(&gone);
    let main_loop = async move |mut server: Server| {
        let mut call = server.next().await;
        call.reply.closed().await;
        seen.set(true);
        rote(server).await;
    };
    with_main_loop(Limits::USUAL, main_loop, async |path| {
        let mut waiting = Raw::connect(&path).await;
        waiting
            .send(b"{\"method\":\"io.enid.Control.Refresh\",\"parameters\":{\"wait\":true}}\0")
            .await;
        drop(waiting);
        while !gone.get() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_main_loop_that_does_not_answer_is_told_as_busy() {
    let main_loop = async |_server: Server| std::future::pending().await;
    with_main_loop(LIMITS, main_loop, async |path| {
        let mut client = Client::connect(&path).await.unwrap();
        assert!(matches!(client.status().await, Err(ClientError::Refused(Refused::Busy { .. }))));
    });
}

#[test]
fn one_client_too_many_is_told_so() {
    with_daemon(Limits::USUAL, async |path| {
        let mut clients = Vec::new();
        for _ in 0..32 {
            let mut client = Client::connect(&path).await.unwrap();
            client.status().await.unwrap();
            clients.push(client);
        }
        let mut one_more = Client::connect(&path).await.unwrap();
        assert!(matches!(one_more.status().await, Err(ClientError::Refused(Refused::Busy { .. }))));
        clients.pop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut now = Client::connect(&path).await.unwrap();
        now.status().await.unwrap();
    });
}

#[test]
fn only_root_and_the_daemons_own_user_may_change_anything() {
    let rules = |uid, own| Peer { uid, gid: 0 }.rules(own);
    assert!(rules(0, 990));
    assert!(rules(990, 990));
    assert!(!rules(1000, 990));
    assert!(!rules(1000, 0));
    assert!(!Request::Status.changes());
    assert!(!Request::Plan.changes());
    assert!(!Request::Metrics.changes());
    assert!(Request::Release { target: Target::All }.changes());
}

#[test]
fn a_second_daemon_is_told_that_there_is_one() {
    with_daemon(LIMITS, async |path| {
        let error = serve(&path, None, Chronicle::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another enid already serves"), "{error}");
        // And has taken nothing away.
        Client::connect(&path).await.unwrap();
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    block_on(async {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::connect(&path).await, Err(ClientError::NoDaemon { .. })));
        let server = serve(&path, None, Chronicle::default()).await.unwrap();
        Client::connect(&path).await.unwrap();
        drop(server);
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        let error = serve(&path, None, Chronicle::default()).await.unwrap_err();
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    });
}

#[test]
fn everybody_may_connect() {
    use std::os::unix::fs::PermissionsExt;
    with_daemon(LIMITS, async |path| {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    });
}

#[test]
fn no_daemon_is_an_error_of_its_own() {
    block_on(async {
        let directory = TempDir::new().unwrap();
        assert!(matches!(
            Client::connect(&directory.path().join("none")).await,
            Err(ClientError::NoDaemon { .. })
        ));
    });
}
