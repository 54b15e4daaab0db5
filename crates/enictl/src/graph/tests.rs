//! What is drawn, from made-up states.

use super::*;

fn marked(text: &str, marks: &[Mark], reason: &str) -> Row {
    Row { text: text.to_owned(), marks: marks.to_vec(), reason: reason.to_owned() }
}

/// An ENI with so many addresses, and with what it has beside them.
fn card(n: usize, addresses: usize, more: Vec<Row>) -> Card {
    let granted = (0..addresses).map(|last| plain(format!("10.0.{n}.{last}/32")));
    Card {
        name: format!("eni-0123456789abcde{n:02}"),
        about: vec![format!("ens{n}"), format!("subnet 10.0.{n}.0/24")],
        notes: Vec::new(),
        addresses: List::of(granted.chain(more).collect()),
        rules: List::of(vec![plain(format!("20000 from all oif ens{n} lookup {}", 20_000 + n))]),
        table: format!("table {}", 20_000 + n),
        routes: List::of(vec![plain(format!("default via 10.0.{n}.1"))]),
        gateways: List::of(vec![plain(format!("10.0.{n}.1"))]),
    }
}

fn picture(cards: Vec<Card>) -> Picture {
    Picture { verdict: "waiting".to_owned(), cards, left: List::default() }
}

#[test]
fn many_addresses_are_counted_and_what_differs_is_drawn_though_it_comes_last() {
    let leaves = marked("192.0.2.99/32", &[Mark::Extra, Mark::Waiting], "no longer granted");
    let cards = (0..24).map(|n| card(n, 64, vec![leaves.clone()])).collect();
    let picture = picture(cards);
    for text in [svg::draw(&picture), mermaid::draw(&picture)] {
        assert_eq!(text.matches("and 54 more").count(), 24, "{text}");
        assert_eq!(text.matches("192.0.2.99/32").count(), 24, "{text}");
        assert!(text.contains("waiting") && text.contains("no longer granted"), "{text}");
        assert!(text.len() < 128 << 10, "{} bytes", text.len());
    }
    assert_eq!(picture.summary(), "24 ENIs, waiting, 24 extra, 24 waiting");
}

#[test]
fn thousands_that_differ_are_counted() {
    let foreign = |n| marked(&format!("192.0.{}.{}/32", n / 256, n % 256), &[Mark::Foreign], "");
    let picture = picture(vec![card(0, 64, (0..5000).map(foreign).collect())]);
    let text = svg::draw(&picture);
    // In two lines.
    assert!(text.contains("and 5034 more, 4980 of them"), "{text}");
    assert!(text.len() < 32 << 10, "{} bytes", text.len());
}

#[test]
fn every_line_fits_its_box() {
    let long = "2001:db8:1234:5678:aaaa:bbbb:cccc:dddd/128 nodad preferred_lft 0";
    let word = "x".repeat(300);
    let rows = vec![marked(long, &[Mark::Missing, Mark::Held], &word), plain(word.clone())];
    let text = svg::draw(&picture(vec![card(0, 1, rows)]));
    // The rightmost text of the first column begins so far to the right at most.
    for element in text.split("<text ").skip(1) {
        let (head, rest) = element.split_once('>').unwrap();
        let x = head.split(" x=\"").nth(1).unwrap().split('"').next().unwrap();
        let letters = rest.split("</text>").next().unwrap().trim().chars().count();
        if rest.contains("xxx") || rest.contains("2001:db8") {
            let right = x.parse::<usize>().unwrap() + letters * 29 / 4;
            assert!(right < 24 + 420, "{right}: {rest}");
        }
    }
}

#[test]
fn what_comes_from_elsewhere_is_text() {
    let hostile = "</text><script>alert(1)</script>\"];click#;`%%{init}";
    let mut card = card(0, 1, vec![marked(hostile, &[Mark::Foreign], hostile)]);
    card.name = hostile.to_owned();
    let picture = picture(vec![card]);
    let (drawn, told) = (svg::draw(&picture), mermaid::draw(&picture));
    assert!(!drawn.contains("<script") && drawn.contains("&lt;script&gt;"), "{drawn}");
    for word in ["<script", "\"];", "#;", "`", "%%{"] {
        let body = told.split_once('\n').unwrap().1;
        assert!(!body.contains(word), "{word} is in {told}");
    }
}

#[test]
fn what_the_place_in_the_picture_says_is_left_out_of_the_text() {
    let object = |kind, text: &str| Object {
        kind,
        text: text.to_owned(),
        state: ObjectState::There,
        reason: String::new(),
        waits: None,
        leaving: None,
        address: None,
        table: Some(20_001),
        priority: None,
        source: None,
        destination: None,
        gateway: None,
    };
    for (kind, text, drawn) in [
        (ObjectKind::Address, "10.0.2.4/24 dev ens6 noprefixroute", "10.0.2.4/24 noprefixroute"),
        (ObjectKind::Route, "default via 10.0.2.1 dev ens6 table 20001", "default via 10.0.2.1"),
        (ObjectKind::Route, "10.9.0.0/16 dev ens7 table 20001", "10.9.0.0/16 dev ens7"),
        (ObjectKind::Rule, "pref 20020 from all lookup 20001", "20020 from all lookup 20001"),
    ] {
        assert_eq!(short(&object(kind, text), "ens6"), drawn);
    }
}
