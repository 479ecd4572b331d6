//! A reader of etcd that needs no key: which values are stored, and under which `key_id` each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::envelope::{ANNOTATION, WrappedDekSet};
use crate::kek::KekVersion;

#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod proto {
    tonic::include_proto!("etcdserverpb");
}
use proto::{RangeRequest, kv_client::KvClient};

/// About how much a page may hold, so that memory stays flat however large the values are.
const PAGE_BYTES: usize = 4 << 20;
const FIRST_PAGE: i64 = 100;
const LARGEST_PAGE: i64 = 2_000;
const TIMEOUT: Duration = Duration::from_secs(30);

/// How etcd is reached.
#[derive(Clone, Debug, Default)]
pub struct EtcdAccess {
    /// URLs of its members; the first that answers is read from.
    pub endpoints: Vec<String>,
    /// The authority that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Why etcd could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file of the TLS set-up cannot be read.
    #[error("cannot read {}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answers.
    #[error("no etcd endpoint answers: {0}")]
    Unreachable(String),
    /// A request failed.
    #[error("etcd refused a range request")]
    Refused(#[source] Box<Status>),
}

/// A member that answered.
pub struct EtcdReader {
    client: KvClient<Channel>,
}

/// What was gone through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanned {
    /// Of which revision.
    pub revision: i64,
    /// How many keys.
    pub keys: u64,
}

/// How a value is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// By a KMS v2 provider.
    KmsV2 {
        /// The provider's name.
        provider: String,
        /// The `key_id` that its plugin gave.
        key_id: String,
        /// The KEK versions of which any one opens it, as kube-envelope stores them beside each value; empty for the
        /// values of other plugins.
        keks: Vec<KekVersion>,
    },
    /// By another provider: the words of its prefix.
    Otherwise(String),
    /// In clear.
    Plain,
}

/// The part of an API server's `EncryptedObject` that stands in clear and matters here.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

impl EncryptedObject {
    /// The KEK versions that wrapped the DEK, where kube-envelope made the value.
    fn keks(&self) -> Vec<KekVersion> {
        let annotation = self.annotations.get(ANNOTATION);
        let wrapped = annotation.and_then(|annotation| WrappedDekSet::decode(annotation).ok());
        wrapped.map(|set| set.versions().cloned().collect()).unwrap_or_default()
    }
}

impl EtcdReader {
    /// Finds a member that answers.
    pub async fn connect(access: &EtcdAccess) -> Result<Self, EtcdError> {
        let mut problems = Vec::new();
        for endpoint in &access.endpoints {
            match Self::member(endpoint, access).await {
                Ok(reader) => return Ok(reader),
                Err(EtcdError::Unreachable(problem)) => problems.push(format!("{endpoint}: {problem}")),
                Err(error) => return Err(error),
            }
        }
        // Over TLS 1.3 a refused client may see no more than a connection that ends, so the likely reason is named.
        let over_tls = access.endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
        if over_tls && access.certificate.is_none() {
            problems.push("etcd may demand a client certificate: give --etcd-cert and --etcd-key".into());
        }
        // Another authority of the same name shows as a bad signature.
        if ["UnknownIssuer", "BadSignature"].iter().any(|why| problems.iter().any(|problem| problem.contains(why))) {
            problems.push("--etcd-ca must name the authority that signed etcd's own certificate".into());
        }
        Err(EtcdError::Unreachable(problems.join("; ")))
    }

    /// One member, asked something small: only then a missing client certificate shows.
    async fn member(endpoint: &str, access: &EtcdAccess) -> Result<Self, EtcdError> {
        let mut client = KvClient::new(connect(endpoint, access).await?).max_decoding_message_size(usize::MAX);
        let small = RangeRequest { key: vec![0], limit: 1, keys_only: true, ..RangeRequest::default() };
        match client.range(small).await {
            Ok(_) => Ok(Self { client }),
            Err(status) => Err(EtcdError::Unreachable(cause(&status))),
        }
    }

    /// Goes through everything under `prefix` as of one revision, in pages. If that revision is compacted
    /// meanwhile, the rest is read as of a newer one: each key is still seen once.
    pub async fn scan(&mut self, prefix: &str, mut each: impl FnMut(&str, &[u8])) -> Result<Scanned, EtcdError> {
        let mut range_end = prefix.as_bytes().to_vec();
        if let Some(last) = range_end.last_mut() {
            *last += 1;
        }
        let mut scanned = Scanned::default();
        let (mut key, mut limit, mut revision) = (prefix.as_bytes().to_vec(), FIRST_PAGE, 0);
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision,
                ..RangeRequest::default()
            };
            let answer = match self.client.range(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) if status.code() == Code::OutOfRange && revision != 0 => {
                    revision = 0;
                    continue;
                }
                Err(status) => return Err(EtcdError::Refused(Box::new(status))),
            };
            revision = answer.header.map_or(0, |header| header.revision);
            scanned.revision = revision;
            scanned.keys += answer.kvs.len() as u64;
            for pair in &answer.kvs {
                each(&String::from_utf8_lossy(&pair.key), &pair.value);
            }
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(scanned) };
            key = [last.key.as_slice(), &[0]].concat();
            limit = next_limit(answer.kvs.len(), answer.kvs.iter().map(|pair| pair.value.len()).sum());
        }
    }
}

/// As many keys as fill a page at the size of the last ones.
fn next_limit(keys: usize, bytes: usize) -> i64 {
    let each = (bytes / keys.max(1)).max(1);
    i64::try_from(PAGE_BYTES / each).unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE)
}

async fn connect(url: &str, access: &EtcdAccess) -> Result<Channel, EtcdError> {
    let unreachable = |error: tonic::transport::Error| EtcdError::Unreachable(cause(&error));
    let mut endpoint =
        Endpoint::from_shared(url.to_owned()).map_err(unreachable)?.connect_timeout(TIMEOUT).timeout(TIMEOUT);
    if url.starts_with("https:") {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &access.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(certificate), Some(key)) = (&access.certificate, &access.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(unreachable)?;
    }
    endpoint.connect().await.map_err(unreachable)
}

fn read(file: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(file).map_err(|source| EtcdError::File { file: file.into(), source })
}

/// The innermost cause: what the layers above say of it tells an operator nothing.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}

impl Stored {
    /// Reads from a value, without any key, how it is stored.
    pub fn of(value: &[u8]) -> Self {
        let Some(rest) = value.strip_prefix(b"k8s:enc:") else { return Self::Plain };
        let words: Vec<String> = rest
            .splitn(4, |byte| *byte == b':')
            .take(3)
            .map(|word| String::from_utf8_lossy(&word[..word.len().min(100)]).into_owned())
            .collect();
        if let [kind, version, provider] = words.as_slice()
            && (kind.as_str(), version.as_str()) == ("kms", "v2")
        {
            let body = rest.splitn(4, |byte| *byte == b':').nth(3).unwrap_or_default();
            if let Ok(object) = EncryptedObject::decode(body) {
                let keks = object.keks();
                return Self::KmsV2 { provider: provider.clone(), key_id: object.key_id, keks };
            }
        }
        Self::Otherwise(words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::{Lineage, WrappedDek};

    #[test]
    fn how_a_value_is_stored_can_be_read_without_a_key() {
        let object = EncryptedObject { key_id: "k1".into(), annotations: HashMap::new() }.encode_to_vec();
        let value = [b"k8s:enc:kms:v2:p:".as_slice(), &object].concat();
        assert_eq!(Stored::of(&value), Stored::KmsV2 { provider: "p".into(), key_id: "k1".into(), keks: Vec::new() });
        assert_eq!(Stored::of(b"k8s:enc:aescbc:v1:key1:\x01\x02:"), Stored::Otherwise("aescbc v1 key1".into()));
        assert_eq!(Stored::of(b"k8s:enc:kms:v2:p:\xff\xff"), Stored::Otherwise("kms v2 p".into()));
        assert_eq!(Stored::of(b"k8s\0\n\x0c"), Stored::Plain);
    }

    #[test]
    fn the_kek_versions_that_open_a_value_can_be_read_from_its_annotation() {
        let version = |home: &str| KekVersion { lineage: Lineage::derive("test", &[home]), version: "3".into() };
        let wraps = ["a", "b"].map(|home| WrappedDek { version: version(home), blob: vec![1] });
        let set = WrappedDekSet { cluster: "c".into(), epoch: 1, wraps: wraps.into() };
        let annotations = HashMap::from([(ANNOTATION.to_owned(), set.encode().unwrap())]);
        let object = EncryptedObject { key_id: set.key_id().to_string(), annotations }.encode_to_vec();
        let Stored::KmsV2 { keks, .. } = Stored::of(&[b"k8s:enc:kms:v2:p:".as_slice(), &object].concat()) else {
            panic!("a KMS v2 provider stored it")
        };
        assert_eq!(keks, [version("a"), version("b")]);
    }

    #[test]
    fn a_page_shrinks_when_values_are_large() {
        assert_eq!(next_limit(100, 100 * 2_000), 2_000);
        assert_eq!(next_limit(100, 100 * 1_000_000), 4);
        assert_eq!(next_limit(0, 0), 2_000);
    }
}
