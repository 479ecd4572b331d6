//! `doctor`: checks the configuration, this machine, what the API server is told, and each KEK with a throw-away
//! DEK, and says the fix for what is wrong. Changes nothing: no file is written, no socket taken, no KEK rotated.

mod apiserver;
#[cfg(feature = "rotate")]
mod cluster;
mod files;
mod host;
mod keks;
mod told;

use std::error::Error;
use std::time::Duration;

use anyhow::Result;
use comfy_table::Table;

use super::exit::{Exit, block_on};
use super::status;
use crate::cli::{DoctorArgs, OutputFormat};
use crate::config::{Config, SocketAddress};
use crate::error_chain::joined;
use crate::kms::v2::StatusRequest;
use crate::plugin::client::connect;
use crate::plugin::health::Activity;
use crate::posture::finding::{Finding, Outcome};

/// How long the plugin may take to answer at its socket.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Runs the command. A check that failed is [`Exit::Error`]; a configuration that cannot be read is an error of
/// its own, with all places that are wrong.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(args: &DoctorArgs) -> Result<Exit> {
    let config = Config::load(&args.config)?;
    let mut findings = files::check(&args.config, &config);
    findings.extend(host::check(&config));
    findings.extend(block_on(async { Ok(running(&config).await) })?);
    findings.extend(apiserver::check(&config, args.encryption_config.as_deref(), args.apiserver_manifest.as_deref()));
    findings.extend(block_on(async { Ok(keks::check(&config).await) })?);
    findings.extend(block_on(async { Ok(keks::check_takeovers(&config).await) })?);
    #[cfg(feature = "rotate")]
    findings.extend(block_on(async { Ok(cluster::check(args).await) })?);
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&report(&config, &findings))?),
        OutputFormat::Table => print(&config, &findings),
    }
    let failed = findings.iter().any(|finding| finding.result == Outcome::Failed);
    Ok(if failed { Exit::Error } else { Exit::Done })
}

/// What the running plugin says of itself: under a keyring that was replaced by a new one everything else looks well.
async fn running(config: &Config) -> Option<Finding> {
    const CHECK: &str = "running plugin";
    let report = status::of_the_running(&config.health.listen).await?;
    if report.cluster != config.cluster.as_str() {
        return Some(Finding::failed(
            CHECK,
            format!("it serves cluster {:?}, and the configuration says {:?}", report.cluster, config.cluster.as_str()),
            "put the former name back: what is encrypted is bound to it",
        ));
    }
    if let Err(problem) = reached(&config.socket.address).await {
        return Some(Finding::failed(
            CHECK,
            format!("its health endpoints answer, and its socket does not: {problem}"),
            "see that nothing else removes or replaces the socket, and restart the plugin",
        ));
    }
    let reason = report.reason.unwrap_or_else(|| "it gives no reason".into());
    Some(match report.state {
        Activity::Ready => Finding::ok(CHECK, "it serves"),
        Activity::Degraded | Activity::Coasting => {
            Finding::advice(CHECK, format!("it serves, and not as it should: {reason}"), "see the reason")
        }
        Activity::Waiting | Activity::Stopped => Finding::failed(
            CHECK,
            format!("it does not serve: {reason}"),
            "the reason says what to do; no API server starts before",
        ),
    })
}

/// Whether anybody answers at the socket, be it by a refusal. Only root is always let in, and can tell.
async fn reached(socket: &SocketAddress) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let asked = async {
        let mut client = connect(socket).await.map_err(|error| joined(error.to_string(), error.source()))?;
        match client.status(StatusRequest {}).await {
            Err(status) if status.source().is_some() => Err(joined(status.message().to_owned(), status.source())),
            _ => Ok(()),
        }
    };
    let no_answer = || format!("no answer within {} s", ANSWERS_WITHIN.as_secs());
    tokio::time::timeout(ANSWERS_WITHIN, asked).await.map_err(|_| no_answer())?
}

fn report(config: &Config, findings: &[Finding]) -> serde_json::Value {
    let settings: serde_json::Map<_, _> =
        settings(config).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::json!({ "settings": settings, "checks": findings })
}

/// The settings as they are in force, defaults included.
fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let uids: Vec<_> = config.socket.allowed_uids.iter().map(ToString::to_string).collect();
    vec![
        ("cluster", config.cluster.to_string()),
        ("epoch", config.epoch.to_string()),
        ("socket", config.socket.address.to_string()),
        ("socketMode", format!("{:04o}", config.socket.mode)),
        ("socketGroup", config.socket.group.clone().unwrap_or("the plugin's own".into())),
        ("allowedUids", if uids.is_empty() { "own, root".into() } else { format!("own, root, {}", uids.join(", ")) }),
        ("stateDir", config.state_dir.display().to_string()),
        ("maxOfflineAge", duration(config.max_offline_age)),
        ("refreshInterval", duration(config.refresh_interval)),
        ("proveInterval", duration(config.prove_interval)),
        ("health.listen", config.health.listen.to_string()),
        (
            "handover",
            config
                .handover
                .as_ref()
                .map_or("the service manager, if it stores".into(), |socket| socket.display().to_string()),
        ),
        (
            "sealedState",
            config.sealed_state.as_ref().map_or("none".into(), |sealed| {
                format!("by KEK {}, for {}", sealed.kek.name, duration(sealed.max_age))
            }),
        ),
    ]
}

fn print(config: &Config, findings: &[Finding]) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["SETTING", "IN FORCE"]);
    for (name, value) in settings(config) {
        table.add_row([name, &value]);
    }
    println!("{}\n", table.trim_fmt());
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["CHECK", "RESULT", "TIME", "DETAIL"]);
    for Finding { check, result, detail, milliseconds, .. } in findings {
        let result = match result {
            Outcome::Ok => "ok",
            Outcome::Advice => "advice",
            Outcome::Skipped => "-",
            Outcome::Failed => "FAILED",
        };
        let time = milliseconds.map_or("-".into(), |time| format!("{time} ms"));
        table.add_row([check.as_str(), result, &time, detail]);
    }
    println!("{}", table.trim_fmt());
    // A table cell would break a command to be copied.
    for Finding { check, fix, cis, .. } in findings {
        if let Some(fix) = fix {
            let cis = cis.map(|control| format!(" (CIS {control})")).unwrap_or_default();
            println!("\n{check}: {fix}{cis}");
        }
    }
}
