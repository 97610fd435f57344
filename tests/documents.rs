//! What the documents promise about the source.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each row of the table names a test that is there, or says why there is none.
#[test]
fn every_acceptance_test_that_is_named_exists() {
    let table = fs::read_to_string(root().join("docs/ACCEPTANCE.md")).unwrap();
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Scenario |")) {
        let cells: Vec<_> = row.trim_matches('|').split(" |").map(str::trim).collect();
        if cells == ["Fault", "What holds here", "Shown by"] {
            continue;
        }
        let [scenario, holds, shown_by] = cells[..] else { panic!("not three cells: {row}") };
        assert!(!scenario.is_empty());
        rows += 1;
        if shown_by.starts_with("later: ") {
            continue;
        }
        assert!(!holds.is_empty(), "what must hold: {row}");
        for test in shown_by.split(", ") {
            let test = test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).expect(row);
            let (file, name) = test.rsplit_once("::").expect(row);
            let source = fs::read_to_string(source(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {name}(")), "{test} is not there: {row}");
        }
    }
    assert!(rows > 50, "{rows}");
}

/// Where the tests of `file` are, as the table writes it.
fn source(file: &str) -> PathBuf {
    let path = match file.strip_prefix("cli::") {
        Some(file) => format!("cli/tests/command/{file}.rs"),
        None if file.starts_with("interop::") => format!("interop/tests/{}.rs", &file["interop::".len()..]),
        None if file.starts_with("src/") => format!("{file}.rs"),
        None => format!("tests/{file}.rs"),
    };
    root().join(path)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
