//! The project's chores: `cargo xtask setup | lint | test | vm | e2e | node | soak | manifests | demo | bench | image`.
//!
//! It depends on nothing that needs the compiler for the kernel programs, for it is what fetches that compiler.

mod bench;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod kernel;
mod lint;
mod manifests;
mod node;
mod process;
mod setup;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Egress Guard's chores.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Verb {
    /// Fetch what is missing: the compiler and linker of the kernel programs, and the tools that the tests call.
    Setup,
    /// Check format and lints of everything, the kernel programs included.
    Lint,
    /// Run every test (needs root); with arguments only the whole-system tests, which get them: `test -- meter`.
    Test {
        /// Then the properties of the core in a million random worlds, and every fuzz target for half a minute.
        #[arg(long, conflicts_with = "args")]
        long: bool,
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run the tests against a real Kubernetes API server, which is built first if need be (needs root).
    E2e {
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run the whole-system tests on other kernels, in qemu: `vm --kernel 6.12 -- meter`.
    Vm(vm::Matrix),
    /// Run the scenarios on a whole node, in a guest that is made first if need be (needs root).
    Node {
        /// Write the times that it took into docs/node.md.
        #[arg(long)]
        docs: bool,
        /// Start a node to look at instead: run what comes on stdin, a line each, in the guest, or with `kubectl`.
        #[arg(long, conflicts_with_all = ["docs", "args"])]
        shell: bool,
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Have random pods, breaches, kills and API faults on a whole node, and see that what must hold does (needs root).
    Soak {
        /// How long, about.
        #[arg(long)]
        minutes: u32,
        /// The same seed gives the same steps; without it, other ones each time.
        #[arg(long)]
        seed: Option<u64>,
        /// Print the steps, and do nothing.
        #[arg(long)]
        plan: bool,
        /// Write the result into docs/soak.md.
        #[arg(long, conflicts_with = "plan")]
        docs: bool,
    },
    /// Render and test what an operator applies: kustomize, the chart, alerts, the dashboard.
    Manifests {
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Show the agent at work on this machine (needs root); the arguments are the demo's own.
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure what the agent costs (needs root); the arguments are the benchmark's own.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make an image of the agent, an OCI archive in `target`.
    Image {
        /// Then prove that it runs under containerd, and that packing it again gives the same archive (needs root).
        #[arg(long)]
        check: bool,
        /// And that building it again from clean, in another folder, does: this takes minutes.
        #[arg(long, requires = "check")]
        rebuild: bool,
    },
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Lint => lint::run(),
        Verb::Test { long, args } => test::run(*long, args),
        Verb::E2e { args } => e2e::run(args),
        Verb::Vm(matrix) => vm::run(matrix),
        Verb::Node { docs, shell, args } => node::run(*docs, *shell, args),
        Verb::Soak { minutes, seed, plan, docs } => soak::run(*minutes, *seed, *plan, *docs),
        Verb::Manifests { args } => manifests::run(args),
        Verb::Demo { args } => demo::run(args),
        Verb::Bench { args } => bench::run(args),
        Verb::Image { check, rebuild } => image::run(*check, *rebuild),
    }
}

fn main() -> ExitCode {
    match run(&Verb::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            process::exit_code(&error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_gets_its_arguments_unread() {
        let Verb::Demo { args } = Verb::parse_from(["xtask", "demo", "--kill-switch", "--help"]) else {
            panic!("`demo` was taken for another verb");
        };
        assert_eq!(args, ["--kill-switch", "--help"]);
    }

    #[test]
    fn the_cluster_tests_get_their_arguments() {
        let Verb::E2e { args } = Verb::parse_from(["xtask", "e2e", "--", "budget", "--nocapture"]) else {
            panic!("`e2e` was taken for another verb");
        };
        assert_eq!(args, ["budget", "--nocapture"]);
    }

    #[test]
    fn a_filter_follows_two_dashes() {
        let Verb::Test { long: false, args } = Verb::parse_from(["xtask", "test", "--", "meter", "--nocapture"]) else {
            panic!("`test` was taken for another verb");
        };
        assert_eq!(args, ["meter", "--nocapture"]);
        assert!(Verb::try_parse_from(["xtask", "test", "meter"]).is_err());
        assert!(Verb::try_parse_from(["xtask", "test", "--long", "--", "meter"]).is_err());
    }
}
