//! A real kube-apiserver on an [`Etcd`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use http::{Request, Uri};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use kube::client::Body;

use super::{Etcd, Process, STARTS_WITHIN, server, temporary_folder, wait_until};

/// Token of a user that may do everything.
pub const ADMIN: &str = "admin-token";
/// Token of the user `rotator`, who may do what the test's RBAC rules say.
pub const ROTATOR: &str = "rotator-token";

/// What an API server is started with.
#[derive(Clone)]
pub struct ApiServerOptions {
    /// 1 to 9: advertises 10.99.0.N. Servers on one etcd each need their own.
    pub number: u8,
    /// Its EncryptionConfiguration.
    pub encryption: Encryption,
    /// `--encryption-provider-config-automatic-reload`
    pub automatic_reload: bool,
    /// Text of an audit policy; the log is [`ApiServer::audit_log`].
    pub audit_policy: Option<String>,
    /// More arguments.
    pub arguments: Vec<String>,
}

/// Where the EncryptionConfiguration comes from.
#[derive(Clone)]
pub enum Encryption {
    /// Everything is stored in clear.
    None,
    /// This text, written to [`ApiServer::encryption_file`].
    Text(String),
    /// A file of the test's.
    File(PathBuf),
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self {
            number: 1,
            encryption: Encryption::None,
            automatic_reload: false,
            audit_policy: None,
            arguments: Vec::new(),
        }
    }
}

impl ApiServerOptions {
    /// The number 1 with this EncryptionConfiguration.
    pub fn encrypted(text: &str) -> Self {
        Self { encryption: Encryption::Text(text.into()), ..Self::default() }
    }
}

/// A running kube-apiserver.
pub struct ApiServer {
    pub process: Process,
    folder: tempfile::TempDir,
    encryption_file: PathBuf,
    authority: PathBuf,
    ip: String,
    port: u16,
}

impl ApiServer {
    /// Starts an API server and waits until it is ready.
    pub async fn start(etcd: &Etcd, options: &ApiServerOptions) -> Self {
        let mut server = Self::spawn(etcd, options);
        server.wait_ready().await;
        server
    }

    /// Starts an API server that may take its time, or never be ready.
    pub fn spawn(etcd: &Etcd, options: &ApiServerOptions) -> Self {
        super::prepare();
        let folder = temporary_folder("kube-apiserver-");
        let port = etcd.api_port();
        let ip = format!("10.99.0.{}", options.number);
        let encryption_file = match &options.encryption {
            Encryption::File(file) => file.clone(),
            _ => folder.path().join("encryption.yaml"),
        };
        let arguments = arguments(etcd, folder.path(), &encryption_file, &ip, port, options);
        let log = folder.path().join("kube-apiserver.log");
        let name = format!("kube-apiserver {}", options.number);
        // The identity of an API server is made of its host's name: each gets its own.
        let mut all = ["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\""].map(Into::into).to_vec();
        all.push(format!("control-plane-{}", options.number).into());
        all.push(server("kube-apiserver").into());
        all.extend(arguments.into_iter().map(Into::into));
        let process = Process::start(&name, "unshare".into(), all, Vec::new(), log);
        let authority = etcd.folder().join("authority.crt");
        Self { process, folder, encryption_file, authority, ip, port }
    }

    /// The address it advertises, with its port.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.ip, self.port)
    }

    /// The file that holds its EncryptionConfiguration; to be changed by the test where it wants to.
    pub fn encryption_file(&self) -> &Path {
        &self.encryption_file
    }

    /// Its own folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The audit log, if a policy was given.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// A client of this one server with all rights, without retries of its own.
    pub fn client(&self) -> kube::Client {
        self.client_as(ADMIN)
    }

    /// The same with another token.
    pub fn client_as(&self, token: &str) -> kube::Client {
        let mut config = kube::Config::new(self.url().parse::<Uri>().unwrap());
        config.accept_invalid_certs = true;
        config.default_retry = false;
        config.auth_info.token = Some(token.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    /// Writes a kubeconfig for this server, with `token`, and returns its path.
    pub fn kubeconfig(&self, token: &str) -> PathBuf {
        let file = self.folder.path().join(format!("kubeconfig-{token}"));
        let authority = &self.authority;
        // The certificate holds the first server's address alone.
        let name = if self.ip == "10.99.0.1" { "" } else { "    tls-server-name: kubernetes.default.svc\n" };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: {}\n    \
             certificate-authority: {}\n{name}users:\n- name: u\n  user: {{token: {token}}}\ncontexts:\n- name: c\n  \
             context: {{cluster: c, user: u}}\n",
            self.url(),
            authority.display()
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// GET of a path: status and text. `None` when nothing answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        use http_body_util::BodyExt;
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = self.client().send(request).await.ok()?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether `/readyz` says ok, and what it says. `None` when nothing answers.
    pub async fn readyz(&self) -> Option<(bool, String)> {
        self.get("/readyz?verbose").await.map(|(status, text)| (status == 200, text))
    }

    /// Waits until `/readyz` says ok; panics with what it says when it does not in time.
    pub async fn wait_ready(&mut self) {
        let mut last = None;
        let start = std::time::Instant::now();
        while start.elapsed() < STARTS_WITHIN {
            assert!(self.process.is_running(), "kube-apiserver ended\n{}", self.process.log_tail());
            last = self.readyz().await;
            if last.as_ref().is_some_and(|(ready, _)| *ready) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("kube-apiserver is not ready after {STARTS_WITHIN:?}: {last:?}\n{}", self.process.log_tail());
    }

    /// Creates a Secret in `default` with this one value.
    pub async fn write_secret(&self, name: &str, value: &str) {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let data = Some(BTreeMap::from([("k".into(), ByteString(value.into()))]));
        let secret = Secret { metadata, data, ..Secret::default() };
        Api::<Secret>::namespaced(self.client(), "default").create(&PostParams::default(), &secret).await.unwrap();
    }

    /// The value of a Secret that [`ApiServer::write_secret`] made.
    pub async fn read_secret(&self, name: &str) -> String {
        value(&Api::namespaced(self.client(), "default").get(name).await.unwrap())
    }

    /// SIGTERM.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.stop()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again with the same settings and waits until it is ready.
    pub async fn restart(&mut self) {
        self.process.restart();
        self.wait_ready().await;
    }

    /// Waits until a metric line that begins with `name` and contains `labels` is there.
    pub async fn wait_metric(&self, name: &str, labels: &str, deadline: Duration) {
        wait_until(&format!("{name} with {labels} at {}", self.url()), deadline, async || {
            let metrics = self.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
            metrics.lines().any(|line| line.starts_with(name) && line.contains(labels))
        })
        .await;
    }
}

fn arguments(
    etcd: &Etcd,
    folder: &Path,
    encryption_file: &Path,
    ip: &str,
    port: u16,
    options: &ApiServerOptions,
) -> Vec<String> {
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{ADMIN},admin,1,\"system:masters\"\n{ROTATOR},rotator,2\n")).unwrap();
    let (private_key, public_key) = service_account_keys(etcd);
    let (certificate, certificate_key) = certificate(etcd);
    let mut arguments = vec![
        format!("--bind-address={ip}"),
        format!("--advertise-address={ip}"),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", folder.join("certs").display()),
        format!("--tls-cert-file={}", certificate.display()),
        format!("--tls-private-key-file={}", certificate_key.display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", private_key.display()),
        format!("--service-account-key-file={}", public_key.display()),
        format!("--token-auth-file={}", tokens.display()),
        "--authorization-mode=RBAC".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--shutdown-delay-duration=0s".into(),
    ];
    arguments.extend(etcd.api_server_arguments());
    if !matches!(options.encryption, Encryption::None) {
        if let Encryption::Text(text) = &options.encryption {
            std::fs::write(encryption_file, text).unwrap();
        }
        arguments.push(format!("--encryption-provider-config={}", encryption_file.display()));
        arguments.push(format!("--encryption-provider-config-automatic-reload={}", options.automatic_reload));
    }
    if let Some(policy) = &options.audit_policy {
        let file = folder.join("audit-policy.yaml");
        std::fs::write(&file, policy).unwrap();
        arguments.push(format!("--audit-policy-file={}", file.display()));
        arguments.push(format!("--audit-log-path={}", folder.join("audit.log").display()));
    }
    arguments.extend(options.arguments.iter().cloned());
    arguments
}

/// The certificate of all API servers of an etcd. It names the first one's address and the service, so the others
/// are verified by the service's name, as on a cluster whose certificates do not hold every address.
fn certificate(etcd: &Etcd) -> (PathBuf, PathBuf) {
    let (file, key_file) = (etcd.folder().join("apiserver.crt"), etcd.folder().join("apiserver.key"));
    if !key_file.exists() {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(etcd.folder().join("authority.crt"), authority.self_signed(&authority_key).unwrap().pem())
            .unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["10.99.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let leaf = rcgen::CertificateParams::new(names.map(Into::into)).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        std::fs::write(&file, leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
    }
    (file, key_file)
}

/// The keys that service account tokens are signed and checked with: the same for all API servers of an etcd.
fn service_account_keys(etcd: &Etcd) -> (PathBuf, PathBuf) {
    let private_key = etcd.folder().join("service-account.key");
    let public_key = etcd.folder().join("service-account.pub");
    if !public_key.exists() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(&private_key, key.serialize_pem()).unwrap();
        std::fs::write(&public_key, key.public_key_pem()).unwrap();
    }
    (private_key, public_key)
}

/// The one value of a Secret that [`ApiServer::write_secret`] made.
pub fn value(secret: &Secret) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()["k"].0.clone()).unwrap()
}
