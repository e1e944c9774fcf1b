//! `guard-agent record`: the samples of a running agent as a file.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write as _,
    mem,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use tokio::time::{self, Instant};

use crate::{
    client,
    core::trace::{Decoder, HEADER, Header, Record, TraceError},
};

/// The time between two lines that say how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// What a recording holds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Samples.
    pub samples: u64,
    /// Containers that were there at any time.
    pub containers: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// From the first sample to the last.
    pub length: Duration,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, containers, bytes, length } = self;
        let length = humantime::format_duration(Duration::from_secs(length.as_secs()));
        write!(f, "{samples} samples of {containers} containers over {length}, {} kB,", bytes.div_ceil(1000))
    }
}

/// Records to a new file until `stop` is done, or for `duration` if there is one. An agent that ends before is an
/// error, but what it sent is in the file.
pub async fn run(
    socket: &Path,
    output: &Path,
    duration: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Result<Recorded> {
    if output.symlink_metadata().is_ok() {
        bail!("{} is there already: pass another --output, or remove it", output.display());
    }
    let body = client::open(socket, "/trace").await?;
    let mut recording = Recording::new(output);
    let over = async {
        match duration {
            Some(duration) => time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = recording.record(body) => ended,
        () = stop => Ok(()),
        () = over => Ok(()),
    };
    recording.finish(ended)
}

/// A file that grows by whole records only.
struct Recording {
    output: PathBuf,
    /// Once the header is there.
    begun: Option<(File, Decoder, Header)>,
    /// What came in of a record that is not yet whole.
    left: Vec<u8>,
    recorded: Recorded,
}

impl Recording {
    fn new(output: &Path) -> Self {
        Self { output: output.to_owned(), begun: None, left: Vec::new(), recorded: Recorded::default() }
    }

    /// Only ends with an error.
    async fn record(&mut self, mut body: Incoming) -> Result<()> {
        let mut progress = time::interval_at(Instant::now() + PROGRESS, PROGRESS);
        loop {
            tokio::select! {
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => self.take(&frame.into_data().unwrap_or_default())?,
                    Some(Err(error)) => return Err(error).context("the agent ended, or cut a reader off that was too slow"),
                    None => bail!("the agent ended"),
                },
                _ = progress.tick() => eprintln!("{} so far", self.recorded),
            }
        }
    }

    /// Takes a part of the trace, wherever it is cut.
    fn take(&mut self, part: &Bytes) -> Result<()> {
        self.left.extend(part);
        let left = mem::take(&mut self.left);
        let mut rest = left.as_slice();
        if self.begun.is_none() {
            match Header::decode(rest) {
                Err(TraceError::Empty(_)) => {}
                header => {
                    let header = header.context("the agent's answer cannot be used")?;
                    self.begun = Some((self.create()?, Decoder::new(header), header));
                    rest = &rest[HEADER..];
                }
            }
        }
        if let Some((file, decoder, header)) = &mut self.begun {
            while let Some(record) = decoder.decode(&mut rest).context("the agent's answer cannot be used")? {
                match record {
                    Record::Appears(_) => self.recorded.containers += 1,
                    Record::Gone(_) => {}
                    Record::Sample(sample) => {
                        self.recorded.samples += 1;
                        self.recorded.length = Duration::from_nanos(sample.at - header.at);
                    }
                }
            }
            let whole = &left[..left.len() - rest.len()];
            file.write_all(whole).with_context(|| format!("cannot write to {}", self.output.display()))?;
            self.recorded.bytes += whole.len() as u64;
        }
        self.left = rest.to_vec();
        Ok(())
    }

    /// For root only, as the socket is.
    fn create(&self) -> Result<File> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.output);
        created.with_context(|| format!("cannot make {}", self.output.display()))
    }

    fn finish(self, ended: Result<()>) -> Result<Recorded> {
        let output = self.output.display();
        let Some((file, ..)) = self.begun else {
            ended?;
            bail!("nothing was recorded: the agent has not taken a sample yet; try again once its /readyz says ok");
        };
        ended.with_context(|| format!("recorded {} to {output}, and then no more", self.recorded))?;
        file.sync_all().with_context(|| format!("cannot write to {output}"))?;
        Ok(self.recorded)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
