//! `pkcs11`: a key in a token (an HSM) that is reached through a PKCS#11 module. Owns the settings and which version
//! is used; sessions and logins are `token`'s, the calls `wrap`'s, what a failure means `failure`'s.
//!
//! Where the mechanism takes no associated data, the DEK's id tells that it is the right one, as it commits to it and
//! is checked after every unwrap (`set.rs`).

mod client;
mod error;
mod key;
mod mechanism;
mod wrap;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use cryptoki::session::Session;
use serde::Deserialize;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use self::client::{Token, Wanted};
use self::error::{Trouble, no_verdict, short};
use self::key::{Key, KeyId, keys};
pub use self::mechanism::Mechanism;
use super::KekSettings;
use crate::crypto::secret::{DEK_BYTES, Dek};
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek};

/// Calls into the module at once. One that hangs holds a thread until the module returns, and no more than these.
const CALLS_AT_ONCE: usize = 4;

/// Settings of a `pkcs11` KEK.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pkcs11Config {
    /// The PKCS#11 module, a shared library of the token's vendor.
    pub module: PathBuf,
    /// The token's label. Slot numbers change; they are not used.
    pub token_label: String,
    /// The label that all versions of the key bear. The one with the highest `CKA_ID` is active.
    pub key_label: String,
    /// A file with the user's PIN.
    pub pin_file: PathBuf,
    /// How DEKs are wrapped from now on; by default the best that the token offers.
    pub mechanism: Option<Mechanism>,
}

#[async_trait]
impl KekSettings for Pkcs11Config {
    fn kind(&self) -> &'static str {
        "pkcs11"
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !self.module.is_absolute() {
            problems.push(("module", "must be an absolute path: it is loaded into this process".into()));
        }
        for (field, label) in [("tokenLabel", &self.token_label), ("keyLabel", &self.key_label)] {
            if label.trim().is_empty() {
                problems.push((field, "is empty".into()));
            }
        }
        let files: [(&'static str, &Path); 2] = [("module", &self.module), ("pinFile", &self.pin_file)];
        problems.extend(files.into_iter().filter_map(|(field, file)| {
            let error = std::fs::File::open(file).err()?;
            Some((field, format!("cannot open {}: {error}", file.display())))
        }));
        problems
    }

    async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(Pkcs11Kek::new(self).await?))
    }

    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(Pkcs11Kek::new(self).await?))
    }
}

/// One key in one token.
#[derive(Debug)]
struct Pkcs11Kek {
    lineage: Lineage,
    permits: Arc<Semaphore>,
    home: Arc<Home>,
}

/// Where the key lies.
#[derive(Debug)]
struct Home {
    token: Token,
    key_label: String,
    /// Chosen when the token is seen first.
    mechanism: OnceLock<Mechanism>,
    wanted: Option<Mechanism>,
}

impl Pkcs11Kek {
    async fn new(config: &Pkcs11Config) -> Result<Self, KekError> {
        let (token_label, key_label) = (config.token_label.trim_end().to_owned(), config.key_label.clone());
        let lineage = Lineage::derive("pkcs11", &[&token_label, &key_label]);
        let (module, pin_file) = (config.module.clone(), config.pin_file.clone());
        let wanted = config.mechanism;
        let home = run(move || {
            let token = Token::open(&module, token_label, pin_file)?;
            let home = Home { token, key_label, mechanism: OnceLock::new(), wanted };
            match home.mechanism() {
                // A token that is not there may come later.
                Err(error) if error.cause() == KekCause::Unavailable => {
                    tracing::warn!(error = error.chain(), "token not checked");
                }
                chosen => _ = chosen?,
            }
            Ok(home)
        });
        Ok(Self { lineage, permits: Arc::new(Semaphore::new(CALLS_AT_ONCE)), home: Arc::new(home.await?) })
    }

    /// Runs what calls into the module on a thread that may block.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Home) -> Result<T, KekError> + Send + 'static,
    ) -> Result<T, KekError> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let home = self.home.clone();
        run(move || {
            let _until_the_module_returns = permit;
            work(&home)
        })
        .await
    }

    fn kek_version(&self, id: &KeyId) -> KekVersion {
        KekVersion { lineage: self.lineage, version: id.to_string() }
    }
}

async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T, KekError> + Send + 'static) -> Result<T, KekError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(KekError::unavailable("a call into the PKCS#11 module panicked")))
}

#[async_trait]
impl Kek for Pkcs11Kek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// There are no credentials but the PIN, whose end the token does not tell.
    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        Ok(self.kek_version(&self.call(Home::active_id).await?))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let plain = Box::new(Zeroizing::new(*dek.expose()));
        let context = context.to_bytes();
        let wrapped = self.call(move |home| {
            let by = home.mechanism()?;
            let (id, made) = home.token.with_session(Wanted::Any, |session| {
                let active = home.active(session, by)?;
                let made = active.wrap(session, by, &context, plain.as_slice())?;
                Ok((active.id, made))
            })?;
            let unfit = || KekError::unmapped(format!("the token wrapped {DEK_BYTES} bytes as {}", made.len()));
            Ok((id, by.blob(&made).ok_or_else(unfit)?))
        });
        let (id, blob) = wrapped.await?;
        Ok(WrappedDek { version: self.kek_version(&id), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let id = KeyId::parse(&wrapped.version.version).ok_or_else(|| {
            KekError::new(KekCause::UnknownVersion, "not a version of a PKCS#11 key, which reads ID-CHECKVALUE")
        })?;
        if wrapped.version.lineage != self.lineage {
            return Err(KekError::new(KekCause::UnknownVersion, "wrapped by another KEK"));
        }
        let (version, context) = (self.kek_version(&id), context.to_bytes());
        let Some((by, made)) = Mechanism::of_blob(&wrapped.blob).filter(|(by, _)| by.is_rsa() == id.is_rsa()) else {
            let text = format!("{} bytes that no mechanism wraps a DEK as", wrapped.blob.len());
            return Err(KekError::new(KekCause::Rejected, text));
        };
        let made = made.to_vec();
        let dek = self.call(move |home| home.unwrap(&id, by, &made, &context)).await?;
        Ok(Unwrapped { dek, version })
    }
}

#[async_trait]
impl RotateKek for Pkcs11Kek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let made = self.call(|home| {
            let by = home.mechanism()?;
            let former = home.token.with_session(Wanted::Any, |session| home.active(session, by))?;
            home.token
                .with_session(Wanted::Writable, |session| key::generate(session, &home.key_label, by, &former))?;
            home.active_id()
        });
        Ok(self.kek_version(&made.await?))
    }
}

impl Home {
    /// The one that wraps.
    fn mechanism(&self) -> Result<Mechanism, KekError> {
        if let Some(chosen) = self.mechanism.get() {
            return Ok(*chosen);
        }
        let chosen = self.token.choose_mechanism(self.wanted)?;
        tracing::info!(mechanism = ?chosen, "mechanism of the token chosen");
        Ok(*self.mechanism.get_or_init(|| chosen))
    }

    fn active_id(&self) -> Result<KeyId, KekError> {
        let by = self.mechanism()?;
        self.token.with_session(Wanted::Any, |session| Ok(self.active(session, by)?.id))
    }

    /// The key with the highest id, which must be able to wrap and unwrap.
    fn active(&self, session: &Session, by: Mechanism) -> Result<Key, Trouble> {
        let mut all = keys(session, &self.key_label, by)?;
        all.sort_by(|one, other| one.id.cmp(&other.id));
        let kind = if by.is_rsa() { "an RSA key pair" } else { "an AES key" };
        let Some(active) = all.pop() else {
            return Err(self.denied(&format!("is not in the token as {kind}: destroyed, or named wrongly")));
        };
        if all.iter().any(|key| key.id.same_number(&active.id)) {
            let problem = format!("several keys are labelled {:?} and have the same CKA_ID", self.key_label);
            return Err(KekError::misconfigured(problem + "; give each version an id of its own").into());
        }
        if !active.wraps || !active.unwraps {
            return Err(self.denied(match by {
                Mechanism::AesGcm => "is the active version and may not both encrypt and decrypt",
                Mechanism::AesKeyWrap | Mechanism::AesKeyWrapPad => {
                    "is the active version and may not both wrap and unwrap"
                }
                _ => "is the active version and lacks its public half, or a half's right to encrypt or decrypt",
            }));
        }
        Ok(active)
    }

    fn denied(&self, why: &str) -> Trouble {
        KekError::new(KekCause::Denied, format!("key {:?} {why}", self.key_label)).into()
    }

    fn unwrap(&self, id: &KeyId, by: Mechanism, made: &[u8], context: &[u8]) -> Result<Dek, KekError> {
        let attempt = self.token.with_session(Wanted::Any, |session| {
            let key = self.version(session, id, by)?;
            if by.is_rsa() && made.len() != key.modulus_bytes {
                let text = "the wrapped DEK is not as long as the key's modulus";
                return Err(KekError::new(KekCause::Rejected, text).into());
            }
            match key.unwrap(session, by, context, made) {
                Err(error) if no_verdict(&error) => Ok(Err(error)),
                other => other.map(Ok).map_err(Trouble::from),
            }
        });
        match attempt? {
            Ok(plain) => Dek::from_unwrapped(plain)
                .ok_or_else(|| KekError::new(KekCause::Rejected, "the unwrapped DEK is not 32 bytes")),
            Err(error) => Err(self.judge(id, by, context, error)),
        }
    }

    /// Some tokens answer changed data with a general error, as they do when they are broken. If the same key opens
    /// what it has just sealed, in a new session, then it is the data.
    fn judge(&self, id: &KeyId, by: Mechanism, context: &[u8], error: cryptoki::error::Error) -> KekError {
        let sample = self.token.with_session(Wanted::New, |session| {
            let key = self.version(session, id, by)?;
            let sealed = key.wrap(session, by, context, &[0; DEK_BYTES])?;
            Ok(key.unwrap(session, by, context, &sealed)?)
        });
        match sample {
            Ok(_) => {
                let text = "the wrapped DEK does not open, while the key opens what it seals";
                KekError::new(KekCause::Rejected, text).with_source(short(&error))
            }
            Err(_) => Trouble::from(error).into(),
        }
    }

    fn version(&self, session: &Session, id: &KeyId, by: Mechanism) -> Result<Key, Trouble> {
        let found = keys(session, &self.key_label, by)?.into_iter().find(|key| key.id == *id);
        found.ok_or_else(|| {
            let text = format!("key {:?} has no version {id} (any more)", self.key_label);
            KekError::new(KekCause::UnknownVersion, text).into()
        })
    }
}
