//! Promise: everybody on the machine may look, only who was chosen may change something, and nobody
//! who connects to the control socket can disturb the daemon or those who use it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::vpc::Output;
use integration::{Daemon, Launch, at_once, binary, eventually, trial};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::pair::{PATIENCE, Pair, comes_to_rest};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("access::members_of_the_control_group_may_change_something", group),
        trial("access::clients_that_misbehave_disturb_nobody", misbehaving),
        trial("access::the_socket_describes_what_it_offers", described),
    ]
}

/// Somebody on the machine: a user and a group id, the way `SO_PEERCRED` tells them.
struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
}

/// Listed in the group.
const LISTED: User = User { name: "listed", uid: 41_001, gid: 41_001 };
/// Whose own group it is.
const OWN: User = User { name: "own", uid: 41_002, gid: GROUP };
/// Not in it.
const STRANGER: User = User { name: "stranger", uid: 41_003, gid: 41_003 };
const GROUP: u32 = 41_100;

/// A daemon on whose machine there are these users: the files that say so are its own.
fn with_users(pair: &Pair) -> anyhow::Result<Daemon> {
    let mut daemon = Daemon::prepare(&pair.instance, &Launch::default(), "")?;
    let config = daemon.config();
    let directory = config.parent().context("no directory")?;
    // Others come to the socket.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    let (users, groups) = (directory.join("passwd"), directory.join("group"));
    let mut text = "root:x:0:0::/:/bin/sh\n".to_owned();
    for User { name, uid, gid } in [LISTED, OWN, STRANGER] {
        text.push_str(&format!("{name}:x:{uid}:{gid}::/:/bin/sh\n"));
    }
    std::fs::write(&users, text)?;
    std::fs::write(&groups, format!("root:x:0:\nnetops:x:{GROUP}:somebody,{}\n", LISTED.name))?;
    let mount = format!(
        "mount --bind {} /etc/passwd && mount --bind {} /etc/group && exec \"$@\"",
        users.display(),
        groups.display()
    );
    daemon.set_launch(&Launch::default().under(&["unshare", "--mount", "sh", "-c", &mount, "sh"]));
    daemon.restart()?;
    daemon.wait_ready(PATIENCE)?;
    comes_to_rest(&daemon)?;
    Ok(daemon)
}

fn enictl_as(pair: &Pair, daemon: &Daemon, user: &User, words: &[&str]) -> anyhow::Result<Output> {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let (program, socket) = (binary("enictl")?, daemon.control_socket());
    let (program, socket) = (program.to_string_lossy(), socket.to_string_lossy());
    let become_user = ["setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups"];
    let command = [&*program, "--socket", &socket];
    let said = pair.instance.output(&[&become_user[..], &command, words].concat())?;
    // An ordinary user's namespace has no users but its root.
    ensure!(!said.stderr.starts_with("setpriv: "), "run this trial as root: {said:?}");
    Ok(said)
}

fn group() -> anyhow::Result<()> {
    let pair = Pair::attached()?;
    let mut daemon = with_users(&pair)?;
    let may = |user: &User, may: bool, whose: &str| -> anyhow::Result<()> {
        for words in [&["status"][..], &["plan"], &["events"], &["wait", "--online"]] {
            let said = enictl_as(&pair, &daemon, user, words)?;
            ensure!(said.code == Some(0), "{} may not even look: {said:?}", user.name);
        }
        for words in [&["refresh"][..], &["hold", "ens6"], &["unhold", "ens6"], &["reload"]] {
            let said = enictl_as(&pair, &daemon, user, words)?;
            if may {
                ensure!(said.code == Some(0), "{} may not: {said:?}", user.name);
                continue;
            }
            ensure!(said.code == Some(5), "{} may: {said:?}", user.name);
            let method = words[0];
            let refusal = format!("{whose}, not for uid {}: use sudo", user.uid);
            ensure!(said.stderr.contains(&refusal), "{said:?}");
            ensure!(said.stderr.to_lowercase().contains(method), "{said:?}");
        }
        let second = pair.second_status(&daemon)?;
        ensure!(second["state"] == "managed", "somebody else's word counted: {second}");
        Ok(())
    };
    let nobody = "root, enid's own user";
    for user in [&LISTED, &OWN, &STRANGER] {
        may(user, false, nobody)?;
    }
    daemon.configure("control_group = \"netops\"\n")?;
    daemon.enictl().run(&["reload"])?.success()?;
    may(&LISTED, true, "")?;
    may(&OWN, true, "")?;
    may(&STRANGER, false, &format!("{nobody} and the members of the group netops"))?;
    daemon.configure("control_group = \"no-such-group\"\n")?;
    daemon.enictl().run(&["reload"])?.success()?;
    for user in [&LISTED, &OWN, &STRANGER] {
        may(user, false, &format!("{nobody} and the members of the group no-such-group"))?;
    }
    daemon.enictl().run(&["refresh", "--wait"])?.success()?;
    daemon.terminate()
}

fn client(daemon: &Daemon) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(daemon.control_socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One message, up to its NUL byte.
fn message(stream: &mut UnixStream) -> anyhow::Result<Value> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte).context("no whole reply")?;
        if byte == [0] {
            return serde_json::from_slice(&bytes).context("a reply that is no JSON");
        }
        bytes.extend(byte);
    }
}

fn call(stream: &mut UnixStream, method: &str, parameters: &Value) -> anyhow::Result<Value> {
    let call = json!({ "method": method, "parameters": parameters });
    stream.write_all(format!("{call}\0").as_bytes())?;
    message(stream)
}

/// Whoever asks gets an answer, and what is broken is repaired.
fn goes_on(pair: &Pair, daemon: &Daemon) -> anyhow::Result<()> {
    for words in [&["status"][..], &["plan"], &["events"], &["refresh", "--wait"]] {
        daemon.enictl().run(words)?.success()?;
    }
    pair.instance.run(&["ip", "rule", "del", "oif", "ens6", "lookup", "20001"])?;
    eventually(PATIENCE, "it is repaired", daemon, || {
        let rules = pair.instance.run(&["ip", "rule"])?;
        ensure!(rules.contains("oif ens6 lookup 20001"), "{rules}");
        Ok(())
    })
}

fn misbehaving() -> anyhow::Result<()> {
    let (pair, mut daemon) = Pair::managed("")?;
    let status = b"{\"method\":\"io.enid.Control.Status\"}\0";

    // They ask without end and take no answer; they send half a request; they say nothing.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut deaf = client(&daemon)?;
        deaf.set_nonblocking(true)?;
        while matches!(deaf.write(&status.repeat(100)), Ok(written) if written > 0) {}
        let mut half = client(&daemon)?;
        half.write_all(b"{\"method\":\"io.enid.Contr")?;
        stuck.extend([deaf, half, client(&daemon)?]);
    }
    goes_on(&pair, &daemon).context("beside clients that are stuck")?;

    // What is no call is refused by name, and ends the connection.
    let endless = [b"{\"method\":\"", &b"a".repeat(70_000)[..], b"\"}\0"].concat();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n\0"[..], b"\xff\xfe\0", b"[]\0", b"\0", &endless] {
        let mut client = client(&daemon)?;
        // The daemon may hang up before it has heard all of it.
        let _ = client.write_all(garbage);
        let said = message(&mut client)?;
        ensure!(said["error"] == "io.enid.Control.Malformed", "{said}");
        let ended = client.read(&mut [0; 64]);
        ensure!(matches!(ended, Ok(0) | Err(_)), "the connection goes on after {garbage:?}");
    }
    let mut wrong = client(&daemon)?;
    for (method, parameters, error) in [
        ("io.enid.Control.Explode", json!({}), "org.varlink.service.MethodNotFound"),
        ("com.example.Ping", json!({}), "org.varlink.service.InterfaceNotFound"),
        ("io.enid.Control.Drop", json!({}), "org.varlink.service.InvalidParameter"),
        ("io.enid.Control.Hold", json!({ "eni": 7 }), "org.varlink.service.InvalidParameter"),
    ] {
        let said = call(&mut wrong, method, &parameters)?;
        ensure!(said["error"] == error, "{method}: {said}");
    }
    goes_on(&pair, &daemon).context("after garbage")?;
    drop(stuck);

    // Many at once, each with many questions.
    at_once(9, |number| {
        if number == 0 {
            return goes_on(&pair, &daemon).context("beside many clients");
        }
        let mut client = client(&daemon)?;
        for _ in 0..50 {
            let said = call(&mut client, "io.enid.Control.Status", &json!({}))?;
            ensure!(said["parameters"]["status"]["verdict"].is_string(), "{said}");
        }
        Ok(())
    })?;
    comes_to_rest(&daemon)?;
    daemon.terminate()
}

/// As `varlinkctl introspect` asks.
fn described() -> anyhow::Result<()> {
    let pair = Pair::build()?;
    let mut daemon = Daemon::ready(&pair.instance, "")?;
    let mut client = client(&daemon)?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    let info = call(&mut client, "org.varlink.service.GetInfo", &json!({}))?;
    let interfaces =
        info["parameters"]["interfaces"].as_array().with_context(|| info.to_string())?;
    ensure!(interfaces.contains(&json!("io.enid.Control")), "{info}");
    let said = call(
        &mut client,
        "org.varlink.service.GetInterfaceDescription",
        &json!({ "interface": "io.enid.Control" }),
    )?;
    let text = said["parameters"]["description"].as_str().with_context(|| said.to_string())?;
    ensure!(text.contains("interface io.enid.Control\n"), "{text}");
    // Every method that is described is there.
    let methods = text.lines().filter_map(|line| line.strip_prefix("method ")?.split('(').next());
    let methods: Vec<&str> = methods.collect();
    ensure!(methods.len() >= 10, "{methods:?}");
    for method in methods {
        let said =
            call(&mut client, &format!("io.enid.Control.{method}"), &json!({ "no-such": 1 }))?;
        ensure!(said["error"] == "org.varlink.service.InvalidParameter", "{method}: {said}");
    }
    daemon.terminate()
}
