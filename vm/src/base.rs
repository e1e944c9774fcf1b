//! What is in every guest's first root: a shell, busybox, and programs of the host with their libraries.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::cpio::Archive;

const FOLDERS: [&str; 14] =
    ["bin", "dev", "etc", "job", "lib/modules", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "var"];

/// Debian's busybox runs its own `ip` from its shell, whatever `PATH` says: the shell is dash, and these are real.
const NOT_BUSYBOX: [&str; 5] = ["busybox", "sh", "ip", "tc", "sysctl"];

/// What every guest has of the host.
const PROGRAMS: [&str; 1] = ["ip"];

/// Where a program of the host lies.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Puts it all into the archive.
pub(crate) fn write<W: Write>(archive: &mut Archive<W>, programs: &[String]) -> io::Result<()> {
    FOLDERS.iter().try_for_each(|folder| archive.folder(folder))?;
    archive.content("init", 0o755, include_bytes!("init.sh"))?;
    archive.content("serve", 0o644, include_bytes!("serve.sh"))?;
    archive.content("serve.service", 0o644, include_bytes!("serve.service"))?;
    archive.content("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
    archive.content("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.content("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
    archive.content("etc/resolv.conf", 0o644, b"nameserver 10.0.2.3\n")?;
    archive.link("var/run", "/run")?;
    let busybox = need("busybox")?;
    if !libraries(&busybox)?.is_empty() {
        return Err(io::Error::other(format!("{} needs libraries: install busybox-static", busybox.display())));
    }
    archive.file("bin/busybox", 0o755, &busybox)?;
    let mut placed = BTreeSet::new();
    program(archive, &mut placed, "bin/sh", &need("dash")?)?;
    let wanted: BTreeSet<&str> = PROGRAMS.into_iter().chain(programs.iter().map(String::as_str)).collect();
    for name in &wanted {
        program(archive, &mut placed, &format!("usr/bin/{name}"), &need(name)?)?;
    }
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        if !NOT_BUSYBOX.contains(&applet) && !wanted.contains(applet) {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

fn need(name: &str) -> io::Result<PathBuf> {
    find(name).ok_or_else(|| io::Error::other(format!("`{name}` is not installed on the host")))
}

fn program<W: Write>(
    archive: &mut Archive<W>,
    placed: &mut BTreeSet<String>,
    path: &str,
    host: &Path,
) -> io::Result<()> {
    archive.file(path, 0o755, host)?;
    for library in libraries(host)? {
        if placed.insert(library.clone()) {
            archive.file(&library, 0o755, Path::new(&library))?;
        }
    }
    Ok(())
}

/// The libraries that a program is linked with, and its loader; none of a static one.
fn libraries(program: &Path) -> io::Result<Vec<String>> {
    // Of what is no dynamic executable it complains, and it is a script or static.
    let output = Command::new("ldd").arg(fs::canonicalize(program)?).output()?;
    Ok(if output.status.success() { paths(&String::from_utf8_lossy(&output.stdout)) } else { vec![] })
}

fn paths(answer: &str) -> Vec<String> {
    let lines = answer.lines().filter_map(|line| line.split_once(" => ").map(|(_, path)| path).or(Some(line)));
    let paths = lines.filter_map(|line| line.split_whitespace().next());
    paths.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_a_library_and_the_vdso_is_none() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        assert_eq!(paths(answer), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(paths("\tstatically linked\n").is_empty());
    }
}
