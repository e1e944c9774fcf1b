//! The core is pure: nothing in its dependency tree or in its sources reaches out of it.

use std::{fs, path::Path, process::Command};

/// Crates that bring a runtime, the cluster or the kernel in; those named `<crate>-...` too.
const CRATES: [&str; 7] = ["tokio", "kube", "k8s", "aya", "hyper", "rustix", "nix"];

/// What of std is a clock, a file, a socket, a thread, a process or the environment.
const OUTSIDE: [&str; 12] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::os",
    "std::thread",
    "std::process",
    "std::env",
    "std::io",
];

/// The crates of `cargo tree --prefix none` that must not be there.
fn foreign(tree: &str) -> Vec<&str> {
    let one_of = |name: &str, taboo: &str| {
        name.strip_prefix(taboo).is_some_and(|rest| matches!(rest.get(..1), None | Some("-")))
    };
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| CRATES.iter().any(|taboo| one_of(&name.replace('_', "-"), taboo))).collect()
}

/// What a source names that is outside.
fn outside(source: &str) -> Vec<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    // What is renamed stays what it was.
    let code = code.replace(" as ", "@").split_whitespace().collect::<String>();
    let mut named = Vec::new();
    for (at, _) in code.match_indices("std::").chain(code.match_indices("std@")) {
        let before = code[..at].chars().next_back();
        // The end of another name, which blanks no longer part from the keyword before it.
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_') || code[..at].ends_with("use") {
            paths("", &code[at..], &mut named);
        }
    }
    // A module that has something of the outside in it must not be named as a whole either.
    let taboo = |path: &String| {
        let path = path.split('@').next().unwrap_or_default();
        let path = path.trim_end_matches("::*").trim_end_matches("::self");
        let in_one =
            |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|r| r.is_empty() || r.starts_with("::"));
        OUTSIDE.iter().any(|outside| in_one(outside, path) || in_one(path, outside))
    };
    named.into_iter().filter(taboo).collect()
}

/// The paths that a use tree without blanks names, `{}` resolved; where it ends.
fn paths<'a>(prefix: &str, tree: &'a str, named: &mut Vec<String>) -> &'a str {
    let end = tree.find(|c: char| !c.is_alphanumeric() && !"_:@*".contains(c)).unwrap_or(tree.len());
    let (path, mut rest) = (format!("{prefix}{}", &tree[..end]), &tree[end..]);
    if !path.ends_with("::") || !rest.starts_with('{') {
        named.push(path);
        return rest;
    }
    while rest.starts_with(['{', ',']) {
        rest = paths(&path, &rest[1..], named);
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read_to_string(&path).expect("a source")));
        }
    }
}

#[test]
fn no_runtime_cluster_or_kernel_is_in_the_dependency_tree() {
    let args = ["tree", "--package", "guard-core", "--edges", "normal", "--prefix", "none", "--offline", "--locked"];
    let tree = Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo");
    assert!(tree.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("guard-core") && tree.contains("serde"), "this is no tree of ours:\n{tree}");
    assert!(foreign(&tree).is_empty(), "guard-core must not depend on {:?}:\n{tree}", foreign(&tree));
}

#[test]
fn no_source_names_a_clock_a_file_a_socket_a_thread_or_a_process() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.iter().any(|(path, _)| path.ends_with("verdict.rs")), "these are no sources of ours");
    for (path, source) in found {
        assert!(outside(&source).is_empty(), "{path} must not name {:?}", outside(&source));
    }
}

#[test]
fn these_tests_can_fail() {
    let tree =
        "guard-core v0.1.0 (/x)\ntokio v1.0.0\nkube-client v5.0.0\nkubernetes v1.0.0\naya v0.14.0\ntokio_util v1\n";
    assert_eq!(foreign(tree), ["tokio", "kube-client", "aya", "tokio_util"]);
    let cases: [(&str, &[&str]); 15] = [
        ("use std::{collections::BTreeMap, sync::Arc, time::Duration};", &[]),
        ("use std::net::IpAddr; // not std::fs", &[]),
        ("let x = mystd::fs::read;", &[]),
        ("use std::fs;", &["std::fs"]),
        (
            "use std::{\n    collections::{BTreeMap, HashMap},\n    fs::{self, File},\n};",
            &["std::fs::self", "std::fs::File"],
        ),
        ("use std::{time::{Duration, Instant}, sync::Arc};", &["std::time::Instant"]),
        ("let at = std :: time::SystemTime::now();", &["std::time::SystemTime::now"]),
        ("use std::{fmt, net::{IpAddr, TcpStream as T}};", &["std::net::TcpStream@T"]),
        ("fn f() { std::thread::spawn(|| ()); }", &["std::thread::spawn"]),
        ("std::process::exit(1)", &["std::process::exit"]),
        ("let v = std::env::var(\"X\");", &["std::env::var"]),
        ("use std::time::*;", &["std::time::*"]),
        ("use std::{time, net::{self, IpAddr}};", &["std::time", "std::net::self"]),
        ("use std as s;", &["std@s"]),
        ("use std::time as t; t::Instant::now()", &["std::time@t"]),
    ];
    for (source, expected) in cases {
        assert_eq!(outside(source), expected, "{source}");
    }
}
