//! The set-up of logs: format, filter, a limit below which nothing is logged, and how lines reach standard error.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use tracing::{Subscriber, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for each event, for people to read.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged unless `RUST_LOG` says otherwise. The SDK of AWS tells of credentials at each renewal, and dumps its errors
/// at each attempt; they are told in this program's words.
const DEFAULT_FILTER: &str = "info,aws_config=error";

/// Lines that wait for whoever reads standard error; beyond these they are counted as lost.
const WAITING: usize = 1024;

/// How long the last lines may take at the end of the process.
const WRITTEN_WITHIN: Duration = Duration::from_millis(500);

/// Sends log lines to standard error; `RUST_LOG` chooses what is logged, else `info`.
pub fn start_logs(format: LogFormat) {
    subscriber(format, filter(), std::io::stderr).init();
}

/// The same for what serves others: nobody waits for a line to be written. A pipe that nobody reads would otherwise hold
/// up every answer, and one that is closed end the process. Lines wait until `LogLines::write`.
#[must_use = "the last lines are written when it is dropped"]
pub fn start_log_lines(format: LogFormat) -> LogLines {
    let (waiting, lines) = sync_channel(WAITING);
    let queue = Queue { waiting, lost: Arc::default() };
    let writer = queue.clone();
    subscriber(format, filter(), move || writer.clone()).init();
    LogLines { queue, unwritten: Some(lines) }
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER))
}

/// What turns events into lines on `writer`. Whatever `filter` says, nothing below `debug` is logged: at `trace`
/// the clients of key services print requests and answers, and it is theirs to leave a body with a DEK out.
pub fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter).with_filter(LevelFilter::DEBUG))
}

/// Log lines on their way to standard error.
#[derive(Debug)]
pub struct LogLines {
    queue: Queue,
    /// Until there is a thread that writes.
    unwritten: Option<Receiver<Item>>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Answered once all before it is written.
    End(Sender<()>),
}

impl LogLines {
    /// Starts the thread that writes them: once the sandbox is entered, which a thread that is there already would escape.
    ///
    /// # Errors
    /// When the system has no thread.
    pub fn write(&mut self) -> std::io::Result<()> {
        let Some(lines) = self.unwritten.take() else { return Ok(()) };
        let lost = self.queue.lost.clone();
        std::thread::Builder::new().name("logs".into()).spawn(move || {
            for item in lines {
                write(item);
                match lost.swap(0, Ordering::Relaxed) {
                    0 => {}
                    lines => warn!(lines, "log lines were lost: standard error was not read in time"),
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        match &self.unwritten {
            Some(lines) => lines.try_iter().for_each(write),
            None => {
                let (written, answer) = channel();
                if self.queue.waiting.try_send(Item::End(written)).is_ok() {
                    let _ = answer.recv_timeout(WRITTEN_WITHIN);
                }
            }
        }
    }
}

fn write(item: Item) {
    match item {
        // There is nowhere to tell of a failure.
        Item::Line(line) => drop(std::io::stderr().write_all(&line)),
        Item::End(written) => drop(written.send(())),
    }
}

#[derive(Clone, Debug)]
struct Queue {
    waiting: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Write for Queue {
    /// Takes a whole line: the subscriber writes each event at once.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.waiting.try_send(Item::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
