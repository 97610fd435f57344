//! `docs/EQUALITY.md`: written by the suite, and compared with it in every run.

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::cell::{CELLS, Cell, Role};
use super::scenario::Scenario;
use crate::common::works;
use wharf::Backend;

/// The scenarios by subject, each with its name.
pub(crate) type Suite = Vec<(&'static str, Vec<(&'static str, Scenario)>)>;

/// The document tells of exactly these scenarios and cells, and of none that failed when it was written. With
/// `WHARF_WRITE_TABLE=1` everything is played and the document written.
#[test]
fn the_table_tells_of_this_suite_and_all_of_it_holds() {
    let suite = super::all();
    if std::env::var("WHARF_WRITE_TABLE").is_ok_and(|value| value == "1") {
        assert!(works(Backend::Uring, "the table"), "a table without io_uring is none");
        let written = render(&suite, |cell, role, name, scenario| {
            catch_unwind(AssertUnwindSafe(|| cell.play_as(role, name, scenario))).is_ok()
        });
        fs::write(document(), written).unwrap();
    }
    let there = fs::read_to_string(document()).unwrap();
    let expected = render(&suite, |_, _, _, _| true);
    for (there, expected) in there.lines().zip(expected.lines()) {
        assert_eq!(there, expected, "write it anew: {COMMAND}");
    }
    assert!(there == expected, "it is longer or shorter: write it anew: {COMMAND}");
}

/// The document, with what `holds` says of each cell and role.
fn render(suite: &Suite, mut holds: impl FnMut(Cell, Role, &str, &Scenario) -> bool) -> String {
    let mut document = String::from(OPENING);
    let mut notes: Vec<&'static str> = Vec::new();
    for (subject, scenarios) in suite {
        write!(document, "\n## {subject}\n\n{HEAD}").unwrap();
        for (name, scenario) in scenarios {
            let sentence = format!("`{name}`");
            let cells = CELLS.map(|cell| {
                let mut words = Vec::new();
                let mut reasons = Vec::new();
                for (role, word) in [(Role::Server, "server"), (Role::Client, "client")] {
                    match scenario.exemption(cell, role) {
                        Some(reason) => {
                            let known = notes.iter().position(|note| *note == reason);
                            let at = known.unwrap_or_else(|| {
                                notes.push(reason);
                                notes.len() - 1
                            });
                            reasons.push(at + 1);
                        }
                        None if holds(cell, role, name, scenario) => words.push(word.to_owned()),
                        None => words.push(format!("**{word} fails**")),
                    }
                }
                reasons.sort_unstable();
                reasons.dedup();
                let said = match words.len() {
                    0 => String::from("n/a"),
                    2 if words == ["server", "client"] => String::from("both"),
                    _ => words.join(", "),
                };
                reasons.iter().fold(said, |said, reason| format!("{said} [{reason}]"))
            });
            writeln!(document, "| {sentence} | {} |", cells.join(" | ")).unwrap();
        }
    }
    document.push_str("\n## Where a scenario does not apply\n\n");
    for (at, note) in notes.iter().enumerate() {
        writeln!(document, "{}. {note}", at + 1).unwrap();
    }
    document.push_str(CLOSING);
    document
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/EQUALITY.md")
}

const COMMAND: &str = "WHARF_WRITE_TABLE=1 cargo test --all-features --test equality table";

const HEAD: &str = "\
| Scenario | async: readiness | async: io_uring | async: simulated | event: readiness | event: io_uring | event: simulated | on a queue: readiness | on a queue: io_uring | on a queue: simulated | blocking |
|---|---|---|---|---|---|---|---|---|---|---|
";

const OPENING: &str = "\
# Equality of the styles

The suite in `tests/equality/` writes this table from a run of its own and compares it in every other: a scenario or a cell that is not here, or
a failure that is, fails the test. What has to come of a scenario, and for which reason a connection ends, is asserted once and is
the same in every cell.

A cell names the sides that are performed in its style and on its backend, one after the other: the server, the client, or both. The
other side is on the same backend, and its style goes around from scenario to scenario, so that each style meets each; a peer that waits for the scenario or
drips is in async style. A failure says which style it was. \"On a queue\" is the event style with handlers on a queue: a thread's (`JobQueue`), and in
simulations one that is polled (`PollQueue`). The blocking style has no backend: it makes the system's own calls, and its peer is on readiness. A number stands for a
reason at the end of the page.

Besides what its name says, each scenario asserts that the end of a connection is told exactly once on each side, that the server counts it
under the reason that its handler was told, and that nothing is left of the connection when the server has stopped.

The simulated cells are played with three networks (no faults, usual ones, harsh ones) and several seeds each.
";

const CLOSING: &str = "
## What differs by nature

- An event handler is told of a drain by `Handler::draining`, an async one by `Connection::draining`. One that blocks is not called: it
  looks by `blocking::Connection::is_draining`, or waits by `ready`.
- A handler on a queue is told of the end when the queue comes to it, which may be behind the end of the server.
- An async send that is late has sent nothing of its message (up to `Limits::send_max`). A blocking one may have: the kernel has taken what it
  had room for, and `Error::unsent` tells how much of the end is left.
- Deadlines of a blocking connection are looked at when it is used and while it waits. Between two operations nobody looks.
";
