//! The verifier's figures, which a test compares with.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};

use super::report::Row;
use crate::process::root;

const FILE: &str = "tests/verifier.txt";

type Kernel = (u32, u32);

/// Takes over what the tests have said; kernels that did not run keep theirs.
pub(crate) fn write(rows: &[Row]) -> Result<()> {
    let path = root().join(FILE);
    let old = fs::read_to_string(&path).with_context(|| format!("read {FILE}"))?;
    let said = rows.iter().flat_map(|row| &row.files).flat_map(|file| file.said.lines());
    let said: Vec<&str> = said.filter(|line| line.starts_with("verifier ")).collect();
    ensure!(
        !said.is_empty(),
        "no figures were said: the file `kernels` says them, and it did not run, or failed before"
    );
    let new = updated(&old, said.into_iter())?;
    fs::write(&path, new).with_context(|| format!("write {FILE}"))?;
    println!("vm: the verifier's figures are in {FILE}");
    Ok(())
}

fn updated<'a>(old: &str, said: impl Iterator<Item = &'a str>) -> Result<String> {
    let (comments, table): (Vec<&str>, Vec<&str>) = old.lines().partition(|line| line.starts_with('#'));
    let names: Vec<&str> = table.first().context("no names")?.split_whitespace().skip(1).collect();
    let mut figures: BTreeMap<Kernel, BTreeMap<&str, u64>> = BTreeMap::new();
    for line in &table[1..] {
        let mut words = line.split_whitespace();
        let row = figures.entry(kernel(words.next().context("an empty line")?)?).or_default();
        for (name, figure) in names.iter().zip(words) {
            row.insert(name, figure.parse().with_context(|| format!("{figure:?} is no number"))?);
        }
    }
    for line in said {
        // verifier 6.12 egress 1234
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["verifier", release, name, figure] = words[..] {
            ensure!(names.contains(&name), "{FILE} has no column {name}: add one");
            figures.entry(kernel(release)?).or_default().insert(name, figure.parse()?);
        }
    }
    let mut text = String::new();
    for comment in comments {
        text.extend([comment, "\n"]);
    }
    writeln!(text, "kernel {}", names.join(" "))?;
    for ((major, minor), row) in figures {
        let each =
            names.iter().map(|name| row.get(name).copied().with_context(|| format!("{major}.{minor}: no {name}")));
        let each: Vec<String> = each.map(|figure| Ok(figure?.to_string())).collect::<Result<_>>()?;
        writeln!(text, "{major}.{minor} {}", each.join(" "))?;
    }
    Ok(text)
}

fn kernel(text: &str) -> Result<Kernel> {
    let numbers = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.with_context(|| format!("{text:?} is no kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_figures_take_the_place_of_the_old_and_the_others_stay() {
        let old = "# why\nkernel a b\n6.1 1 2\n6.12 3 4\n";
        let said = ["test x ... ok", "verifier 6.12 b 9", "verifier 6.2 a 5", "verifier 6.2 b 6"];
        let new = updated(old, said.into_iter()).expect("they fit");
        assert_eq!(new, "# why\nkernel a b\n6.1 1 2\n6.2 5 6\n6.12 3 9\n");
        assert!(updated(old, ["verifier 6.12 c 1"].into_iter()).is_err());
        assert!(updated(old, ["verifier 6.13 a 1"].into_iter()).is_err());
    }
}
