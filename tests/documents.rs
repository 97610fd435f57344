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

/// Each row of the table of older toolkits is there, with a test that is there or a reason why there is none; and each test of theirs
/// is in a row.
#[test]
fn every_capability_of_the_older_toolkits_has_its_test() {
    let table = fs::read_to_string(root().join("docs/SEEDS.md")).unwrap();
    let (mut rows, mut named) = (Vec::new(), Vec::new());
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.trim_matches('|').split(" |").map(str::trim).collect();
        let [id, promise, here, shown_by, _] = cells[..] else { continue };
        if id == "Row" {
            continue;
        }
        rows.push(id.to_owned());
        assert!(!promise.is_empty(), "{row}");
        if shown_by.starts_with("not here: ") {
            continue;
        }
        assert!(!here.is_empty(), "what does it: {row}");
        let mut own = 0;
        for test in shown_by.split(", ") {
            let test = test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).expect(row);
            let (file, name) = test.rsplit_once("::").expect(row);
            let source = fs::read_to_string(source(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {name}(")), "{test} is not there: {row}");
            own += usize::from(name.starts_with(&format!("{}_", id.to_lowercase())));
            named.push(name.to_owned());
        }
        assert!(own > 0 || ["O14", "O15"].contains(&id), "a row has a test of its name: {row}");
    }
    let all = [("M", 12), ("O", 15), ("C", 23), ("P", 22)];
    let expected: Vec<_> =
        all.iter().flat_map(|(seed, count)| (1..=*count).map(move |n| format!("{seed}{n}"))).collect();
    assert_eq!(rows, expected);

    for file in ["maxon", "objectspace", "co", "parasol"] {
        let source = fs::read_to_string(root().join(format!("tests/seeds/{file}.rs"))).unwrap();
        let is_row = |name: &str| {
            let digits = name.get(1..).unwrap_or_default().trim_start_matches(|c: char| c.is_ascii_digit());
            name.starts_with(['m', 'o', 'c', 'p']) && digits.len() + 1 < name.len() && digits.starts_with('_')
        };
        for line in source.lines() {
            let Some((_, name)) = line.split_once("fn ") else { continue };
            let name = name.split('(').next().unwrap_or_default();
            assert!(!is_row(name) || named.iter().any(|each| each == name), "{name} is in no row");
        }
    }
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
