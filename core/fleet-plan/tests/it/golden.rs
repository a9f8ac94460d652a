//! Golden scripts: `tests/golden/*.txt`, commands in, decisions and configurations out.

use crate::script;

#[test]
fn decisions_are_as_written() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    testkit::run_golden_scripts(dir, || {
        let mut world = script::World::new();
        move |lines: &[&str]| lines.iter().map(|line| world.line(line)).collect()
    });
}
