//! Where seeds come from: the plugins, asked as an API server asks them, or the KEKs themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tonic::Code;
use tonic::transport::Channel;

use super::seeds::SeedError;
use super::without::Without;
use crate::backup::DekInUse;
use crate::crypto::seal::digest;
use crate::crypto::secret::Seed;
use crate::dek::cache::DekCache;
use crate::encryption_config::{EncryptionConfiguration, Endpoint, KmsVersion};
use crate::envelope::{ANNOTATION, Ciphertext, WrappedDekSet};
use crate::etcd::EncryptedObject;
use crate::kek::set::{KekSet, UnwrapError};
use crate::kek::{KekVersion, WrapContext};
use crate::plugin::client::connect;
use crate::plugin::grpc::v2::key_management_service_client::KeyManagementServiceClient;
use crate::plugin::grpc::v2::{DecryptRequest, StatusRequest};

/// So many wraps are tried at once.
const AT_ONCE: usize = 8;
/// A plugin that does not answer just now is asked again, as an API server lists again.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Where seeds may come from, and which keys may not be used.
#[derive(Debug, Default)]
pub struct Sources {
    /// The plugins at the sockets of the `EncryptionConfiguration`.
    pub plugins: Option<PluginSource>,
    /// The KEKs of a configuration of kube-envelope; they come first.
    pub keks: Option<KekSource>,
    /// Keys that are taken to be gone.
    pub without: Vec<Without>,
}

impl Sources {
    /// Opens the seed of an object.
    pub(super) async fn open(&self, provider: &str, object: &EncryptedObject) -> Result<Seed, SeedError> {
        if let Some(gone) = self.without.iter().find(|without| without.removes_key_id(&object.key_id)) {
            return Err(SeedError(format!("its seed opens with {gone} alone, which is taken to be gone")));
        }
        let wrapped = object.annotations.get(ANNOTATION).map(|annotation| WrappedDekSet::decode(annotation));
        if let Some(Ok(wrapped)) = &wrapped {
            self.refuse_if_all_gone(wrapped)?;
        }
        match (&wrapped, &self.keks, &self.plugins) {
            (Some(wrapped), Some(keks), _) => {
                let wrapped = wrapped.as_ref().map_err(|error| SeedError(error.to_string()))?;
                keks.open(object, wrapped, &self.without).await
            }
            (_, _, Some(plugins)) => plugins.open(provider, object).await,
            (_, _, None) => Err(SeedError(format!(
                "nothing was given that opens seeds of provider {provider}: give --encryption-config, to ask its plugin, \
                 or --config of kube-envelope, to ask the KEKs"
            ))),
        }
    }

    /// A value is lost only if every KEK version that wrapped its DEK is gone.
    fn refuse_if_all_gone(&self, wrapped: &WrappedDekSet) -> Result<(), SeedError> {
        let gone = |version: &KekVersion| self.without.iter().find(|without| without.removes(version));
        let all: Option<Vec<_>> = wrapped.versions().map(gone).collect();
        let Some(all) = all.filter(|all| !all.is_empty()) else { return Ok(()) };
        let mut names: Vec<_> = all.iter().map(ToString::to_string).collect();
        names.dedup();
        Err(SeedError(format!("its seed opens with {} alone, which is taken to be gone", names.join(" or "))))
    }

    /// Asks every plugin for its Status; what is wrong with each.
    pub async fn unhealthy_plugins(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (provider, socket) in self.plugins.iter().flat_map(|plugins| &plugins.sockets) {
            if let Err(problem) = plugin_status(socket).await {
                problems.push(format!("the plugin of provider {provider}: {problem}"));
            }
        }
        problems
    }

    /// How often a key store was asked, or a plugin, which then asks its own.
    pub fn calls(&self) -> u64 {
        let plugins = self.plugins.as_ref().map_or(0, |plugins| plugins.calls.load(Ordering::Relaxed));
        plugins + self.keks.as_ref().map_or(0, |keks| keks.unwraps.load(Ordering::Relaxed))
    }
}

/// The plugins at the sockets of an `EncryptionConfiguration`.
#[derive(Debug)]
pub struct PluginSource {
    sockets: BTreeMap<String, Endpoint>,
    clients: tokio::sync::Mutex<HashMap<String, KeyManagementServiceClient<Channel>>>,
    calls: AtomicU64,
}

impl PluginSource {
    /// Every KMS v2 plugin that is named.
    pub fn of(configuration: &EncryptionConfiguration) -> Self {
        let v2 = configuration.kms().filter(|kms| kms.version == KmsVersion::V2);
        let sockets = v2.map(|kms| (kms.name.clone(), kms.endpoint.clone())).collect();
        Self { sockets, clients: tokio::sync::Mutex::default(), calls: AtomicU64::new(0) }
    }

    async fn open(&self, provider: &str, object: &EncryptedObject) -> Result<Seed, SeedError> {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: "kube-envelope rehearse".into(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone().into_iter().collect(),
        };
        let mut attempt = 1;
        loop {
            let mut client = self.client(provider).await?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            match client.decrypt(request.clone()).await {
                Ok(answer) => return Ok(Seed::new(answer.into_inner().plaintext)),
                Err(status) if attempt < ATTEMPTS && may_pass(status.code()) => {
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => {
                    return Err(SeedError(format!(
                        "the plugin of provider {provider} refuses its seed (key_id {}): {}",
                        object.key_id,
                        status.message()
                    )));
                }
            }
        }
    }

    async fn client(&self, provider: &str) -> Result<KeyManagementServiceClient<Channel>, SeedError> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(provider) {
            return Ok(client.clone());
        }
        let endpoint = self.sockets.get(provider);
        let endpoint = endpoint
            .ok_or_else(|| SeedError(format!("the EncryptionConfiguration has no KMS v2 provider {provider}")))?;
        let client = plugin(endpoint).await.map_err(|problem| SeedError(format!("provider {provider}: {problem}")))?;
        clients.insert(provider.to_owned(), client.clone());
        Ok(client)
    }
}

fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled)
}

async fn plugin(endpoint: &Endpoint) -> Result<KeyManagementServiceClient<Channel>, String> {
    match endpoint {
        Endpoint::Path(socket) => connect(socket).await.map_err(|error| error.to_string()),
        Endpoint::Abstract(name) => Err(format!("its socket @{name} is in the abstract namespace; use one on a path")),
    }
}

/// What an API server demands of a plugin before it is ready.
async fn plugin_status(endpoint: &Endpoint) -> Result<(), String> {
    let answer = plugin(endpoint).await?.status(StatusRequest {}).await;
    let status = answer.map_err(|status| format!("Status is refused: {}", status.message()))?.into_inner();
    match (status.healthz.as_str(), status.version.as_str(), status.key_id.is_empty()) {
        ("ok", "v2" | "v2beta1", false) => Ok(()),
        ("ok", "v2" | "v2beta1", true) => Err("Status has no key_id".into()),
        ("ok", version, _) => Err(format!("Status says version {version:?}, not v2")),
        (healthz, ..) => Err(format!("Status says {healthz:?}, not ok")),
    }
}

/// The KEKs of a configuration of kube-envelope, asked without a plugin.
#[derive(Debug)]
pub struct KekSource {
    cluster: String,
    keks: Arc<KekSet>,
    deks: Arc<DekCache>,
    unwraps: Arc<AtomicU64>,
}

impl KekSource {
    /// The KEKs, for the values of one cluster.
    pub fn new(cluster: String, keks: KekSet) -> Self {
        Self { cluster, keks: Arc::new(keks), deks: Arc::default(), unwraps: Arc::default() }
    }

    async fn open(
        &self,
        object: &EncryptedObject,
        wrapped: &WrappedDekSet,
        without: &[Without],
    ) -> Result<Seed, SeedError> {
        let refused = |error: &dyn std::fmt::Display| SeedError(format!("its seed does not open: {error}"));
        let ciphertext = Ciphertext::parse(&object.encrypted_dek_source).map_err(|error| refused(&error))?;
        wrapped.check(&self.cluster, &object.key_id).map_err(|error| refused(&error))?;
        let mut wraps = wrapped.wraps.clone();
        wraps.retain(|wrap| !without.iter().any(|gone| gone.removes(&wrap.version)));
        let lineages = wraps.iter().map(|wrap| wrap.version.lineage).collect();
        let name = digest(&wraps.iter().map(|wrap| wrap.blob.as_slice()).collect::<Vec<_>>());
        let context = WrapContext { cluster: self.cluster.clone(), dek_id: ciphertext.dek_id };
        let (keks, unwraps) = (self.keks.clone(), self.unwraps.clone());
        let unwrap = async move {
            unwraps.fetch_add(1, Ordering::Relaxed);
            keks.unwrap(&wraps, &context).await.map(|(dek, _)| dek)
        };
        let dek = if let Some(dek) = self.deks.get(ciphertext.dek_id) {
            dek
        } else {
            let unwrapped = self.deks.get_or_unwrap(ciphertext.dek_id, name, lineages, unwrap).await;
            unwrapped
                .map_err(|error| SeedError(format!("its key {} cannot be unwrapped: {error}", ciphertext.dek_id)))?
        };
        ciphertext.open(&dek, &self.cluster, &object.key_id).map_err(|error| refused(&error))
    }
}

/// Tries for every KEK version whether it still unwraps each of these DEKs: `Err` with the reason where it does not,
/// and no entry where no KEK of its lineage is configured.
pub async fn opens<'a>(
    keks: &KekSet,
    deks: impl Iterator<Item = &'a DekInUse>,
) -> BTreeMap<KekVersion, Result<(), String>> {
    let wraps = deks.flat_map(|dek| dek.wrapped.wraps.iter().map(move |wrap| (dek, wrap)));
    let tried = wraps.map(|(dek, wrap)| async move {
        let context = dek.wrapped.context(dek.id);
        let opened = keks.unwrap(std::slice::from_ref(wrap), &context).await;
        (wrap.version.clone(), opened.map(|_| ()))
    });
    let mut answers = BTreeMap::new();
    let mut tried = stream::iter(tried).buffer_unordered(AT_ONCE);
    while let Some((version, opened)) = tried.next().await {
        match opened {
            Ok(()) => {
                answers.entry(version).or_insert(Ok(()));
            }
            Err(UnwrapError::NoKek) => {}
            Err(error) => {
                answers.insert(version, Err(error.to_string()));
            }
        }
    }
    answers
}
