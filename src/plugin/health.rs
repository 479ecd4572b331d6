//! `/livez`, `/readyz`, `/metrics` and `/status` over HTTP. Reads what others publish; asks no KEK.

pub mod listener;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header, uri::Authority};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde::{Deserialize, Serialize};

use super::refresh::KekHealth;
use super::service::Service;
use super::socket::OutOfPlace;
use super::state::{Serving, Trouble};
use crate::kek::takeover::TakeoverHealth;
use crate::telemetry::Metrics;

/// What is said while the private half of a break-glass KEK is in memory.
const UNLOCKED: &str = "the private half of the break-glass KEK is in memory: what is stored may open by it alone; restart \
                            without --break-glass only after rotate-keys has brought everything under another KEK";

/// What the endpoints report from.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether it serves, and from what, is read from it at each request.
    pub service: Arc<Service>,
    /// What `/metrics` answers with.
    pub metrics: Arc<Metrics>,
    /// What the KEKs said last.
    pub keks: Arc<ArcSwap<Vec<KekHealth>>>,
    /// Why no API server can connect, where that is so.
    pub socket: OutOfPlace,
    /// Whether the private half of a break-glass KEK is in memory.
    pub is_unlocked: bool,
    /// When the process started.
    pub started: jiff::Timestamp,
}

/// The answer of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// The program's version.
    pub version: String,
    /// The configured cluster.
    pub cluster: String,
    /// What the plugin does at this moment.
    pub state: Activity,
    /// Why, where it is not simply ready.
    pub reason: Option<String>,
    /// The active generation.
    pub key_id: Option<String>,
    /// This node's DEK of it.
    pub dek_id: Option<String>,
    /// When the process started.
    pub started: jiff::Timestamp,
    /// DEKs kept wrapped in the state folder.
    pub deks_kept: usize,
    /// The KEKs, those that only unwrap last.
    pub keks: Vec<KekReport>,
    /// What opens other plugins' data, where it is configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takeover: Vec<TakeoverReport>,
    /// The audit log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditReport>,
}

/// An entry of `takeover` in the answer of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakeoverReport {
    /// Its configured name.
    pub name: String,
    /// Whose data it opens.
    pub plugin: String,
    /// How many Decrypts it answered since it was configured.
    pub opened: u64,
    /// When the last one was.
    pub last_opened: Option<jiff::Timestamp>,
    /// What the key store said, where the last one failed.
    pub error: Option<String>,
}

/// The audit log in the answer of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditReport {
    /// Number and hash of the last record, for `kube-envelope audit verify --head`.
    pub head: String,
    /// Records lost and not yet noted in the log.
    pub lost: u64,
    /// Why it cannot be written, where it cannot.
    pub error: Option<String>,
}

/// What the plugin does at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// Serves, and follows its KEKs.
    Ready,
    /// Serves, and some KEK does not answer or was not followed.
    Degraded,
    /// Serves from memory; no KEK answers.
    Coasting,
    /// No generation yet.
    Waiting,
    /// Denied, or too long without a KEK.
    Stopped,
}

/// One KEK in the answer of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KekReport {
    /// Its configured name.
    pub name: String,
    /// Fingerprint of its home, hex.
    pub lineage: String,
    /// Its active version, as last heard.
    pub version: Option<String>,
    /// When it last unwrapped.
    pub last_contact: Option<jiff::Timestamp>,
    /// What it said when it last failed.
    pub error: Option<String>,
    /// Whether it only unwraps.
    pub retired: bool,
    /// Its versions that kept DEKs need, and what each did when it was last asked to unwrap: `opens`, `denies`,
    /// `lost`, `silent`.
    pub versions: BTreeMap<String, String>,
    /// A break-glass KEK whose private half is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<OfflineReport>,
}

/// A break-glass KEK in the answer of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfflineReport {
    /// The public half.
    pub recipient: String,
    /// When its private half was last tried, where that was shown.
    pub proven: Option<jiff::Timestamp>,
}

/// The endpoints, asked by an address, as `localhost`, or by one of `hosts`.
pub fn router(health: Health, hosts: &[String]) -> Router {
    let hosts: Arc<[String]> = hosts.into();
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(|State(health): State<Health>| async move { Json(health.report()) }))
        .with_state(health)
        .layer(from_fn(move |request, next| check_host(hosts.clone(), request, next)))
}

/// A web page may give its own name the address of this machine, and ask us with it (DNS rebinding): a name that is not
/// known here is refused.
async fn check_host(hosts: Arc<[String]>, request: Request, next: Next) -> Response {
    let named = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default().to_owned());
    let named = request.uri().authority().map(ToString::to_string).into_iter().chain(named);
    // A web page in an operator's browser can lead a name of its own to this address (DNS rebinding) and read what is
    // here. It cannot make the browser send another Host.
    match named.into_iter().find(|host| !is_known(host, &hosts)) {
        None => next.run(request).await,
        Some(host) => {
            let host: String = host.chars().take(64).collect();
            let text = format!(
                "{host:?} is not a name of this listener; use its address, or list the name under health.hosts"
            );
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        }
    }
}

fn is_known(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return host.is_empty() };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || address.parse::<IpAddr>().is_ok()
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let refusal = health.service.serving().refusal().map(str::to_owned);
    match refusal.or_else(|| health.obstacle()) {
        None => (StatusCode::OK, "ok".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    if let Some((state, lost)) = health.service.audit().state() {
        health.metrics.audit(state.head.seq, lost, state.problem.is_some());
    }
    // Ages go on without any event, so they are measured when they are asked for.
    health.service.measure(&health.metrics);
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], health.metrics.encode())
}

impl Health {
    /// Why an API server gets no answer although there is one: it cannot connect, or a use that has to be recorded cannot be.
    fn obstacle(&self) -> Option<String> {
        self.socket.load().as_deref().cloned().or_else(|| self.service.audit().refusal())
    }

    fn report(&self) -> StatusReport {
        let serving = self.service.serving();
        let obstacle = self.obstacle();
        let (state, reason) = match &*serving {
            Serving::Ready { .. } if obstacle.is_some() => (Activity::Degraded, obstacle.as_deref()),
            Serving::Ready { trouble: None, .. } if self.is_unlocked => (Activity::Degraded, Some(UNLOCKED)),
            Serving::Ready { trouble: None, .. } => (Activity::Ready, None),
            Serving::Ready { trouble: Some(trouble @ Trouble::Degraded(_)), .. } => {
                (Activity::Degraded, Some(trouble.reason()))
            }
            Serving::Ready { trouble: Some(trouble @ Trouble::Coasting(_)), .. } => {
                (Activity::Coasting, Some(trouble.reason()))
            }
            Serving::Waiting { reason } => (Activity::Waiting, Some(reason.as_str())),
            Serving::Stopped { reason } => (Activity::Stopped, Some(reason.as_str())),
        };
        let health = self.keks.load();
        let keks = health.iter().map(|kek| KekReport {
            name: kek.name.clone(),
            lineage: kek.lineage.to_string(),
            version: kek.version.clone(),
            last_contact: kek.last_contact,
            error: kek.error.clone(),
            retired: kek.is_retired,
            versions: kek.versions.iter().map(|of| (of.version.clone(), of.standing.as_str().into())).collect(),
            offline: kek.offline.clone().map(|key| OfflineReport { recipient: key.recipient, proven: key.proven }),
        });
        let takeovers = self.service.takeovers().health();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: self.service.cluster().to_string(),
            state,
            reason: reason.map(str::to_owned),
            key_id: serving.generation().map(|generation| generation.key_id().to_string()),
            dek_id: serving.generation().map(|generation| generation.dek_id().to_string()),
            started: self.started,
            deks_kept: self.service.store().count(),
            keks: keks.collect(),
            takeover: takeovers.into_iter().map(TakeoverReport::from).collect(),
            audit: self.service.audit().state().map(|(state, lost)| AuditReport {
                head: state.head.to_string(),
                lost,
                error: state.problem,
            }),
        }
    }
}

impl From<TakeoverHealth> for TakeoverReport {
    fn from(TakeoverHealth { name, plugin, opened, last_opened, error }: TakeoverHealth) -> Self {
        Self { name, plugin: plugin.to_owned(), opened, last_opened, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_configured_names_are_known_and_no_others() {
        let hosts = ["node-1.example".to_owned()];
        for known in
            ["127.0.0.1:8380", "10.0.0.1", "[::1]:8380", "localhost", "localhost:80", "Node-1.example:8380", ""]
        {
            assert!(is_known(known, &hosts), "{known}");
        }
        for foreign in
            ["evil.example", "evil.example:8380", "127.0.0.1.evil.example", "localhost.evil.example", "a b", "@"]
        {
            assert!(!is_known(foreign, &hosts), "{foreign}");
        }
    }
}
