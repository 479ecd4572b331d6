//! The plugin's own binary as a child process, and a client of its socket.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Uri};

use super::{Process, STARTS_WITHIN, free_port, wait_until};

#[allow(clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("v2");
}
use proto::key_management_service_client::KeyManagementServiceClient;
use proto::{StatusRequest, StatusResponse};

/// Tests change files in folders of their own while the plugin runs; those of the sandbox itself take this line out.
pub const SANDBOX: &str = "sandbox: { readPaths: [/tmp, /dev/shm] }";

/// A running plugin.
pub struct Plugin {
    pub process: Process,
    /// Everything of it: `config.yaml`, `kms.sock`, `state/`.
    folder: tempfile::TempDir,
    health_port: u16,
}

impl Plugin {
    /// Starts `kube-envelope serve` and waits until its socket takes connections. `settings` is the part of the
    /// configuration beside socket, stateDir and health, which are chosen here.
    pub async fn start(settings: &str) -> Self {
        let plugin = Self::spawn(settings);
        plugin.wait_socket().await;
        plugin
    }

    /// The same without waiting.
    pub fn spawn(settings: &str) -> Self {
        Self::spawn_with(settings, &[])
    }

    /// The same with environment variables.
    pub fn spawn_with(settings: &str, environment: &[(&str, &str)]) -> Self {
        super::prepare();
        let folder = tempfile::Builder::new().prefix("kube-envelope-").tempdir().unwrap();
        let health_port = free_port();
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "{settings}\nsocket: {}\nstateDir: {}\nhealth: {{ listen: \"127.0.0.1:{health_port}\" }}\n{SANDBOX}\n",
            at("kms.sock").display(),
            at("state").display(),
        );
        std::fs::create_dir(at("state")).unwrap();
        std::fs::write(at("config.yaml"), config).unwrap();
        let arguments = ["serve".into(), "--config".into(), at("config.yaml").into()].to_vec();
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_kube-envelope"));
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let process = Process::start("kube-envelope", binary, arguments, environment, at("kube-envelope.log"));
        Self { process, folder, health_port }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("kms.sock")
    }

    /// Where `/livez`, `/readyz`, `/metrics` and `/status` are served.
    pub fn health_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.health_port)
    }

    /// What its health endpoint answers.
    pub fn get(&self, path: &str) -> String {
        get(self.health_port, path)
    }

    /// Whether `/readyz` is ok, and what it says.
    pub fn readyz(&self) -> (bool, String) {
        ask(self.health_port, "/readyz")
    }

    /// The value of a metric: the sum over the series of this name whose labels contain every one of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = get(self.health_port, "/metrics");
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, its_labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.iter().all(|label| its_labels.contains(label))).then_some(value)
        });
        series.map(|value| value.parse::<f64>().unwrap()).fold(0.0, |sum, value| sum + value)
    }

    /// How often a KEK was asked something, retries counted.
    pub fn kek_requests(&self, operation: &str) -> u64 {
        let requests = self.metric("kube_envelope_kek_requests_total", &[&format!("operation=\"{operation}")]);
        format!("{requests:.0}").parse().unwrap()
    }

    /// A client of its socket, on a new connection.
    pub async fn client(&self) -> Option<KeyManagementServiceClient<Channel>> {
        connect(&self.socket()).await
    }

    /// Its answer to Status; `None` when it gives none.
    pub async fn status(&self) -> Option<StatusResponse> {
        self.client().await?.status(StatusRequest {}).await.ok().map(tonic::Response::into_inner)
    }

    /// Waits until Status answers ok, and returns the key_id.
    pub async fn wait_healthy(&self) -> String {
        let mut key_id = String::new();
        wait_until("the plugin's Status says ok", STARTS_WITHIN, async || match self.status().await {
            Some(status) if status.healthz == "ok" => {
                key_id = status.key_id;
                true
            }
            _ => false,
        })
        .await;
        key_id
    }

    /// SIGTERM.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.stop()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again with the same settings, and waits for the socket.
    pub async fn restart(&mut self) {
        self.process.restart();
        self.wait_socket().await;
    }

    /// Its item of an EncryptionConfiguration's `providers`, of the name `kube-envelope`.
    pub fn provider(&self) -> String {
        format!(
            "{{kms: {{apiVersion: v2, name: kube-envelope, endpoint: \"unix://{}\", timeout: 3s}}}}",
            self.socket().display()
        )
    }

    /// Waits until its socket takes connections.
    pub async fn wait_socket(&self) {
        wait_until("the plugin's socket takes connections", STARTS_WITHIN, async || self.client().await.is_some())
            .await;
    }
}

/// One GET over HTTP/1.0 from a port of this machine; panics unless the answer is 200.
fn get(port: u16, path: &str) -> String {
    let (is_ok, body) = ask(port, path);
    assert!(is_ok, "{path}: {body}");
    body
}

/// The same, with any answer: whether it is 200.
fn ask(port: u16, path: &str) -> (bool, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.contains(" 200 "), body.to_owned())
}

/// A client of a KMS v2 socket, connecting as an API server does.
pub async fn connect(socket: &Path) -> Option<KeyManagementServiceClient<Channel>> {
    connect_with(socket, Duration::from_secs(3)).await
}

/// The same, waiting for as long as `patience` for an answer.
pub async fn connect_with(socket: &Path, patience: Duration) -> Option<KeyManagementServiceClient<Channel>> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").timeout(patience);
    let channel = endpoint.connect_with_connector(connector).await.ok()?;
    Some(KeyManagementServiceClient::new(channel))
}

/// An EncryptionConfiguration: `resources` under the `providers`, first one writing.
pub fn encryption_configuration(resources: &[&str], providers: &[&str]) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [{}]\n  \
         providers: [{}]\n",
        resources.iter().map(|resource| format!("\"{resource}\"")).collect::<Vec<_>>().join(", "),
        providers.join(", ")
    )
}
