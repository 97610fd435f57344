//! Tests in a process of their own: this test binary again, with a role in its environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, Read};
use std::process::{Child, Command, Stdio};

use wharf::Backend;

use super::{Watchdog, backends};

const ROLE: &str = "WHARF_TEST_ROLE";

/// Starts the test `name` again as a child that finds `backend` in its environment.
pub(crate) fn child(name: &str, backend: Backend) -> Child {
    spawn(&mut Command::new(std::env::current_exe().unwrap()), name, backend)
}

/// The same under a command that takes another with its arguments.
pub(crate) fn child_under(mut command: Command, name: &str, backend: Backend) -> Child {
    spawn(command.arg(std::env::current_exe().unwrap()), name, backend)
}

fn spawn(command: &mut Command, name: &str, backend: Backend) -> Child {
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROLE, backend.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The engine that this process is to run on, if it is a child.
pub(crate) fn role() -> Option<Backend> {
    std::env::var(ROLE).ok().map(|name| name.parse().unwrap())
}

/// Runs the test `name` on each engine in a process of its own.
pub(crate) fn alone(name: &str, body: fn(Backend)) {
    if let Some(backend) = role() {
        return body(backend);
    }
    for backend in backends(name) {
        let _watchdog = Watchdog::new(name);
        let mut child = child(name, backend);
        drop(child.stdin.take());
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success(), "{backend}: {output}");
    }
}

/// The processor time that a process has used, in hundredths of a second.
pub(crate) fn processor_time(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name may hold anything, but it ends at the last parenthesis; user and system time are fields 14 and 15.
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The first line of the child's that begins with `word`, without it.
pub(crate) fn told(output: &mut impl BufRead, word: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child has ended without telling `{word}`");
        if let Some(rest) = line.strip_prefix(word) {
            return rest.trim().to_owned();
        }
    }
}
