//! The fuzz targets, each for a while, as part of `cargo xtask test --long`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, at_root, output, root, target_dir},
    setup,
};

/// The fuzz targets' workspace.
const FOLDER: &str = "fuzz";

/// For how long each target runs, and what no input may take: five seconds, and a gigabyte with all that the fuzzer
/// itself keeps.
const LIMITS: [&str; 3] = ["-max_total_time=30", "-timeout=5", "-rss_limit_mb=1024"];

/// The address sanitizer is there for what the libraries do, and because without it an overflow of the stack ends the
/// fuzzer before it has saved the input. It need not remember who called for memory: that takes half of the time.
const SANITIZER: (&str, &str) = (
    "ASAN_OPTIONS",
    "detect_odr_violation=0:detect_stack_use_after_return=0:malloc_context_size=0:quarantine_size_mb=8",
);

/// The sanitizer's flag is for nightly compilers, unless this is set; its runtime comes with the stable one.
const UNSTABLE: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// What runs the fuzz targets.
pub(crate) struct Fuzzer(PathBuf);

impl Fuzzer {
    /// Fetches what is missing.
    pub(crate) fn get() -> Result<Self> {
        setup::fuzzer().map(Self)
    }

    /// Runs every target.
    pub(crate) fn run(&self) -> Result<()> {
        let targets = output(&mut self.command("list"))?;
        targets.lines().try_for_each(|target| self.fuzz(target))
    }

    /// Runs a target on its seeds and on what earlier runs found worth keeping.
    fn fuzz(&self, target: &str) -> Result<()> {
        println!("fuzzing: {target}");
        let corpus = root().join(FOLDER).join("corpus").join(target);
        let found = root().join(FOLDER).join("artifacts").join(target).join("found");
        for folder in [Some(&*corpus), found.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).with_context(|| format!("{} could not be made", folder.display()))?;
        }
        let mut run = self.command("run");
        run.arg("--target-dir").arg(target_dir().join("fuzz")).arg(target);
        run.args([corpus, root().join(FOLDER).join("seeds").join(target)]).arg("--").args(LIMITS);
        // One line at the end, instead of one for each step forward.
        run.args(["-verbosity=0", "-print_final_stats=1"]).arg(format!("-exact_artifact_path={}", found.display()));
        let dictionary = root().join(FOLDER).join(format!("{target}.dict"));
        if dictionary.exists() {
            run.arg(format!("-dict={}", dictionary.display()));
        }
        process::run(&mut run).with_context(|| self.remedy(target, &found))
    }

    fn remedy(&self, target: &str, found: &Path) -> String {
        let (program, built, found) = (self.0.display(), target_dir().join("fuzz"), found.display());
        let again = format!("--target-dir {} {target} {found}", built.display());
        let (variable, value) = UNSTABLE;
        format!(
            "{target} fell over the input {found}\n  run it again:  {variable}={value} {program} run {again}\n  \
             make it small: {variable}={value} {program} tmin {again}\n"
        )
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = at_root(&self.0);
        command.arg(verb).env(SANITIZER.0, SANITIZER.1).env(UNSTABLE.0, UNSTABLE.1);
        command
    }
}
