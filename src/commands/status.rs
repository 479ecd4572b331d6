//! `status`: asks the running plugin's health endpoint and shows the answer.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::exit::{Exit, block_on};
use crate::cli::{OutputFormat, StatusArgs};
use crate::config::{Config, DEFAULT_LISTEN, HealthAddress};
use crate::plugin::health::{Activity, StatusReport};

const PATIENCE: Duration = Duration::from_secs(3);

/// Runs the command. A plugin that does not serve is [`Exit::Error`].
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(args: &StatusArgs) -> Result<Exit> {
    // The plugin still runs under the configuration from before somebody broke it.
    let (listen, mistake) = match Config::load(&args.config) {
        Ok(config) => (config.health.listen, None),
        Err(mistake) => (HealthAddress::default(), Some(mistake)),
    };
    let body = block_on(async move {
        tokio::time::timeout(PATIENCE, ask(&listen, "/status"))
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| match &listen {
                HealthAddress::Off => "the running plugin cannot be asked".to_owned(),
                HealthAddress::Tcp(address) => format!("no plugin answers at http://{address}/status; is it running?"),
                HealthAddress::Unix(_) => format!("no plugin answers at {listen}; is it running?"),
            })
    });
    let body = match (body, mistake) {
        (Ok(body), Some(mistake)) => {
            eprintln!("note: {mistake}\nnote: asked at the default address, {DEFAULT_LISTEN}");
            body
        }
        (Err(_), Some(mistake)) => return Err(mistake.into()),
        (body, None) => body?,
    };
    let report = parse(&body)?;
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        OutputFormat::Table => print(&report),
    }
    let serves = !matches!(report.state, Activity::Waiting | Activity::Stopped);
    Ok(if serves { Exit::Done } else { Exit::Error })
}

fn parse(body: &str) -> Result<StatusReport> {
    serde_json::from_str(body).context("the program that answers there is not kube-envelope")
}

/// What the running plugin says; `None` where none answers.
pub(super) async fn of_the_running(listen: &HealthAddress) -> Option<StatusReport> {
    let body = tokio::time::timeout(PATIENCE, ask(listen, "/status")).await.ok()?.ok()?;
    parse(&body).ok()
}

async fn ask(listen: &HealthAddress, path: &str) -> Result<String> {
    match listen {
        HealthAddress::Off => bail!("health.listen is off in the configuration"),
        HealthAddress::Tcp(address) => get(TcpStream::connect(address).await?, path).await,
        HealthAddress::Unix(socket) => get(UnixStream::connect(socket).await?, path).await,
    }
}

/// One GET over HTTP/1.0: the answer ends with the connection.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    // Whatever listens there, it fills no memory; a report has a few kilobytes.
    stream.take(1 << 20).read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    if !head.contains(" 200 ") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

fn print(report: &StatusReport) {
    let state = serde_json::to_value(report.state).ok().and_then(|state| state.as_str().map(str::to_owned));
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.add_row(["state", &state.unwrap_or_default()]);
    table.add_row(["reason", report.reason.as_deref().unwrap_or("-")]);
    table.add_row(["cluster", &report.cluster]);
    table.add_row(["key_id", report.key_id.as_deref().unwrap_or("-")]);
    table.add_row(["DEK", report.dek_id.as_deref().unwrap_or("-")]);
    table.add_row(["DEKs kept", &report.deks_kept.to_string()]);
    table.add_row(["started", &report.started.to_string()]);
    table.add_row(["version", &report.version]);
    println!("{}\n", table.trim_fmt());
    let mut keks = Table::new();
    keks.load_style(comfy_table::presets::NOTHING).set_header(["KEK", "VERSION", "LAST CONTACT", "ERROR"]);
    for kek in &report.keks {
        let contact = match &kek.offline {
            Some(key) => key.proven.map_or("offline, not proven".into(), |at| format!("offline, proven {at:.0}")),
            None => kek.last_contact.map_or("-".into(), |contact| contact.to_string()),
        };
        let version = kek.version.clone().unwrap_or("-".into());
        let name = if kek.retired { format!("{} (retired)", kek.name) } else { kek.name.clone() };
        keks.add_row([name, version, contact, kek.error.clone().unwrap_or("-".into())]);
    }
    println!("{}", keks.trim_fmt());
    if !report.takeover.is_empty() {
        println!("\n{}", takeovers(report).trim_fmt());
    }
}

fn takeovers(report: &StatusReport) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["TAKEOVER", "PLUGIN", "OPENED", "LAST", "ERROR"]);
    for entry in &report.takeover {
        let last = entry.last_opened.map_or("-".into(), |last| last.to_string());
        let error = entry.error.clone().unwrap_or("-".into());
        table.add_row([entry.name.clone(), entry.plugin.clone(), entry.opened.to_string(), last, error]);
    }
    table
}
