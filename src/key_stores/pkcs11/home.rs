//! What the module's process does with the key: which version is active, wraps, unwraps and new versions. All of it
//! blocks.

use std::sync::OnceLock;

use cryptoki::session::Session;

use super::error::{Trouble, no_verdict, short};
use super::key::{self, Key, KeyId, keys};
use super::mechanism::Mechanism;
use super::protocol::Opening;
use super::token::{Token, Wanted};
use crate::crypto::secret::DEK_BYTES;
use crate::kek::{KekCause, KekError};

/// Where the key lies.
#[derive(Debug)]
pub(super) struct Home {
    token: Token,
    key_label: String,
    /// Chosen when the token is seen first.
    mechanism: OnceLock<Mechanism>,
    wanted: Option<Mechanism>,
}

impl Home {
    /// Loads the module. Whether token and key are there shows when they are used.
    pub(super) fn open(opening: Opening, pin: &[u8]) -> Result<Self, KekError> {
        let Opening { module, token_label, key_label, mechanism: wanted } = opening;
        let token = Token::open(&module, token_label, pin)?;
        Ok(Self { token, key_label, mechanism: OnceLock::new(), wanted })
    }

    /// Whether the PIN is a wrong one.
    pub(super) fn has_refused_the_pin(&self) -> bool {
        self.token.has_refused_the_pin()
    }

    /// Wraps under the active version; with it, the blob.
    pub(super) fn wrap(&self, plain: &[u8], context: &[u8]) -> Result<(KeyId, Vec<u8>), KekError> {
        let by = self.mechanism()?;
        let (id, made) = self.token.with_session(Wanted::Any, |session| {
            let active = self.active(session, by)?;
            let made = active.wrap(session, by, context, plain)?;
            Ok((active.id, made))
        })?;
        let unfit = || KekError::unmapped(format!("the token wrapped {DEK_BYTES} bytes as {}", made.len()));
        Ok((id, by.blob(&made).ok_or_else(unfit)?))
    }

    /// Makes a new version, which is active from then on.
    pub(super) fn rotate(&self) -> Result<KeyId, KekError> {
        let by = self.mechanism()?;
        let former = self.token.with_session(Wanted::Any, |session| self.active(session, by))?;
        self.token.with_session(Wanted::Writable, |session| key::generate(session, &self.key_label, by, &former))?;
        self.active_id()
    }

    /// The one that wraps.
    fn mechanism(&self) -> Result<Mechanism, KekError> {
        if let Some(chosen) = self.mechanism.get() {
            return Ok(*chosen);
        }
        let chosen = self.token.choose_mechanism(self.wanted)?;
        tracing::info!(mechanism = %chosen, "mechanism of the token chosen");
        // Two threads may come here at once; the first one decides for both.
        Ok(*self.mechanism.get_or_init(|| chosen))
    }

    pub(super) fn active_id(&self) -> Result<KeyId, KekError> {
        let by = self.mechanism()?;
        self.token.with_session(Wanted::Any, |session| Ok(self.active(session, by)?.id))
    }

    /// The active version, and whether its secret can be taken out of the token.
    pub(super) fn active_profile(&self) -> Result<(KeyId, bool), KekError> {
        let by = self.mechanism()?;
        self.token.with_session(Wanted::Any, |session| {
            let active = self.active(session, by)?;
            let extractable = key::is_extractable(session, active.unwraps_with)?;
            Ok((active.id, extractable))
        })
    }

    /// The key with the highest id, which must be able to wrap and unwrap.
    fn active(&self, session: &Session, by: Mechanism) -> Result<Key, Trouble> {
        let mut all = keys(session, &self.key_label, by)?;
        // The greatest id is the active version: PKCS#11 has no notion of one.
        all.sort_by(|one, other| one.id.cmp(&other.id));
        let Some(active) = all.pop() else { return Err(self.not_visible(session, by)) };
        if all.iter().any(|key| key.id.same_number(&active.id)) {
            let problem = format!("several keys are labelled {:?} and have the same CKA_ID", self.key_label);
            return Err(KekError::misconfigured(problem + "; give each version an id of its own").into());
        }
        // What it wraps it must unwrap later: a version that can do only one would make DEKs that nothing opens.
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

    /// Not seeing a key is not a denial: a token loses and finds its objects (a folder that is away, a session that was
    /// logged out, a slow replica), and a key that was destroyed looks the same.
    fn not_visible(&self, session: &Session, by: Mechanism) -> Trouble {
        let (is, other, setting) = if by.is_rsa() {
            ("an RSA key pair", "an AES key", "aesGcm, aesKeyWrapPad or aesKeyWrap")
        } else {
            ("an AES key", "an RSA key pair", "rsaOaep or rsaOaepSha1")
        };
        let label = &self.key_label;
        match key::is_there_as_other_kind(session, label, by) {
            Ok(true) => {
                KekError::misconfigured(format!("key {label:?} is {other}: set mechanism to {setting}")).into()
            }
            Ok(false) => KekError::unavailable(format!(
                "key {label:?} is not visible in the token as {is}; if it is there, check keyLabel and the user's rights"
            ))
            .into(),
            Err(trouble) => trouble,
        }
    }

    fn denied(&self, why: &str) -> Trouble {
        KekError::new(KekCause::Denied, format!("key {:?} {why}", self.key_label)).into()
    }

    pub(super) fn unwrap(&self, id: &KeyId, by: Mechanism, made: &[u8], context: &[u8]) -> Result<Vec<u8>, KekError> {
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
            Ok(plain) => Ok(plain),
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
