//! The KMS client: Region, endpoint, time limits. Its HTTP client is in `http`; retries are `guard`'s, credentials have their own file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents, StalledStreamProtectionConfig};
use aws_sdk_kms::error::BoxError;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use url::Url;

use super::credentials::{self, Aws, InUse};
use super::http;
use super::key::KeyName;
use crate::kek::KekError;
use crate::kek::clock::ServerClock;
use crate::key_stores::shared::renewing::Renewing;

/// Time limits of one attempt; the guard's deadline spans them all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest answer that is read. The longest that KMS sends describes a key: some 2 KiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The Region to ask in: as configured, of the ARN, of environment or profile. The instance metadata are not
/// asked: a KEK is built without a network.
pub(super) async fn region(KmsKey { key, region, credentials, .. }: &KmsKey) -> Result<Region, KekError> {
    if let Some(region) = region.as_deref().or(key.region()) {
        return Ok(Region::new(region.to_owned()));
    }
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
        return Ok(region);
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &credentials.profile {
        profile = profile.profile_name(name);
    }
    profile.build().region().await.ok_or_else(|| {
        KekError::misconfigured(format!("no Region for {key}; write the key's ARN, or set region beside it"))
    })
}

/// A key in AWS KMS, and the way to it.
#[derive(Debug)]
pub(super) struct KmsKey {
    pub(super) key: KeyName,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<Url>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Url>,
    pub(super) credentials: credentials::Origin,
}

/// The client. It reads configuration files and asks nobody.
pub(super) async fn kms(
    key: &KmsKey,
    region: Region,
    credentials: &Renewing<Aws>,
    clock: Arc<ServerClock>,
) -> Result<Client, KekError> {
    let time_limits = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(ATTEMPT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .build();
    let shared = aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(InUse(credentials.clone()))
        // They are cached, renewed and dropped where they are loaded.
        .identity_cache(IdentityCache::no_cache())
        // The guard retries, with one deadline around all attempts.
        .retry_config(RetryConfig::disabled())
        .timeout_config(time_limits)
        // Would wait 5 s for what an attempt's time limit ends after 1 s.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .load()
        .await;
    let mut builder = aws_sdk_kms::config::Builder::from(&shared).interceptor(BeforeReading { clock });
    if let Some(endpoint) = &key.endpoint {
        builder = builder.endpoint_url(endpoint.as_str());
    }
    if let Some(http) = http::client(key.ca_file.as_deref(), key.proxy.as_ref())? {
        builder = builder.http_client(http);
    }
    Ok(Client::from_conf(builder.build()))
}

/// Stops reading an answer that is longer than any of KMS's, whatever length it announces; and notes its time.
#[derive(Debug)]
struct BeforeReading {
    clock: Arc<ServerClock>,
}

impl Intercept for BeforeReading {
    fn name(&self) -> &'static str {
        "BeforeReading"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.clock.note(date);
        }
        let body = context.response_mut().body_mut();
        let unlimited = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(unlimited, MAX_ANSWER_BYTES));
        Ok(())
    }
}
