//! Debian's packages: which ones make the compiler, and how they are fetched without being installed.
//!
//! Installing them would throw out rustup or the user's own compiler, with which they conflict, and needs root;
//! downloading and unpacking does neither.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{is_installed, is_root, output};

/// The packages of one compiler. Which libraries they need, and under which version's name, apt knows.
#[derive(Clone, Copy)]
struct Family {
    rustc: &'static str,
    std: &'static str,
    bpf: &'static str,
    clippy: &'static str,
}

/// Old releases carry a newer compiler beside their own, to build browsers with; it is tried first.
const FAMILIES: [Family; 2] = [
    Family {
        rustc: "rustc-web",
        std: "libstd-rust-web-dev",
        bpf: "libstd-rust-web-dev-bpf",
        clippy: "rust-web-clippy",
    },
    Family { rustc: "rustc", std: "libstd-rust-dev", bpf: "libstd-rust-dev-bpf", clippy: "rust-clippy" },
];

/// The one package without which there is nothing to unpack, for messages.
pub(super) const BPF_PACKAGES: &str = "libstd-rust-web-dev-bpf or libstd-rust-dev-bpf";

/// What the packages are, for the recipe.
pub(super) fn describe() -> String {
    FAMILIES.map(|f| [f.rustc, f.std, f.bpf, f.clippy].join("+")).join(" or ")
}

pub(super) fn is_available() -> bool {
    cfg!(target_arch = "x86_64") && ["apt-get", "apt-cache", "dpkg", "dpkg-query"].into_iter().all(is_installed)
}

pub(super) fn update() -> Result<()> {
    super::say("updating the package lists");
    output(Command::new("apt-get").args(["-qq", "update"])).map(drop)
}

/// Old lists name versions that the archive has dropped, and a bare machine has no lists: then they are renewed.
pub(super) fn with_current_lists<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    match attempt() {
        Err(_) if is_root() => update().and_then(|()| attempt()),
        Err(error) => bail!("{error:#}: run `sudo apt-get update` and try again"),
        done => done,
    }
}

/// Whether apt's lists have a compiler for the kernel programs.
pub(super) fn knows_compiler() -> bool {
    FAMILIES.iter().any(|family| is_known(family.bpf).unwrap_or(false))
}

/// The packages of a compiler for the kernel programs and of all it needs, or none if apt knows of no such compiler.
pub(super) fn packages() -> Result<Option<Vec<String>>> {
    for family in FAMILIES {
        if is_known(family.bpf)? {
            return packages_of(family).map(Some);
        }
    }
    Ok(None)
}

fn packages_of(family: Family) -> Result<Vec<String>> {
    let Family { rustc, std, bpf, clippy } = family;
    let mut names = vec![rustc.to_owned(), bpf.to_owned()];
    if is_known(clippy)? {
        names.push(clippy.to_owned());
    }
    let needed = output(Command::new("apt-cache").args(["depends", "--recurse", "--important", std]))?;
    let needed = named_packages(&needed);
    let installed = installed(&needed);
    names.extend(needed.into_iter().filter(|name| belongs_to_compiler(name) || !installed.contains(name)));
    Ok(names)
}

/// A name may be known because another package mentions it; only a real one has a description to show.
fn is_known(package: &str) -> Result<bool> {
    // Of a name it never heard, apt-cache complains with an error: that is a "no" as well.
    let shown = Command::new("apt-cache").args(["show", "--no-all-versions", package]).output();
    Ok(!shown.context("`apt-cache` could not be started")?.stdout.is_empty())
}

/// These packages and the libraries that they need and that are not installed. What else they depend on is for those
/// who install them.
pub(super) fn with_libraries(packages: &[&str]) -> Result<Vec<String>> {
    let mut names: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
    let mut libraries = BTreeSet::new();
    let mut next = 0;
    while let Some(name) = names.get(next) {
        let answer = output(Command::new("apt-cache").args(["depends", "--important", name]))?;
        let new = needed_libraries(&answer).filter(|library| libraries.insert((*library).to_owned()));
        let new: BTreeSet<String> = new.map(str::to_owned).collect();
        let installed = installed(&new);
        names.extend(new.into_iter().filter(|library| !installed.contains(library)));
        next += 1;
    }
    Ok(names)
}

/// The libraries in the answer of `apt-cache depends`, virtual ones left out.
fn needed_libraries(answer: &str) -> impl Iterator<Item = &str> {
    let needed = answer.lines().filter_map(|line| line.split_once("Depends: ").map(|(_, name)| name.trim()));
    needed.filter(|name| name.starts_with("lib") && !name.contains(':'))
}

/// The versions of these packages that apt would fetch, one a line.
pub(super) fn versions(packages: &[&str]) -> Result<String> {
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions"]).args(packages))?;
    let lines = shown.lines().filter(|line| line.starts_with("Package: ") || line.starts_with("Version: "));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// The packages in the answer of `apt-cache depends --recurse`: they stand at the start of a line, their relations are
/// indented. Virtual packages (`<libc-dev>`) and those of foreign architectures (`libc6:i386`) cannot be unpacked.
fn named_packages(answer: &str) -> BTreeSet<String> {
    let names = answer.lines().filter(|line| !line.starts_with(char::is_whitespace));
    names.map(str::trim).filter(|name| !name.is_empty() && !name.contains(['<', ':'])).map(str::to_owned).collect()
}

/// These are unpacked even where they are installed: what is installed may change under our feet.
fn belongs_to_compiler(package: &str) -> bool {
    package.starts_with("libstd-rust") || package.starts_with("libllvm")
}

fn installed(packages: &BTreeSet<String>) -> BTreeSet<String> {
    let format = "--showformat=${db:Status-Abbrev} ${Package}\n";
    // It fails if one of them is unknown to it, yet answers for the others.
    let answer = Command::new("dpkg-query").args(["--show", format]).args(packages).output();
    answer.map(|out| installed_in(&String::from_utf8_lossy(&out.stdout))).unwrap_or_default()
}

fn installed_in(answer: &str) -> BTreeSet<String> {
    let packages = answer.lines().filter_map(|line| line.strip_prefix("ii "));
    packages.map(|name| name.trim().to_owned()).collect()
}

/// Downloads the packages into `folder`, which must be empty, and returns their files.
pub(super) fn download(packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
    // apt would as root hand the download to a user who may not write here, and warn about it.
    let sandbox = ["-o", "APT::Sandbox::User=root"];
    output(Command::new("apt-get").arg("-qq").args(sandbox).arg("download").args(packages).current_dir(folder))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.push(entry?.path());
    }
    files.sort();
    if files.len() != packages.len() {
        bail!("apt-get downloaded {} of {} packages", files.len(), packages.len());
    }
    Ok(files)
}

/// Unpacks a package's files beneath `folder`; nothing of it is run.
pub(super) fn unpack(package: &Path, folder: &Path) -> Result<()> {
    output(Command::new("dpkg").arg("--extract").arg(package).arg(folder)).map(drop)
}

/// Installs packages as root, with newer lists at the second attempt.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    try_install(packages).or_else(|_| update().and_then(|()| try_install(packages)))
}

fn try_install(packages: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "install", "-y", "--no-install-recommends"]);
    output(apt.args(packages)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn only_real_packages_of_this_machine_are_unpacked() {
        let answer = "libstd-rust-dev\n  Depends: libstd-rust-1.85\nlibstd-rust-1.85\n  Depends: libc6\n \
                      |Depends: <libgcc1>\n    libgcc-s1\nlibc6\nlibc6:i386\n<libgcc1>\n";
        assert_eq!(named_packages(answer), set(["libc6", "libstd-rust-1.85", "libstd-rust-dev"]));
    }

    #[test]
    fn of_what_a_package_needs_only_its_libraries_are_unpacked() {
        let answer = "libgpgme11\n |Depends: gnupg\n  Depends: <libvirtual>\n  PreDepends: libassuan0\n  \
                      Depends: libgpg-error0\n";
        assert_eq!(needed_libraries(answer).collect::<Vec<_>>(), ["libassuan0", "libgpg-error0"]);
    }

    #[test]
    fn a_removed_package_does_not_count_as_installed() {
        let answer = "ii  libffi8\nrc  libz3-4\nun  libxml2\nii  libicu72\n";
        assert_eq!(installed_in(answer), set(["libffi8", "libicu72"]));
    }

    #[test]
    fn the_compilers_own_libraries_are_always_unpacked() {
        for (package, own) in [("libstd-rust-web-1.96", true), ("libllvm22", true), ("libstdc++6", false)] {
            assert_eq!(belongs_to_compiler(package), own, "{package}");
        }
    }
}
