//! A guest that runs, and the shell in it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use crate::{guest::Folder, qemu::Qemu};

/// A guest; it is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    link: Mutex<Link>,
    folder: Folder,
    console: PathBuf,
    boot: Duration,
}

#[derive(Debug)]
struct Link {
    qemu: Qemu,
    /// What came and was not asked for yet.
    pending: Vec<u8>,
    asked: u64,
}

/// What a script said and came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as a shell gives it: 137 if it was killed, after its time among other reasons.
    pub status: i32,
    /// Its stdout and stderr.
    pub text: String,
}

/// The guest does not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// It panicked, was powered off, or qemu failed.
    #[error("the guest ended; the console's last words: {console}")]
    Ended {
        /// The end of its console.
        console: String,
    },
    /// Nothing came within the time that was given. What the guest does is unknown: end it.
    #[error("the guest did not answer within {limit:?}: {after}")]
    Silent {
        /// The time.
        limit: Duration,
        /// What it said last.
        after: String,
    },
    /// The pipe to qemu, or its files.
    #[error("the guest cannot be spoken to: {0}")]
    Pipe(#[from] io::Error),
}

/// How long a guest may take to kill a script whose time is over.
const GRACE: Duration = Duration::from_secs(30);

impl Running {
    pub(crate) fn start(arguments: Vec<OsString>, folder: Folder, console: PathBuf) -> io::Result<Self> {
        let qemu = Qemu::start(arguments, File::create(folder.0.join("complaints"))?)?;
        let link = Link { qemu, pending: vec![], asked: 0 };
        Ok(Self { link: Mutex::new(link), folder, console, boot: Duration::ZERO })
    }

    pub(crate) fn restart(&mut self, arguments: Vec<OsString>) -> Result<(), ShellError> {
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner);
        link.qemu.end();
        let qemu = Qemu::start(arguments, File::create(self.folder.0.join("complaints"))?)?;
        *link = Link { qemu, pending: vec![], asked: 0 };
        Ok(())
    }

    pub(crate) fn wait_up(&mut self, limit: Duration) -> Result<(), ShellError> {
        let start = Instant::now();
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner);
        let up = link.until(b"up ", limit, &mut |_| ()).and_then(|()| link.line(limit));
        up.map_err(|failure| failure.told(limit, &self.console))?;
        self.boot = start.elapsed();
        Ok(())
    }

    /// How long it took to boot.
    pub fn boot_time(&self) -> Duration {
        self.boot
    }

    /// Runs a shell script as root and waits for its end; one at a time. What it leaves in the background must not keep
    /// its stdout or stderr.
    ///
    /// # Errors
    ///
    /// If the guest ends meanwhile, or does not even kill the script after `limit`.
    pub fn shell(&self, script: &str, limit: Duration) -> Result<Output, ShellError> {
        let mut bytes = Vec::new();
        let status = self.stream(script, limit, |piece| bytes.extend_from_slice(piece))?;
        Ok(Output { status, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// As [`Self::shell`], but hands the output on as it comes, in pieces, and returns the status only.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stream(&self, script: &str, limit: Duration, mut tell: impl FnMut(&[u8])) -> Result<i32, ShellError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = limit + GRACE;
        let answer = link.ask(script, limit, patience, &mut tell);
        answer.map_err(|failure| failure.told(patience, &self.console))
    }

    /// The end of its console, and what qemu said.
    pub fn last_words(&self) -> String {
        let complaints = fs::read_to_string(self.folder.0.join("complaints")).unwrap_or_default();
        format!("{}{}", console(&self.console), complaints)
    }
}

/// The end of what a guest printed to its console.
fn console(file: &PathBuf) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4000)..]).into_owned()
}

enum Failure {
    Ended,
    Silent(String),
    Pipe(io::Error),
}

impl Failure {
    fn told(self, limit: Duration, file: &PathBuf) -> ShellError {
        match self {
            Self::Ended => ShellError::Ended { console: console(file) },
            Self::Silent(after) => ShellError::Silent { limit, after },
            Self::Pipe(error) => ShellError::Pipe(error),
        }
    }
}

impl Link {
    fn ask(
        &mut self,
        script: &str,
        limit: Duration,
        patience: Duration,
        tell: &mut dyn FnMut(&[u8]),
    ) -> Result<i32, Failure> {
        self.asked += 1;
        // Nothing that a script prints by chance.
        let mark = format!("@@{:x}-{}-{:x}", std::process::id(), self.asked, script.len().wrapping_mul(0x9e37_79b9));
        let request = format!("{mark} {} {}\n{script}", script.len(), limit.as_secs().max(1));
        self.qemu.write(request.as_bytes()).map_err(Failure::Pipe)?;
        self.until(format!("\n{mark} ").as_bytes(), patience, tell)?;
        let status = self.line(patience)?;
        status.trim().parse().map_err(|_| Failure::Pipe(io::Error::other(format!("{status:?} is no exit status"))))
    }

    /// Takes all up to and with `end`, which is not told.
    fn until(&mut self, end: &[u8], limit: Duration, tell: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
        let last = Instant::now() + limit;
        loop {
            if let Some(at) = self.pending.windows(end.len()).position(|window| window == end) {
                tell(&self.pending[..at]);
                self.pending.drain(..at + end.len());
                return Ok(());
            }
            // All but what may be the beginning of the end.
            let sure = self.pending.len().saturating_sub(end.len() - 1);
            if sure > 0 {
                tell(&self.pending[..sure]);
                self.pending.drain(..sure);
            }
            self.more(last)?;
        }
    }

    fn line(&mut self, limit: Duration) -> Result<String, Failure> {
        let mut line = vec![];
        self.until(b"\n", limit, &mut |piece| line.extend_from_slice(piece))?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn more(&mut self, last: Instant) -> Result<(), Failure> {
        let left = last.saturating_duration_since(Instant::now());
        match self.qemu.output.recv_timeout(left) {
            Ok(piece) => self.pending.extend(piece),
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::Ended),
            Err(RecvTimeoutError::Timeout) => {
                return Err(Failure::Silent(String::from_utf8_lossy(&self.pending).into_owned()));
            }
        }
        Ok(())
    }
}
