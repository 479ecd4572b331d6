//! A proxy before an API server, as a balancer with a certificate and a path of its own, which answers by itself when a
//! test wants it to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;

use crate::control_plane::ControlPlane;
use crate::https::Tls;

/// Before every path.
const PREFIX: &str = "/clusters/one";

/// What the proxy does with a request.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Passes it on.
    Pass,
    /// Answers this, once and again.
    Answer(u16),
    /// Says that it is overloaded, and when to come back.
    Overloaded,
    /// Answers this to writes of the object with this path, and passes on the rest.
    Fail(String, u16),
    /// Passes it on if it has this token, and refuses it otherwise.
    Demand(String),
    /// Answers nothing whose path ends so, and passes on the rest.
    CutOff(String),
    /// Refuses each kind of request for three seconds when it first comes, and passes it on from then on.
    Stumble(Stumbles),
    /// Passes everything on, and its metrics say that the API server was started again every second.
    Restarts,
}

/// When each kind of request came first, and how often it was refused.
#[derive(Clone, Debug, Default)]
pub struct Stumbles(Arc<Mutex<BTreeMap<String, (Instant, usize)>>>);

impl Stumbles {
    /// Kind → how often it was refused.
    pub fn refused(&self) -> BTreeMap<String, usize> {
        self.0.lock().unwrap().iter().map(|(kind, (_, times))| (kind.clone(), *times)).collect()
    }

    fn refuse(&self, request: &Request) -> Option<Response> {
        const STATUSES: [u16; 5] = [503, 429, 500, 502, 504];
        let mut kinds = self.0.lock().unwrap();
        let (first, times) = kinds.entry(kind(request)).or_insert((Instant::now(), 0));
        if *times > 0 && first.elapsed() > Duration::from_secs(3) {
            return None;
        }
        let status = STATUSES[*times % STATUSES.len()];
        *times += 1;
        Some(StatusCode::from_u16(status).unwrap().into_response())
    }
}

/// Method and path, without the names of single objects and groups, and whether it is only tried.
fn kind(request: &Request) -> String {
    let path = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    let parts: Vec<_> = path.split('/').skip(1).collect();
    let path = match parts.as_slice() {
        ["api", "v1", "namespaces", "default", plural, _] => format!("/api/v1/namespaces/default/{plural}/NAME"),
        ["apis", _, _] => "/apis/GROUP/VERSION".into(),
        _ => path.to_owned(),
    };
    let tried = request.uri().query().is_some_and(|query| query.contains("dryRun"));
    format!("{} {path}{}", request.method(), if tried { " (only tried)" } else { "" })
}

/// A proxy before an API server.
pub struct Proxy {
    behind: Behind,
    /// `--kubeconfig=…`
    pub kubeconfig: String,
    /// `--server=…`, so that no API server is asked by itself.
    pub server: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Behind {
    mode: Arc<Mutex<Mode>>,
    client: Arc<Mutex<kube::Client>>,
    /// How many single objects in `default` were read.
    reads: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn before(plane: &ControlPlane) -> Self {
        let (tls, certificate, port) = Tls::listen().await;
        let at = |name: &str| plane.folder.path().join(name);
        std::fs::write(at("proxy.crt"), certificate).unwrap();
        std::fs::write(at("token"), "first").unwrap();
        let url = format!("https://127.0.0.1:{port}{PREFIX}");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: {url}\n    \
             certificate-authority: {}\nusers:\n- name: u\n  user: {{tokenFile: {}}}\ncontexts:\n- name: c\n  context: \
             {{cluster: c, user: u}}\n",
            at("proxy.crt").display(),
            at("token").display()
        );
        std::fs::write(at("kubeconfig"), text).unwrap();
        let client = Arc::new(Mutex::new(plane.servers[0].client()));
        let behind = Behind { mode: Arc::new(Mutex::new(Mode::Pass)), client, reads: Arc::default() };
        let router = Router::new().fallback(pass).with_state(behind.clone());
        let task = tokio::spawn(async move { axum::serve(tls, router).await.unwrap() });
        let kubeconfig = format!("--kubeconfig={}", at("kubeconfig").display());
        Self { behind, kubeconfig, server: format!("--server={url}"), task }
    }

    pub fn set(&self, mode: Mode) {
        *self.behind.mode.lock().unwrap() = mode;
    }

    /// Passes everything on to another API server from now on.
    pub fn lead_to(&self, client: kube::Client) {
        *self.behind.client.lock().unwrap() = client;
    }

    /// How many single objects in `default` were read so far.
    pub fn reads(&self) -> usize {
        self.behind.reads.load(Relaxed)
    }
}

async fn pass(State(behind): State<Behind>, request: Request) -> Response {
    let mode = behind.mode.lock().unwrap().clone();
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match mode {
        Mode::Answer(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Mode::Overloaded => return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response(),
        Mode::Demand(demanded) if token != Some(&format!("Bearer {demanded}")) => {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        Mode::Stumble(stumbles) => {
            if let Some(refusal) = stumbles.refuse(&request) {
                return refusal;
            }
        }
        Mode::Fail(path, status) if request.method() == "PATCH" && request.uri().path().ends_with(&path) => {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Mode::CutOff(path) if request.uri().path().ends_with(&path) => std::future::pending().await,
        Mode::Pass | Mode::Demand(_) | Mode::Fail(..) | Mode::CutOff(_) | Mode::Restarts => {}
    }
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::AUTHORIZATION);
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    parts.uri = path.strip_prefix(PREFIX).unwrap_or("/nothing-here").parse().unwrap();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let request = http::Request::from_parts(parts, kube::client::Body::from(body));
    if request.method() == "GET" && request.uri().path().contains("/namespaces/default/") {
        behind.reads.fetch_add(1, Relaxed);
    }
    let is_metrics = request.uri().path() == "/metrics";
    let client = behind.client.lock().unwrap().clone();
    match client.send(request).await {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            // How this one connection carries the body.
            parts.headers.remove(header::TRANSFER_ENCODING);
            let mut body = body.collect().await.unwrap().to_bytes().to_vec();
            if matches!(*behind.mode.lock().unwrap(), Mode::Restarts) && is_metrics {
                parts.headers.remove(header::CONTENT_LENGTH);
                body.extend_from_slice(&started_again());
            }
            Response::from_parts(parts, Body::from(body))
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// The line of the metrics that says when the process was started; the last one counts.
fn started_again() -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    format!("process_start_time_seconds {now}\n").into_bytes()
}
