//! The programs that the four documents show.

use std::env;
use std::path::PathBuf;
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
/// They take less than a second.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_programs_of_the_documents_run_to_their_end() {
    // Built first: that takes its time, and the run none.
    let built = cargo_build().stdout(Stdio::null()).status().unwrap();
    assert!(built.success(), "they do not build");
    for (name, last) in PROGRAMS {
        let program = target().join(profile()).join("examples").join(name);
        let mut child = Command::new(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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

/// Cargo, which has them built as they were built with this test, so that there is little left to be done: with everything that the
/// workspace asks for, or with all features, or with those that they need.
fn cargo_build() -> Command {
    let of_workspace =
        cfg!(all(feature = "tokio", feature = "hyper", feature = "tracing", feature = "self-signed"));
    let selection: &[&str] = match (cfg!(feature = "tokio-util"), of_workspace) {
        (true, _) => &["--package", "wharf", "--all-features"],
        (false, true) => &["--workspace"],
        (false, false) => &["--package", "wharf", "--features", "self-signed"],
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet"]).args(selection);
    for (name, _) in PROGRAMS {
        cargo.args(["--example", name]);
    }
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(target()).stdin(Stdio::null());
    cargo
}

/// The directory that this test was built in.
fn target() -> PathBuf {
    // target/PROFILE/deps/seeds-HASH
    env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned()
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}
