//! `/livez`, `/readyz`, `/metrics` and `/status` over HTTP. Reads what others publish; asks no KEK.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Json, Router, routing::get};
use serde::{Deserialize, Serialize};

use super::refresh::KekHealth;
use super::service::Service;
use super::state::{Serving, Trouble};

use crate::telemetry::Metrics;

/// What the endpoints tell of.
#[derive(Clone, Debug)]
pub struct Health {
    /// The service.
    pub service: Arc<Service>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What the KEKs said last.
    pub keks: Arc<ArcSwap<Vec<KekHealth>>>,
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
    /// The KEKs that wrap.
    pub keks: Vec<KekReport>,
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
    /// When it last answered well.
    pub last_contact: Option<jiff::Timestamp>,
    /// Why it does not answer.
    pub error: Option<String>,
}

/// The endpoints.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(|State(health): State<Health>| async move { Json(health.report()) }))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.service.serving().refusal() {
        None => (StatusCode::OK, "ok".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.to_owned()),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    health.metrics.cached_deks(health.service.cache().held());
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], health.metrics.encode())
}

impl Health {
    fn report(&self) -> StatusReport {
        let serving = self.service.serving();
        let (state, reason) = match &*serving {
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
        });
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: self.service.cluster().into(),
            state,
            reason: reason.map(str::to_owned),
            key_id: serving.generation().map(|generation| generation.key_id().to_string()),
            dek_id: serving.generation().map(|generation| generation.dek_id().to_string()),
            started: self.started,
            deks_kept: self.service.store().count(),
            keks: keks.collect(),
        }
    }
}
