//! The programs that the four documents show.

use std::env;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Each with the last thing that it prints when all went well.
const PROGRAMS: [(&str, &str); 6] = [
    ("callbacks", "client: the answer is \"12 bytes\""),
    ("hello", "server: read \"hello there\""),
    ("hello_blocking", "server: read \"hello there\""),
    ("ping_pong", "server accepted 5 connections and received 60 bytes"),
    ("ping_pong_pool", "8 players, 24 pongs"),
    ("states", "client: disconnected: closed by this side"),
];
/// They take less than a second; building them may take much longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_programs_of_the_documents_run_to_their_end() {
    for (name, last) in PROGRAMS {
        // Built first: that takes its time, and the run none.
        let built = cargo("build", name).stdout(Stdio::null()).status().unwrap();
        assert!(built.success(), "{name} does not build");
        let mut child = cargo("run", name).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                child.kill().unwrap();
                panic!("{name} does not end");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let (printed, complaints) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {} {complaints}", output.status);
        assert!(printed.contains(last), "{name} printed {printed}");
        assert_eq!(complaints, "", "{name}");
    }
}

/// Cargo, with the features of this test, in the directory that this test was built in.
fn cargo(command: &str, example: &str) -> Command {
    let target = env::current_exe().unwrap();
    // target/PROFILE/deps/seeds-HASH
    let target = target.ancestors().nth(3).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        command,
        "--quiet",
        "--package",
        "wharf",
        "--example",
        example,
    ]);
    cargo.arg("--target-dir").arg(target).stdin(Stdio::null());
    let everything =
        cfg!(all(feature = "tokio", feature = "hyper", feature = "tracing", feature = "self-signed"));
    cargo.args(if everything { &["--all-features"][..] } else { &["--features", "self-signed"] });
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo
}
