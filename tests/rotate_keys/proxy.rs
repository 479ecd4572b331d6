//! A proxy before an API server, as a balancer with a certificate and a path of its own, which answers by itself when a
//! test wants it to.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
}

/// A proxy before an API server.
pub struct Proxy {
    mode: Arc<Mutex<Mode>>,
    /// `--kubeconfig=…`
    pub kubeconfig: String,
    /// `--server=…`, so that no API server is asked by itself.
    pub server: String,
    /// The file with the token that the kubeconfig names.
    pub token: PathBuf,
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
    client: kube::Client,
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
        let mode = Arc::new(Mutex::new(Mode::Pass));
        let behind = Behind { mode: mode.clone(), client: plane.servers[0].client() };
        let router = Router::new().fallback(pass).with_state(behind);
        let task = tokio::spawn(async move { axum::serve(tls, router).await.unwrap() });
        let kubeconfig = format!("--kubeconfig={}", at("kubeconfig").display());
        Self { mode, kubeconfig, server: format!("--server={url}"), token: at("token"), task }
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
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
        Mode::Fail(path, status) if request.method() == "PATCH" && request.uri().path().ends_with(&path) => {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        Mode::Pass | Mode::Demand(_) | Mode::Fail(..) => {}
    }
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::AUTHORIZATION);
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    parts.uri = path.strip_prefix(PREFIX).unwrap_or("/nothing-here").parse().unwrap();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let request = http::Request::from_parts(parts, kube::client::Body::from(body));
    match behind.client.send(request).await {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            // How this one connection carries the body.
            parts.headers.remove(header::TRANSFER_ENCODING);
            let body = body.collect().await.unwrap().to_bytes();
            Response::from_parts(parts, Body::from(body))
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
