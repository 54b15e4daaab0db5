//! Against a real kernel: every test in a network namespace of its own, with `ip` as the witness.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;

use libtest_mimic::Arguments;

mod apply;
mod granted;
mod look;
mod lookup;
mod marking;
mod roundtrip;
mod scale;
mod watch;
mod world;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [lookup::ASK, from, to] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let mut stdout = std::io::stdout();
        return writeln!(stdout, "{}", lookup::ask_only(from, to)).unwrap();
    }
    world::enter();
    let tests = [
        look::tests(),
        lookup::tests(),
        roundtrip::tests(),
        apply::tests(),
        granted::tests(),
        watch::tests(),
        scale::tests(),
        marking::tests(),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().flatten().collect()).exit();
}
