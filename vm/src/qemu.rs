//! The process of a guest.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

/// qemu, which ends when this is dropped, and when this process does.
#[derive(Debug)]
pub(crate) struct Qemu {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
    input: ChildStdin,
    /// What it writes to its port, piece by piece; ends with it.
    pub(crate) output: Receiver<Vec<u8>>,
}

impl Qemu {
    pub(crate) fn start(arguments: Vec<OsString>, complaints: File) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (give, given) = mpsc::channel();
        // The kernel ends a process for its parent's death when the *thread* ends that started it: this one stays.
        let keeper =
            thread::Builder::new().name("qemu".into()).spawn(move || keep(&arguments, complaints, &give, &stopped))?;
        let started = given.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")));
        let (input, mut from) = started?;
        let (send, output) = mpsc::channel();
        thread::Builder::new().name("qemu output".into()).spawn(move || {
            let mut piece = vec![0; 1 << 16];
            while let Ok(len) = from.read(&mut piece)
                && len > 0
                && send.send(piece[..len].to_vec()).is_ok()
            {}
        })?;
        Ok(Self { stop: Some(stop), keeper: Some(keeper), input, output })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.write_all(bytes)?;
        self.input.flush()
    }

    /// How it ended; it is ended if it runs.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        drop(self.stop.take());
        self.keeper.take()?.join().ok()?.ok()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

type Pipes = (ChildStdin, std::process::ChildStdout);

fn keep(
    arguments: &[OsString],
    complaints: File,
    give: &Sender<io::Result<Pipes>>,
    stopped: &Receiver<()>,
) -> io::Result<ExitStatus> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(arguments);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints).spawn();
    let mut child = match spawned.and_then(pipes) {
        Ok((child, pipes)) => {
            // Whoever asked for it waits.
            let _taken = give.send(Ok(pipes));
            child
        }
        Err(error) => {
            let again = io::Error::new(error.kind(), error.to_string());
            let _taken = give.send(Err(error));
            return Err(again);
        }
    };
    loop {
        match stopped.recv_timeout(Duration::from_millis(20)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => child.kill()?,
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
    }
}

fn pipes(mut child: Child) -> io::Result<(Child, Pipes)> {
    match (child.stdin.take(), child.stdout.take()) {
        (Some(input), Some(output)) => Ok((child, (input, output))),
        _ => Err(io::Error::other("it has no pipes")),
    }
}
