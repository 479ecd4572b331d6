//! A real etcd of one member, and reading what is really stored in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use tonic::transport::Channel;

use super::{Process, STARTS_WITHIN, free_port, server, temporary_folder, wait_until};

#[allow(clippy::all, clippy::pedantic)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}
use proto::{RangeRequest, kv_client::KvClient};

/// What the API server puts before a value that it encrypted by KMS v2.
const KMS_V2_PREFIX: &str = "k8s:enc:kms:v2:";

/// A running etcd.
pub struct Etcd {
    pub process: Process,
    folder: tempfile::TempDir,
    url: String,
    api_port: u16,
    tls: Option<(String, tempfile::TempDir)>,
    authenticated: bool,
}

/// The parts of an encrypted value that stand in clear.
// Written once more on purpose: what a test finds in etcd must not be read by the code that is under test.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub encrypted_dek_source_type: i32,
}

impl Etcd {
    /// Starts etcd and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same, and it also serves TLS to clients with a certificate, see [`Self::tls`]. Certificate, key and
    /// authority of both sides are `etcd.crt`, `etcd.key` and `etcd-ca.crt`; `root.crt` and `rotator.crt` are those of
    /// two users, see [`Self::enable_authentication`].
    pub async fn start_tls() -> Self {
        let certificates = temporary_folder("etcd-certificates-");
        let at = |name: &str| certificates.path().join(name);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(at("etcd-ca.crt"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        std::fs::write(at("etcd.crt"), leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(at("etcd.key"), key.serialize_pem()).unwrap();
        for user in ["root", "rotator"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut client = rcgen::CertificateParams::new(Vec::new()).unwrap();
            client.distinguished_name = rcgen::DistinguishedName::new();
            client.distinguished_name.push(rcgen::DnType::CommonName, user);
            std::fs::write(at(&format!("{user}.crt")), client.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            std::fs::write(at(&format!("{user}.key")), key.serialize_pem()).unwrap();
        }
        let (plain, tls) = (free_port(), free_port());
        let urls = format!("http://127.0.0.1:{plain},https://127.0.0.1:{tls}");
        let mut etcd = Self::start_at(
            plain,
            &[
                &format!("--listen-client-urls={urls}"),
                &format!("--cert-file={}", at("etcd.crt").display()),
                &format!("--key-file={}", at("etcd.key").display()),
                &format!("--trusted-ca-file={}", at("etcd-ca.crt").display()),
                "--client-cert-auth",
            ],
        )
        .await;
        etcd.tls = Some((format!("https://127.0.0.1:{tls}"), certificates));
        etcd
    }

    /// Where TLS is served, and the folder with the certificates.
    pub fn tls(&self) -> (&str, &Path) {
        let (url, folder) = self.tls.as_ref().expect("it was started with TLS");
        (url, folder.path())
    }

    /// The same with more arguments.
    pub async fn start_with(more: &[&str]) -> Self {
        Self::start_at(free_port(), more).await
    }

    /// Starts a new cluster of one member from a snapshot, as after the loss of all members.
    pub async fn start_restored(snapshot: &Path) -> Self {
        Self::start_from(free_port(), &[], Some(snapshot)).await
    }

    async fn start_at(port: u16, more: &[&str]) -> Self {
        Self::start_from(port, more, None).await
    }

    async fn start_from(port: u16, more: &[&str], snapshot: Option<&Path>) -> Self {
        super::prepare();
        let folder = temporary_folder("etcd-");
        let url = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = folder.path().join("data");
        if let Some(snapshot) = snapshot {
            restore(snapshot, &data, &peer);
        }
        let mut arguments = vec![
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync=true".into(),
            "--log-level=warn".into(),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let arguments = arguments.into_iter().map(Into::into).collect();
        let log = folder.path().join("etcd.log");
        let process = Process::start("etcd", server("etcd"), arguments, Vec::new(), log);
        let etcd = Self { process, folder, url, api_port: free_port(), tls: None, authenticated: false };
        wait_until("etcd answers", STARTS_WITHIN, async || etcd.try_range(b"/", b"0", 0, 1).await.is_some()).await;
        etcd
    }

    /// Where clients reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port of all API servers on this etcd: the endpoints of `default/kubernetes` hold one port for all.
    pub fn api_port(&self) -> u16 {
        self.api_port
    }

    /// A folder that lives as long as this etcd: for what the API servers of one cluster share.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The raw value of one key.
    pub async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let end = [key.as_bytes(), &[0]].concat();
        let (found, _) = self.try_range(key.as_bytes(), &end, 0, 1).await.expect("etcd answers");
        found.into_iter().next().map(|(_, value)| value)
    }

    /// All keys that begin with `prefix`, with their raw values.
    pub async fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix is not empty") += 1;
        let (mut all, mut from, mut revision) = (Vec::new(), prefix.as_bytes().to_vec(), 0);
        loop {
            let (found, at) = self.try_range(&from, &end, revision, 500).await.expect("etcd answers");
            revision = at;
            let Some((last, _)) = found.last() else { return all };
            from = [last.as_bytes(), &[0]].concat();
            all.extend(found);
        }
    }

    /// The key_id of one key's value; `None` where it is absent or not encrypted by KMS v2.
    pub async fn key_id(&self, key: &str) -> Option<String> {
        encrypted(&self.get(key).await?).map(|object| object.key_id)
    }

    /// How many keys under `prefix` there are per key_id; `""` counts what no KMS v2 provider encrypted.
    pub async fn key_ids(&self, prefix: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, value) in self.list(prefix).await {
            *counts.entry(encrypted(&value).map(|object| object.key_id).unwrap_or_default()).or_default() += 1;
        }
        counts
    }

    /// Stores a raw value, past every API server.
    pub async fn put(&self, key: &str, value: &[u8]) {
        let pair = [("key", key.as_bytes()), ("value", value)];
        let body: serde_json::Map<_, _> =
            pair.map(|(name, bytes)| (name.to_owned(), BASE64_STANDARD.encode(bytes).into())).into_iter().collect();
        self.post("/v3/kv/put", &body.into()).await;
    }

    /// Removes a key, past every API server.
    pub async fn delete(&self, key: &str) {
        self.post("/v3/kv/deleterange", &serde_json::json!({"key": BASE64_STANDARD.encode(key)})).await;
    }

    /// Asks etcd's JSON gateway; the body of the answer.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let body = body.to_string();
        let host = self.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
        let head = format!("POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{path}: {answer}");
        body.to_owned()
    }

    /// The alarms that are raised.
    pub async fn alarms(&self) -> String {
        self.post("/v3/maintenance/alarm", &serde_json::json!({"action": "GET"})).await
    }

    /// Takes a snapshot, as `etcdctl snapshot save` does: the database with its hash at the end.
    pub async fn snapshot(&self, file: &Path) {
        let answer = self.post("/v3/maintenance/snapshot", &serde_json::json!({})).await;
        let mut content = Vec::new();
        for line in answer.lines().filter(|line| !line.is_empty()) {
            let part: serde_json::Value = serde_json::from_str(line).unwrap();
            content.extend(BASE64_STANDARD.decode(part["result"]["blob"].as_str().unwrap_or_default()).unwrap());
        }
        std::fs::write(file, content).unwrap();
    }

    /// Lets nobody in but the user `root` and the user `rotator` (the names in client certificates), of whom the latter
    /// may read `prefix` alone. The JSON gateway is of no use from then on.
    pub async fn enable_authentication(&mut self, prefix: &str) {
        use serde_json::json;
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let permission = json!({
            "permType": "READ", "key": BASE64_STANDARD.encode(prefix), "range_end": BASE64_STANDARD.encode(&end),
        });
        let no_password = json!({"no_password": true});
        for (path, body) in [
            ("role/add", json!({"name": "root"})),
            ("role/add", json!({"name": "reader"})),
            ("role/grant", json!({"name": "reader", "perm": permission})),
            ("user/add", json!({"name": "root", "options": no_password})),
            ("user/add", json!({"name": "rotator", "options": no_password})),
            ("user/grant", json!({"user": "root", "role": "root"})),
            ("user/grant", json!({"user": "rotator", "role": "reader"})),
            ("enable", json!({})),
        ] {
            self.post(&format!("/v3/auth/{path}"), &body).await;
        }
        self.authenticated = true;
    }

    /// The arguments by which an API server reaches it.
    pub fn api_server_arguments(&self) -> Vec<String> {
        if !self.authenticated {
            return vec![format!("--etcd-servers={}", self.url)];
        }
        let (url, folder) = self.tls();
        let at = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
        vec![
            format!("--etcd-servers={url}"),
            at("--etcd-cafile", "etcd-ca.crt"),
            at("--etcd-certfile", "root.crt"),
            at("--etcd-keyfile", "root.key"),
        ]
    }

    /// The folder with the member's data, for what looks into files.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn try_range(
        &self,
        from: &[u8],
        end: &[u8],
        revision: i64,
        limit: i64,
    ) -> Option<(Vec<(String, Vec<u8>)>, i64)> {
        let channel = Channel::from_shared(self.url.clone()).unwrap().connect().await.ok()?;
        let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        let request =
            RangeRequest { key: from.into(), range_end: end.into(), limit, revision, ..RangeRequest::default() };
        let answer = client.range(request).await.ok()?.into_inner();
        let revision = answer.header.map_or(0, |header| header.revision);
        let pairs = answer.kvs.into_iter().map(|pair| (String::from_utf8(pair.key).unwrap(), pair.value)).collect();
        Some((pairs, revision))
    }
}

/// `etcdutl snapshot restore`
fn restore(snapshot: &Path, data: &Path, peer: &str) {
    let output = std::process::Command::new(server("etcdutl"))
        .args(["snapshot", "restore"])
        .arg(snapshot)
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--initial-cluster=default={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        // As the documentation of Kubernetes has it, so that no watch goes back in time.
        .args(["--bump-revision=1000000000", "--mark-compacted"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What `etcdutl snapshot status` says about a file.
pub fn snapshot_status(snapshot: &Path) -> serde_json::Value {
    let mut command = std::process::Command::new(server("etcdutl"));
    let output = command.args(["snapshot", "status", "-w", "json"]).arg(snapshot).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Takes an encrypted value apart; `None` where no KMS v2 provider encrypted it.
pub fn encrypted(value: &[u8]) -> Option<EncryptedObject> {
    let rest = value.strip_prefix(KMS_V2_PREFIX.as_bytes())?;
    let name_ends = rest.iter().position(|byte| *byte == b':')?;
    Some(EncryptedObject::decode(&rest[name_ends + 1..]).expect("an encrypted object"))
}
