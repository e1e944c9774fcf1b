//! The threat model names a test for everything that it says is stopped, and the tests that it names are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

const DOCUMENT: &str = "docs/threat-model.md";

/// What a row says of an attempt that a test has to show.
const SHOWN: [&str; 3] = ["**stopped**", "**held**", "**noticed**"];

/// A folder or file of the project.
fn path(of: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(of)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The names of tests in a text: `crate/file::function`.
fn named(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::")).collect()
}

/// The sources of a crate.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether a source has a test of this name: a function with an attribute that makes it one right above it.
fn has_test(source: &str, function: &str) -> bool {
    let head = format!("fn {function}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let is_head = |line: &str| line.strip_prefix("async ").unwrap_or(line).starts_with(&head);
    lines.iter().enumerate().filter(|(_, line)| is_head(line)).any(|(at, _)| {
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
        above.clone().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

#[test]
fn every_test_that_it_names_is_there() -> Result<()> {
    let document = read(&path(DOCUMENT))?;
    let tests = named(&document);
    ensure!(tests.len() > 40, "only {} tests are named: {tests:?}", tests.len());
    for test in tests {
        let (file, function) = test.split_once("::").context("no function")?;
        let (member, file) = file.split_once('/').with_context(|| format!("{test}: no crate"))?;
        let mut all = vec![];
        sources(&path(member), &mut all)?;
        let files: Vec<_> = all.iter().filter(|path| path.file_stem().is_some_and(|stem| stem == file)).collect();
        let mut found = false;
        for path in &files {
            found |= has_test(&read(path)?, function);
        }
        ensure!(found, "{test}: there is no such test in {files:?}");
    }
    Ok(())
}

#[test]
fn whatever_it_says_is_stopped_has_a_test() -> Result<()> {
    let document = read(&path(DOCUMENT))?;
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| ")).collect();
    let mut shown = 0;
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let Some(outcome) = cells.get(2).filter(|_| cells.len() == 5) else { continue };
        if SHOWN.contains(outcome) {
            shown += 1;
            ensure!(!named(cells[4]).is_empty(), "no test is named for: {row}");
        } else {
            let known = ["outcome", "---", "**not stopped**"].contains(outcome);
            ensure!(known, "{outcome:?} is no outcome that the document explains: {row}");
        }
    }
    ensure!(shown > 40, "only {shown} rows are found: has the table another form?");
    Ok(())
}

#[test]
fn a_test_is_known_by_its_attribute() {
    assert!(has_test("#[test]\nfn it_is() {", "it_is"));
    assert!(has_test("    #[tokio::test(flavor = \"multi_thread\")]\n    async fn it_is() {", "it_is"));
    assert!(!has_test("#[test]\nfn it_is_not() {", "it_is"));
    assert!(!has_test("fn it_is() {", "it_is"), "a helper is no test");
    assert!(!has_test("#[test]\nfn other() {}\nfn it_is() {", "it_is"));
}
