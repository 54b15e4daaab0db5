//! What users notice of the configuration: what is refused and how, what wins, what is shown.

use std::time::Duration;

use enid_core::choice::{Arp, Care, ExtraRoute, Match, Prefixes, SubnetName, Wishes};
use enid_core::config::Mtu;
use enid_core::object::{EniId, Mac};

use super::*;

fn error(text: &str) -> String {
    parse(Path::new("/etc/enid/enid.toml"), text).unwrap_err().to_string()
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_a_suggestion() {
    let text = error("poll_interval = \"5s\"\n\n[removal]\ngrase = \"1m\"\n");
    assert!(text.starts_with("/etc/enid/enid.toml:4: unknown field `grase`"), "{text}");
    assert!(text.ends_with("(did you mean `grace`?)"), "{text}");
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (text, part) in [
        ("poll_interval = 5", "line"),
        ("poll_interval = \"5 parsecs\"", "\"5s\""),
        ("poll_interval = \"1ms\"", "the shortest is \"100ms\""),
        ("table_base = 3", "256"),
        ("primary_rules = \"allways\"", "`auto`"),
        ("ignore_addresses = [\"10.0.0\"]", "10.0.0"),
        ("[links]\nmtu = 100", "1280"),
        ("[links]\nmtu = true", "`links.mtu`"),
        ("prefixes = \"locl\"", "did you mean `local`"),
        ("poll_interval = 5", "`poll_interval`"),
        ("[metadata]\nendpoints = [\"https://example.org\"]", "endpoint"),
        ("[removal]\nconfirmations = 0", "between 1"),
        ("[metrics]\ntextfile = \"enid.prom\"", "/var/lib/prometheus"),
        ("[metrics]\ntextfile = \"/tmp/enid.txt\"", "end in .prom"),
        ("[log]\nlevel = \"a=b=c\"", "log level"),
    ] {
        let text = format!("line {}", error(text));
        assert!(text.contains(part), "{text}");
        assert!(text.contains("enid.toml:"), "{text}");
    }
}

#[test]
fn later_drop_ins_win_and_leave_the_rest_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("enid.toml");
    fs::write(&file, "table_base = 30000\n[removal]\ngrace = \"1s\"\n").unwrap();
    fs::create_dir(directory.path().join("enid.d")).unwrap();
    fs::write(directory.path().join("enid.d/20.toml"), "[removal]\ngrace = \"3s\"\n").unwrap();
    fs::write(directory.path().join("enid.d/10.toml"), "[removal]\ngrace = \"2s\"\n").unwrap();
    fs::write(directory.path().join("enid.d/30.toml~"), "nonsense").unwrap();
    let config = load(Some(&file)).unwrap();
    assert_eq!(config.choices.table_base, 30_000);
    assert_eq!(config.choices.removal.grace, Duration::from_secs(3));
    assert_eq!(config.choices.removal.confirmations, 3);
}

#[test]
fn a_file_that_was_asked_for_must_exist() {
    let text = chain(&load(Some(Path::new("/nonexistent/enid.toml"))).unwrap_err());
    assert!(text.contains("/nonexistent/enid.toml"), "{text}");
}

#[test]
fn every_key_is_documented() {
    let documentation = include_str!("../../../../docs/configuration.md");
    for table in TABLES {
        let section = documentation.split("\n## ").find(|section| match table.trim() {
            "" => section.starts_with("Top level"),
            name => section.starts_with(&format!("`{name}`")),
        });
        let section = section.unwrap_or_else(|| panic!("{table} is not documented"));
        assert!(!keys(table).is_empty(), "{table} has no keys");
        for key in keys(table) {
            assert!(section.contains(&format!("| `{key}` |")), "{table}{key} is not documented");
        }
    }
}

/// The keys of a table in the document, each with the default that it names.
fn documented(table: &str) -> Vec<(String, String)> {
    let documentation = include_str!("../../../../docs/configuration.md");
    let name = table.trim();
    let heading = if name.is_empty() { "Top level".to_owned() } else { format!("`{name}`") };
    let mut sections = documentation.split("\n## ");
    let section = sections.find(|section| section.starts_with(&heading)).unwrap();
    // Of an ENI, the second table; the first is about what `match` takes.
    let (_, rows) = section.rsplit_once("| key | default | meaning |\n|---|---|---|\n").unwrap();
    let rows = rows.lines().take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        (cell(cells[1]), cell(cells[2]))
    })
    .collect()
}

#[test]
fn the_document_names_the_defaults_and_no_key_that_is_not_there() {
    let file = Path::new("/etc/enid/enid.toml");
    // Said in words: they hang together with something else.
    let in_words =
        ["runtime_directory", "control_socket", "[[eni]]match", "[[eni]]mtu", "[[eni]]prefixes"];
    let mut text = String::new();
    for table in TABLES {
        let rows = documented(table);
        let known: Vec<&String> = rows.iter().map(|(key, _)| key).collect();
        for (key, _) in &rows {
            assert!(keys(table).contains(key), "{table}{key} is documented and is no key");
        }
        assert_eq!(known.len(), keys(table).len(), "{table}: {known:?}");
        text.push_str(table);
        if table.contains("eni") {
            text.push_str("match.id = \"eni-1\"\n");
        }
        for (key, default) in rows {
            if !in_words.contains(&&*format!("{}{key}", table.trim())) {
                text.push_str(&format!("{key} = {default}\n"));
            }
        }
    }
    let mut set = merge(file.to_owned(), vec![parse(file, &text).unwrap()]);
    let entries = std::mem::take(&mut set.choices.enis);
    assert_eq!(set, merge(file.to_owned(), Vec::new()), "a default is not what is documented");
    are_defaults(entries);
}

/// The names of the tables, each as a heading; nothing for the keys outside.
const TABLES: [&str; 8] = [
    "",
    "[metadata]\n",
    "[removal]\n",
    "[links]\n",
    "[neighbours]\n",
    "[metrics]\n",
    "[log]\n",
    "[[eni]]\n",
];

/// The keys that a table may have: the refusal of an unknown one lists them.
fn keys(table: &str) -> Vec<String> {
    let message = error(&format!("{table}no_such_key = 1\n"));
    let keys = message.split('`').skip(3).step_by(2).map(str::to_owned);
    keys.filter(|key| !table.is_empty() || !is_table(key)).collect()
}

fn is_table(key: &str) -> bool {
    ["metadata", "removal", "links", "neighbours", "metrics", "log", "eni"].contains(&key)
}

/// The keys by which an entry may match.
fn match_keys() -> Vec<String> {
    let message = error("[[eni]]\nmatch.no_such_key = 1\n");
    message.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_packaged_file_shows_every_key_with_its_default() {
    let file = Path::new("/etc/enid/enid.toml");
    let packaged = include_str!("../../../../packaging/enid.toml");
    let defaults = merge(file.to_owned(), Vec::new());
    let read = |text: &str| merge(file.to_owned(), vec![parse(file, text).unwrap()]);
    assert_eq!(read(packaged), defaults, "something is set");

    // A setting follows its # at once, words come after a space.
    let mut shown = String::new();
    for line in packaged.lines() {
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        shown.push_str(setting.unwrap_or(line));
        shown.push('\n');
    }
    let mut set = read(&shown);
    let example = std::mem::take(&mut set.choices.enis);
    assert_eq!(set, defaults, "a default is not what is shown");
    for table in TABLES {
        let section = shown.split("\n[").find(|section| {
            let heading = table.trim().trim_start_matches('[');
            section.trim_start_matches('[').starts_with(heading)
        });
        for key in keys(table).iter().filter(|key| *key != "match") {
            let shows = |line: &str| line.starts_with(&format!("{key} = "));
            assert!(section.unwrap().lines().any(shows), "{table}{key} is not shown");
        }
    }
    for key in match_keys() {
        assert!(shown.contains(&format!("\nmatch.{key} = ")), "match.{key} is not shown");
    }

    are_defaults(example);
}

/// What entries set is what holds without them.
fn are_defaults(entries: Vec<Entry>) {
    let every = Choices::default().choice(&enid_core::choice::Identity {
        id: None,
        mac: Mac([0; 6]),
        place: None,
        driver: None,
        subnet: None,
        cidrs: &[],
    });
    let every = every.unwrap();
    for Entry { wishes, .. } in entries {
        let default = Wishes {
            care: wishes.care.map(|_| every.care),
            mtu: wishes.mtu.map(|_| every.mtu),
            prefixes: wishes.prefixes.map(|_| every.prefixes),
            connected_route: wishes.connected_route.map(|_| every.connected_route),
            arp: wishes.arp.map(|_| every.arp),
            routes: wishes.routes.clone(),
            published_ports: wishes.published_ports.map(|_| every.published_ports),
        };
        assert_eq!(wishes, default, "a default of an ENI is not what is shown");
    }
}

/// One file's entries, each with its place.
fn entries(text: &str) -> Vec<Entry> {
    parse(Path::new("/etc/enid/enid.toml"), text).unwrap().enis
}

#[test]
fn the_way_to_every_endpoint_is_watched() {
    let file = Path::new("/etc/enid/enid.toml");
    let text = "[metadata]\nendpoints = [\"http://10.0.9.9:8773\", \"http://[fd00:9::9]\"]\n";
    let config = merge(file.to_owned(), vec![parse(file, text).unwrap()]);
    let watched: Vec<String> = config.choices.metadata.iter().map(ToString::to_string).collect();
    assert_eq!(watched, ["10.0.9.9", "fd00:9::9"]);
}

#[test]
fn an_eni_is_named_by_any_of_its_identities() {
    for (text, matches) in [
        (
            "{ id = \"eni-0123456789abcdef0\" }",
            Match { id: Some(EniId("eni-0123456789abcdef0".to_owned())), ..Match::default() },
        ),
        (
            "{ mac = \"02:00:00:00:00:0A\" }",
            Match { mac: Some(Mac([2, 0, 0, 0, 0, 10])), ..Match::default() },
        ),
        (
            "{ device-number = 1, network-card = 2 }",
            Match { device: Some(1), card: Some(2), ..Match::default() },
        ),
        (
            "{ driver = \"virtio_net\" }",
            Match { driver: Some("virtio_net".to_owned()), ..Match::default() },
        ),
        (
            "{ subnet = \"subnet-0a\" }",
            Match { subnet: Some(SubnetName::Id("subnet-0a".to_owned())), ..Match::default() },
        ),
        (
            "{ subnet = \"2001:DB8:1:0::/64\" }",
            Match {
                subnet: Some(SubnetName::Cidr("2001:db8:1::/64".parse().unwrap())),
                ..Match::default()
            },
        ),
    ] {
        let read = entries(&format!("[[eni]]\nmatch = {text}\nmanage = \"ignore\"\n"));
        assert_eq!(read.len(), 1, "{text}");
        assert_eq!(read[0].matches, matches, "{text}");
        assert_eq!(read[0].wishes.care, Some(Care::Ignore), "{text}");
    }
}

#[test]
fn each_key_of_an_eni_is_read_with_the_line_it_stands_on() {
    let text = "\
[[eni]]
match = { device-number = 1 }
manage = \"addresses\"
mtu = 1400
prefixes = \"local\"
connected_route = true
arp = \"strict\"
published_ports = true
routes = [
    { to = \"10.99.0.0/16\", via = \"10.0.1.77\" },
    { to = \"2001:db8:9::1\" },
]
";
    let read = entries(text);
    let said = |line: usize| {
        let place = format!("/etc/enid/enid.toml:{line}");
        read.iter().find(|entry| entry.place == place).map(|entry| entry.wishes.clone())
    };
    let none = Wishes::default;
    let via = Some("10.0.1.77".parse().unwrap());
    let first = ExtraRoute { destination: "10.99.0.0/16".parse().unwrap(), gateway: via };
    let second = ExtraRoute { destination: "2001:db8:9::1/128".parse().unwrap(), gateway: None };
    for (line, wishes) in [
        (3, Wishes { care: Some(Care::Addresses), ..none() }),
        (4, Wishes { mtu: Some(Mtu::Bytes(1400)), ..none() }),
        (5, Wishes { prefixes: Some(Prefixes::Local), ..none() }),
        (6, Wishes { connected_route: Some(true), ..none() }),
        (7, Wishes { arp: Some(Arp::Strict), ..none() }),
        (8, Wishes { published_ports: Some(true), ..none() }),
        (10, Wishes { routes: vec![first], ..none() }),
        (11, Wishes { routes: vec![second], ..none() }),
    ] {
        assert_eq!(said(line), Some(wishes), "line {line}");
    }
    assert_eq!(read.len(), 8);
}

#[test]
fn an_eni_entry_that_cannot_be_used_is_refused_with_line_key_and_remedy() {
    let id = "match = { id = \"eni-1\" }\n";
    let matching = |text: &str| format!("match = {{ {text} }}\nmanage = \"ignore\"\n");
    let setting = |text: &str| format!("{id}{text}\n");
    let route = |text: &str| setting(&format!("routes = [{{ {text} }}]"));
    for (entry, line, parts) in [
        ("manage = \"ignore\"\n".to_owned(), 2, &["missing field `match`"][..]),
        (matching(""), 3, &["match", "matches nothing", "`device-number`"]),
        (id.to_owned(), 2, &["sets nothing", "`manage`"]),
        (matching("name = \"eth1\""), 3, &["`name`", "after a reboot", "match by one of these"]),
        (matching("interface = \"eth1\""), 3, &["`interface`", "after a reboot"]),
        (matching("device_number = 1"), 3, &["did you mean `device-number`"]),
        (matching("id = \"subnet-1\""), 3, &["match.id", "\"eni-0123456789abcdef0\""]),
        (matching("mac = \"02-00-00-00-00-01\""), 3, &["match.mac", "\"02:00:00:00:00:01\""]),
        (matching("device-number = 100"), 3, &["device-number", "between 0 and 99"]),
        (matching("network-card = -1"), 3, &["network-card", "between 0 and 99"]),
        (matching("driver = \"\""), 3, &["match.driver", "/sys/class/net"]),
        (matching("subnet = \"10.0.1\""), 3, &["match.subnet", "\"10.0.1.0/24\""]),
        (matching("subnet = \"10.0.1.7/24\""), 3, &["match.subnet", "write \"10.0.1.0/24\""]),
        (setting("manage = \"ignored\""), 4, &["manage", "did you mean `ignore`"]),
        (setting("mtu = 1"), 4, &["mtu", "1280"]),
        (setting("prefixes = \"all\""), 4, &["prefixes", "`local`"]),
        (setting("arp = \"always\""), 4, &["arp", "`strict`"]),
        (setting("arp = true"), 4, &["arp", "in quotes"]),
        (setting("connected_route = \"yes\""), 4, &["connected_route", "a boolean"]),
        (route("to = \"0.0.0.0/0\", via = \"10.0.1.1\""), 4, &["routes", "default route"]),
        (route("to = \"::/0\""), 4, &["routes", "default route"]),
        (route("to = \"10.99.1.0/16\""), 4, &["routes", "write \"10.99.0.0/16\""]),
        (route("to = \"10.99.0.0/16\", via = \"fe80::1\""), 4, &["routes", "two families"]),
        (route("to = \"10.99.0.0/16\", via = \"0.0.0.0\""), 4, &["routes", "no gateway"]),
        (route("via = \"10.0.1.1\""), 4, &["routes", "`to`"]),
        (route("to = \"10.99.0.0/16\", dev = \"eth1\""), 4, &["unknown field `dev`"]),
        (
            setting("routes = [\n{ to = \"10.9.0.0/16\" },\n{ to = \"10.9.0.0/16\" }]"),
            6,
            &["routes", "10.9.0.0/16", "enid.toml:5", "remove one"],
        ),
    ] {
        // A line before, so that a wrong count shows.
        let text = error(&format!("\n[[eni]]\n{entry}"));
        let place = format!("/etc/enid/enid.toml:{line}: ");
        assert!(text.starts_with(&place), "{place} does not begin: {text}");
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}

#[test]
fn entries_of_drop_ins_are_added_and_a_contradiction_names_both_places() {
    let directory = tempfile::tempdir().unwrap();
    let (file, drop_in) =
        (directory.path().join("enid.toml"), directory.path().join("enid.d/10.toml"));
    fs::create_dir(directory.path().join("enid.d")).unwrap();
    fs::write(&file, "[[eni]]\nmatch.device-number = 1\nmtu = 1400\narp = \"strict\"\n").unwrap();
    let with = |text: &str| {
        fs::write(&drop_in, text).unwrap();
        load(Some(&file))
    };
    let added = with(
        "[[eni]]\nmatch.device-number = 1\nmtu = 1400\n[[eni]]\nmatch.driver = \"ena\"\nmtu = 1500\n",
    );
    assert_eq!(added.unwrap().choices.enis.len(), 4);
    let text =
        with("\n[[eni]]\nmatch = { device-number = 1 }\nmtu = 1500\n").unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}:4: `mtu`", drop_in.display())), "{text}");
    assert!(text.contains(&format!("{}:3", file.display())), "{text}");
    assert!(text.contains("change or remove one of the two"), "{text}");
}
