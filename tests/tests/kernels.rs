//! What a kernel gives and takes: that it carries the agent or is declined, and what its verifier makes of the programs.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::RawTracePoint;
use guard_agent::kernel::{
    object::{OBJECT, Options, Parameters, Programs},
    sys::Hook,
};
use guard_tests::{agent::Setup, pods::Pods, release::release, require_root};
use ipnet::IpNet;

/// The first that has all that the agent needs.
const OLDEST: (u32, u32) = (5, 15);

#[test]
fn a_kernel_carries_the_agent_or_is_declined_in_one_line() -> Result<()> {
    require_root()?;
    let pods = Pods::new()?;
    let setup = Setup::new(&pods, "")?;
    if release()? >= OLDEST {
        let agent = setup.start()?;
        ensure!(agent.get("/healthz")? == "ok\n");
        return Ok(());
    }
    let (code, said) = setup.fail(|_| {})?;
    ensure!(code == Some(1), "exit code {code:?}: {said}");
    ensure!(said.lines().count() == 1 && said.starts_with("guard-agent: this kernel has no "), "{said}");
    ensure!(said.contains("needs kernel 5.15 or newer"), "{said}");
    Ok(())
}

/// What was found before, a line for each kernel: `cargo xtask vm --figures` writes it.
const FIGURES: &str = include_str!("../verifier.txt");

/// Instructions that the verifier processes for each program, and states that it keeps, with as many CIDRs as there may be:
/// it gives up after a million, and what is near that on one kernel may be over it on the next.
#[test]
fn the_verifiers_work_has_not_grown_unnoticed() -> Result<()> {
    require_root()?;
    let release = release()?;
    if release < OLDEST {
        return Ok(());
    }
    let cidrs = (0..16).map(|i| [format!("10.{i}.0.0/16"), format!("fd00:{i:x}::/32")]);
    let cidrs: Vec<IpNet> = cidrs.flatten().map(|cidr| cidr.parse()).collect::<Result<_, _>>()?;
    let parameters = Parameters::new(&cidrs).with_slot(1).with_dropped_mark(1);
    let mut programs = Programs::load(Options { object: OBJECT, slots: 2, log: false, pins: None })?;
    let mut found = Vec::new();
    for (name, hook) in [
        ("meter_egress", Hook::Egress),
        ("meter_ingress", Hook::Ingress),
        ("police_egress", Hook::Egress),
        ("police_ingress", Hook::Ingress),
    ] {
        let instructions = processed(programs.load_program(name, &parameters, hook)?.as_fd())?;
        found.extend(figures(name, instructions, &programs.statistics(name, &parameters, Some(hook))?)?);
    }
    for name in ["cgroup_mkdir", "cgroup_rmdir"] {
        let program = programs.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        let instructions = processed(program.fd()?.as_fd())?;
        found.extend(figures(name, instructions, &programs.statistics(name, &parameters, None)?)?);
    }
    // `--figures` reads this, also if one of them has grown.
    for (name, now) in &found {
        println!("verifier {}.{} {name} {now}", release.0, release.1);
    }
    let mut grown = Vec::new();
    for (name, now) in found {
        let (recorded_on, was) = recorded(release, &name)?;
        let most = if recorded_on == release {
            was + was / 10
        } else {
            println!("this kernel is not recorded: {name} may have twice its {was} on {recorded_on:?}");
            2 * was
        };
        if now > most {
            grown.push(format!("{name} from {was} on {recorded_on:?} to {now}"));
        }
    }
    ensure!(
        grown.is_empty(),
        "the verifier has more to do than is recorded in tests/verifier.txt: {}; if that is meant, take the \
         new figures over with `cargo xtask vm --figures`",
        grown.join(", ")
    );
    Ok(())
}

/// What the kernel says of it in proc(5): `verified_insns`, kernel 5.16.
fn processed(program: BorrowedFd<'_>) -> Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("verified_insns:"));
    line.with_context(|| format!("no figure in {info}"))?.trim().parse().context("a number")
}

/// Both figures of a program, by the names of their columns. The verifier's own sums must say the same of the instructions.
fn figures(name: &str, instructions: u64, said: &str) -> Result<[(String, u64); 2]> {
    let after = |word: &str| {
        let mut words = said.split_whitespace().skip_while(|found| *found != word);
        words.nth(1).and_then(|number| number.parse::<u64>().ok()).with_context(|| format!("no {word} in {said:?}"))
    };
    ensure!(after("processed")? == instructions, "{name}: {instructions} by its information, and {said}");
    Ok([(name.to_owned(), instructions), (format!("{name}.states"), after("total_states")?)])
}

/// Of this kernel, or of the nearest one that is recorded: the last before it, else the first. Verifiers differ by more
/// than a tenth.
fn recorded(release: (u32, u32), name: &str) -> Result<((u32, u32), u64)> {
    let mut lines = FIGURES.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace());
    let names: Vec<&str> = lines.next().context("no names")?.collect();
    let column = names.iter().position(|found| *found == name).with_context(|| format!("{name} is not recorded"))?;
    let mut rows = BTreeMap::new();
    for line in lines {
        let row: Vec<&str> = line.collect();
        let (major, minor) = row[0].split_once('.').with_context(|| format!("{row:?} has no kernel"))?;
        rows.insert((major.parse()?, minor.parse()?), row.get(column).context("a column")?.parse()?);
    }
    let nearest = rows.range(..=release).next_back().or_else(|| rows.iter().next());
    nearest.map(|(kernel, figure)| (*kernel, *figure)).context("tests/verifier.txt has no kernel")
}
