//! The archive that the kernel unpacks as its first root.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Write},
    path::Path,
};

/// Writes the "new ASCII" format of cpio (Documentation/driver-api/early-userspace/buffer-format.rst).
pub(crate) struct Archive<W> {
    out: W,
    folders: BTreeSet<String>,
    inode: u32,
    position: u64,
}

const FOLDER: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, folders: BTreeSet::new(), inode: 0, position: 0 }
    }

    /// An empty folder, and those above it.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let folder = &path[..end];
            if !folder.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER, 0, &mut io::empty())?;
            }
        }
        Ok(())
    }

    /// A file of this content.
    pub(crate) fn content(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, REGULAR | mode, content.len() as u64, &mut &*content)
    }

    /// A file with the content of the host's.
    pub(crate) fn file(&mut self, path: &str, mode: u32, host: &Path) -> io::Result<()> {
        self.parent(path)?;
        let mut file = File::open(host)?;
        let len = file.metadata()?.len();
        self.entry(path, REGULAR | mode, len, &mut file)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, LINK, target.len() as u64, &mut target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, 0, &mut io::empty())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.folder(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, len: u64, content: &mut dyn io::Read) -> io::Result<()> {
        let path = path.trim_matches('/');
        let size =
            u32::try_from(len).map_err(|_| io::Error::other(format!("{path} is too large for a cpio archive")))?;
        self.inode += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (4), length of the name with its NUL, no checksum
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.write(b"070701")?;
        fields.iter().try_for_each(|field| self.write(format!("{field:08x}").as_bytes()))?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.pad()?;
        let copied = io::copy(&mut content.take(len), &mut self.out)?;
        if copied != len {
            return Err(io::Error::other(format!("{path} became shorter while it was read")));
        }
        self.position += len;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.position % 4) % 4;
        self.write(&[0; 4][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    /// As another program reads it.
    #[test]
    fn an_archive_is_read_by_cpio() {
        let folder = std::env::temp_dir().join(format!("guard-vm-cpio-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder to test in");
        let host = folder.join("host");
        std::fs::write(&host, "from the host").expect("a file in it");
        let mut archive = Archive::new(Vec::new());
        archive.content("/a/b/odd", 0o755, b"abc").expect("memory");
        archive.content("a/b/empty", 0o644, b"").expect("memory");
        archive.file("a/host", 0o600, &host).expect("memory");
        archive.link("/l", "a/b/odd").expect("memory");
        archive.folder("/a/c/").expect("memory");
        let bytes = archive.finish().expect("memory");
        assert_eq!(bytes.len() % 4, 0);
        let mut busybox = Command::new("busybox");
        busybox.args(["cpio", "-idm", "--quiet"]).current_dir(&folder).stdin(Stdio::piped());
        let mut child = busybox.spawn().expect("busybox is installed");
        child.stdin.take().expect("piped").write_all(&bytes).expect("it reads");
        assert!(child.wait().expect("it ends").success());
        let read = |path: &str| std::fs::read_to_string(folder.join(path)).expect(path);
        assert_eq!(
            (read("l").as_str(), read("a/b/empty").as_str(), read("a/host").as_str()),
            ("abc", "", "from the host")
        );
        assert!(folder.join("a/c").is_dir());
        std::fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
