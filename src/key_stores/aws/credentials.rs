//! Credentials: loaded in the background before they are needed, renewed ahead of their end, loaded anew when
//! their file changes. A call never waits for the instance metadata or STS once a first load has succeeded.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_kms::config::Credentials as Keys;
use aws_sdk_kms::error::ConnectorError;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::{AssumeRole, AwsConfig};
use crate::kek::{KekCause, KekError};

/// Longest time for one load: IMDS may take three attempts of some seconds.
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How often credentials without an end, which come from files and environment, are read again.
const READ_AGAIN: Duration = Duration::from_mins(1);
/// Pauses after a failed load.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Least time between two loads that refused calls ask for.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
/// From here on before their end, credentials are not used any more.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// The credentials of one KEK and the task that keeps them fresh; the task ends with this value.
#[derive(Debug)]
pub(super) struct Credentials {
    current: watch::Receiver<State>,
    stale: Arc<Notify>,
    task: AbortHandle,
}

#[derive(Clone, Debug)]
enum State {
    Loading,
    Loaded(Keys),
    Failed(Failure),
}

/// Why credentials could not be loaded.
#[derive(Clone, Debug)]
struct Failure {
    cause: KekCause,
    text: String,
}

impl Credentials {
    /// Starts loading.
    pub(super) fn start(config: &AwsConfig, region: Region) -> Self {
        let (sender, current) = watch::channel(State::Loading);
        let stale = Arc::new(Notify::new());
        let source = Source { config: config.clone(), region };
        let task = tokio::spawn(keep_fresh(source, sender, stale.clone())).abort_handle();
        Self { current, stale, task }
    }

    /// Waits until there are credentials to use. The caller's deadline bounds the wait.
    pub(super) async fn ready(&self) -> Result<Keys, KekError> {
        let mut current = self.current.clone();
        loop {
            match &*current.borrow_and_update() {
                State::Loaded(keys) if is_fresh(keys) => return Ok(keys.clone()),
                State::Failed(Failure { cause, text }) => {
                    return Err(KekError::new(*cause, "AWS credentials cannot be loaded").with_source(text.clone()));
                }
                // Expired ones are being loaded again at this moment.
                State::Loaded(_) | State::Loading => {}
            }
            if current.changed().await.is_err() {
                return Err(KekError::unavailable("the task that loads AWS credentials has ended; restart the plugin"));
            }
        }
    }

    /// AWS does not accept `refused`: loads now rather than when they were to be renewed. Says whether there are
    /// others now.
    pub(super) async fn renew(&self, refused: &Keys) -> bool {
        let mut current = self.current.clone();
        if others(&current.borrow_and_update(), refused) {
            return true;
        }
        self.stale.notify_one();
        current.changed().await.is_ok() && others(&current.borrow(), refused)
    }

    /// When those in use end; what lies in a file or the environment does not.
    pub(super) fn expire(&self) -> Option<jiff::Timestamp> {
        let State::Loaded(keys) = &*self.current.borrow() else { return None };
        jiff::Timestamp::try_from(keys.expiry()?).ok()
    }

    /// For the client: hands over what is loaded, and never waits.
    pub(super) fn provider(&self) -> impl ProvideCredentials + 'static {
        Loaded(self.current.clone())
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the environment says so, as the webhooks of EKS set it (IRSA, Pod Identity).
pub(super) fn come_from_an_api_server(config: &AwsConfig) -> bool {
    let by_token = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    config.profile.is_none()
        && config.credentials_file.is_none()
        && by_token.iter().any(|variable| std::env::var_os(variable).is_some())
}

#[derive(Debug)]
struct Loaded(watch::Receiver<State>);

impl ProvideCredentials for Loaded {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(match &*self.0.borrow() {
            State::Loaded(keys) => Ok(keys.clone()),
            State::Loading => Err(CredentialsError::not_loaded("still being loaded")),
            State::Failed(failure) => Err(CredentialsError::not_loaded(failure.text.clone())),
        })
    }
}

fn is_fresh(keys: &Keys) -> bool {
    keys.expiry().is_none_or(|end| end > SystemTime::now() + LAST_MOMENT)
}

fn others(state: &State, refused: &Keys) -> bool {
    matches!(state, State::Loaded(keys) if keys.access_key_id() != refused.access_key_id()
        || keys.session_token() != refused.session_token()
        || keys.secret_access_key() != refused.secret_access_key())
}

async fn keep_fresh(source: Source, current: watch::Sender<State>, stale: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let wait = match source.load().await {
            Ok(keys) => {
                pause = FIRST_PAUSE;
                let wait = until_renewal(&keys);
                current.send_replace(State::Loaded(keys));
                wait
            }
            Err(failure) => {
                tracing::warn!(cause = %failure.cause, error = failure.text, "AWS credentials cannot be loaded");
                // What is still valid stays in use. Who waits for this load is told in both cases.
                current.send_modify(|state| {
                    if !matches!(state, State::Loaded(keys) if is_fresh(keys)) {
                        *state = State::Failed(failure);
                    }
                });
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
        };
        tokio::time::sleep(LEAST_PAUSE.min(wait)).await;
        let _ = tokio::time::timeout(wait.saturating_sub(LEAST_PAUSE), stale.notified()).await;
    }
}

/// After two thirds of what is left to them.
fn until_renewal(keys: &Keys) -> Duration {
    keys.expiry().map_or(READ_AGAIN, |end| {
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        (left * 2 / 3).max(LEAST_PAUSE)
    })
}

/// Where the credentials come from.
#[derive(Clone, Debug)]
struct Source {
    config: AwsConfig,
    region: Region,
}

impl Source {
    async fn load(&self) -> Result<Keys, Failure> {
        // A new chain each time: the providers read files once and keep them.
        let load = async { self.chain().await.provide_credentials().await };
        match tokio::time::timeout(LOAD_TIMEOUT, load).await {
            Ok(Ok(keys)) => Ok(keys),
            Ok(Err(error)) => Err(Failure::of(&error)),
            Err(_) => Err(Failure { cause: KekCause::Unavailable, text: format!("no answer within {LOAD_TIMEOUT:?}") }),
        }
    }

    async fn chain(&self) -> SharedCredentialsProvider {
        let base = self.base().await;
        let Some(AssumeRole { role_arn, external_id, session_name }) = &self.config.assume_role else { return base };
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .region(self.region.clone())
            .credentials_provider(base.clone())
            .load()
            .await;
        let mut role = AssumeRoleProvider::builder(role_arn)
            .session_name(session_name.as_deref().unwrap_or("kube-envelope"))
            .region(self.region.clone())
            .configure(&shared);
        if let Some(id) = external_id {
            role = role.external_id(id);
        }
        SharedCredentialsProvider::new(role.build_from_provider(base).await)
    }

    async fn base(&self) -> SharedCredentialsProvider {
        let AwsConfig { profile, credentials_file, .. } = &self.config;
        let surroundings = ProviderConfig::default()
            .with_behavior_version(Some(BehaviorVersion::latest()))
            .with_region(Some(self.region.clone()));
        if profile.is_none() && credentials_file.is_none() {
            let chain = DefaultCredentialsChain::builder().region(self.region.clone()).configure(surroundings);
            return SharedCredentialsProvider::new(chain.build().await);
        }
        let mut named = ProfileFileCredentialsProvider::builder().configure(&surroundings);
        if let Some(name) = profile {
            named = named.profile_name(name);
        }
        if let Some(file) = credentials_file {
            named =
                named.profile_files(EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build());
        }
        SharedCredentialsProvider::new(named.build())
    }
}

impl Failure {
    fn of(error: &CredentialsError) -> Self {
        let mut text = error.to_string();
        let mut cause = match error {
            CredentialsError::ProviderTimedOut(_) => KekCause::Unavailable,
            CredentialsError::InvalidConfiguration(_) => KekCause::Misconfigured,
            _ => KekCause::Unauthenticated,
        };
        let mut next = error.source();
        while let Some(source) = next {
            if source.downcast_ref::<ConnectorError>().is_some() {
                cause = KekCause::Unavailable;
            }
            let more = source.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            next = source.source();
        }
        Self { cause, text }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
