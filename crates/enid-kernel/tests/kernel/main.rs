//! Against a real kernel: every test in a network namespace of its own, with `ip` as the witness.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use libtest_mimic::Arguments;

mod apply;
mod granted;
mod look;
mod marking;
mod roundtrip;
mod scale;
mod watch;
mod world;

fn main() {
    world::enter();
    let tests = [
        look::tests(),
        roundtrip::tests(),
        apply::tests(),
        granted::tests(),
        watch::tests(),
        scale::tests(),
        marking::tests(),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().flatten().collect()).exit();
}
