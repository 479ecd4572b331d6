//! The thread that writes the audit log: batches, a file that is moved away, a disk that is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::chain::{Head, next_line, read_line};
use super::event::Event;
use super::shared::{Entry, Shared};
use crate::files::{FileId, check_regular};

/// How long a file that cannot be written is left alone.
const AGAIN: Duration = Duration::from_secs(2);
/// Records that are written at once.
const BATCH: usize = 512;
/// The end of a file that is read for its last record; far above the longest record.
const TAIL_BYTES: u64 = 64 * 1024;

pub(super) struct Writer {
    file: PathBuf,
    required: bool,
    shared: Arc<Shared>,
    head: Head,
    open: Option<File>,
    failed_at: Option<Instant>,
    /// An end that does not fit what had been written, noted in the next record.
    truncated: Option<Head>,
}

impl Writer {
    pub fn new(file: PathBuf, required: bool, shared: Arc<Shared>) -> Self {
        Self { file, required, shared, head: Head::default(), open: None, failed_at: None, truncated: None }
    }

    /// Writes until all senders are gone.
    pub fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            let mut batch = match entries.recv_timeout(AGAIN) {
                Ok(entry) => vec![entry],
                // Whatever was lost is noted as soon as it can be.
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // All that has come meanwhile goes in one write: with `required`, one fsync serves them all.
            batch.extend(entries.try_iter().take(BATCH));
            if batch.is_empty() && self.shared.lost.load(Ordering::Relaxed) == 0 {
                continue;
            }
            self.write_batch(batch);
        }
    }

    fn write_batch(&mut self, batch: Vec<Entry>) {
        let rests = self.failed_at.is_some_and(|at| at.elapsed() < AGAIN);
        let result =
            if rests { Err(self.problem()) } else { self.try_write(&batch).map_err(|error| error.to_string()) };
        match &result {
            Ok(()) => self.succeeded(),
            Err(problem) => {
                self.shared.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                if !rests {
                    self.failed(problem);
                }
            }
        }
        let answers: Vec<oneshot::Sender<_>> = batch.into_iter().filter_map(|entry| entry.written).collect();
        for answer in answers {
            let _ = answer.send(result.clone());
        }
    }

    /// Appends the records of `batch` whole, or none of them.
    fn try_write(&mut self, batch: &[Entry]) -> io::Result<()> {
        self.reopen()?;
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let (mut head, mut text) = (self.head.clone(), String::new());
        let truncated = self.truncated.as_ref().map(|head| Event::Truncated { expected: head.to_string() });
        let lost_event = (lost > 0).then_some(Event::Lost { records: lost });
        let now = jiff::Timestamp::now();
        let events = truncated.iter().chain(&lost_event).map(|event| (now, event));
        for (time, event) in events.chain(batch.iter().map(|entry| (entry.time, &entry.event))) {
            let (line, next) = next_line(&head, time, event)?;
            text.push_str(&line);
            head = next;
        }
        let Some(file) = &mut self.open else { return Err(io::ErrorKind::NotFound.into()) };
        let end = file.metadata()?.len();
        let written =
            file.write_all(text.as_bytes()).and_then(|()| if self.required { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Half a line would be taken for a change.
            let _ = file.set_len(end);
            return Err(error);
        }
        self.head = head;
        self.truncated = None;
        self.shared.lost.fetch_sub(lost, Ordering::Relaxed);
        // Beside the log, and not within it: shows an end that was cut off. A failure to write it is ignored.
        let _ = std::fs::write(self.head_file(), format!("{}\n", self.head));
        Ok(())
    }

    /// Opens the file again when it was moved away or removed, as logrotate does.
    fn reopen(&mut self) -> io::Result<()> {
        // Log rotation moves the file away; what is written from then on belongs into the new one.
        let in_place = std::fs::metadata(&self.file).as_ref().map(FileId::from).ok();
        if let Some(open) = &self.open
            && Some(FileId::from(&open.metadata()?)) == in_place
        {
            return Ok(());
        }
        let was_open = self.open.take().is_some();
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.file)?;
        // A pipe takes what it is given, and nobody may keep it.
        check_regular(&file)?;
        // Two writers would each go on from the same hash, and the chain would fork.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| io::Error::new(io::Error::from(error).kind(), "another process writes to it"))?;
        // A file that was moved away is followed by an empty one, in which the chain in memory goes on.
        if !was_open {
            self.go_on(&mut file)?;
        }
        self.open = Some(file);
        Ok(())
    }

    /// After a start, or after the file could not be written: the chain goes on after the last record of the file.
    fn go_on(&mut self, file: &mut File) -> io::Result<()> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail)?;
        // A crash in the middle of a line: the next record begins on one of its own, and the torn one stays as it is.
        if !tail.is_empty() && !tail.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        let tail = String::from_utf8_lossy(&tail);
        let last = tail.lines().rev().find_map(|line| read_line(line).ok()).map(|link| link.head());
        let kept = std::fs::read_to_string(self.head_file()).ok().and_then(|text| text.parse::<Head>().ok());
        // The folder may have been removed, with all that was in it, while the log could not be written.
        let written = (self.head.seq > 0).then(|| self.head.clone());
        let kept = kept.into_iter().chain(written).max_by_key(|head| head.seq);
        self.head = match (last, kept) {
            // Moved away or removed meanwhile: the chain goes on in an empty file.
            (None, Some(kept)) if length == 0 => kept,
            (last, kept) => {
                let last = last.unwrap_or_default();
                if let Some(kept) = kept.filter(|kept| *kept != last && kept.seq >= last.seq) {
                    error!(file = %self.file.display(), expected = %kept, found = %last, "the audit log was truncated or changed");
                    self.truncated = Some(kept);
                }
                last
            }
        };
        Ok(())
    }

    fn head_file(&self) -> PathBuf {
        self.file.with_added_extension("head")
    }

    fn problem(&self) -> String {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.problem.clone().unwrap_or_default()
    }

    fn succeeded(&mut self) {
        if self.failed_at.take().is_some() {
            info!(file = %self.file.display(), "the audit log is written again");
        }
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head = self.head.clone();
        state.problem = None;
    }

    fn failed(&mut self, problem: &str) {
        if self.failed_at.replace(Instant::now()).is_none() {
            error!(file = %self.file.display(), problem, "the audit log cannot be written; tried again every 2 s");
        }
        // Only for this file: another one may be in its place by then.
        self.open = None;
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).problem = Some(problem.to_owned());
    }
}
