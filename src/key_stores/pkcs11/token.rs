//! A token behind a module: found by its label, its sessions kept, its user logged in again once a session is lost.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::error::{Trouble, kek_error};
use super::mechanism::Mechanism;
use crate::kek::{KekCause, KekError};

/// One token. All of its methods block.
#[derive(Debug)]
pub(super) struct Token {
    module: Pkcs11,
    label: String,
    pin: Zeroizing<String>,
    /// Logged in, not in use.
    sessions: Mutex<Vec<Session>>,
    /// Tokens lock after a few wrong PINs, so it is shown by one session at a time, and never again once it was refused.
    login: Mutex<()>,
    refused: AtomicBool,
}

/// Which session is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One that was used before will do.
    Any,
    /// One in which nothing has gone wrong yet.
    New,
    /// One that may change the token.
    Writable,
}

impl Token {
    /// Loads the module. Whether the token is there shows when it is used.
    ///
    /// # Errors
    /// `Unavailable` if the module cannot be loaded or initialised.
    pub fn open(file: &Path, label: String, pin: &[u8]) -> Result<Self, KekError> {
        let pin = std::str::from_utf8(pin).map_err(|_| KekError::misconfigured("the PIN is not text"))?;
        let pin = Zeroizing::new(pin.to_owned());
        let named = |error: Error| {
            let error = kek_error(&error);
            KekError::new(error.cause(), format!("PKCS#11 module {}", file.display())).with_source(error)
        };
        let module = Pkcs11::new(file).map_err(named)?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // By another library of this process; it is never finalised.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(named(error)),
        }
        let (sessions, login, refused) = (Mutex::default(), Mutex::default(), AtomicBool::default());
        Ok(Self { module, label, pin, sessions, login, refused })
    }

    /// The mechanism to wrap with, by what the token offers.
    ///
    /// # Errors
    /// `Misconfigured` if the token offers none of those that are known, or not the one that is wanted.
    pub fn choose_mechanism(&self, wanted: Option<Mechanism>) -> Result<Mechanism, KekError> {
        let offered = self.module.get_mechanism_list(self.slot()?).map_err(|error| kek_error(&error))?;
        Mechanism::choose(wanted, &offered)
            .map_err(|problem| KekError::misconfigured(format!("token {:?} {problem}", self.label)))
    }

    /// Runs `work` in a session with the user logged in, and once more in a new one if the first was lost.
    ///
    /// # Errors
    /// What `work` or the login returned, by its meaning.
    pub fn with_session<T>(
        &self,
        wanted: Wanted,
        work: impl Fn(&Session) -> Result<T, Trouble>,
    ) -> Result<T, KekError> {
        match self.attempt(wanted, &work) {
            Err(trouble) if trouble.is_lost_session() => {
                self.sessions().clear();
                self.attempt(wanted, &work).map_err(KekError::from)
            }
            other => other.map_err(KekError::from),
        }
    }

    fn attempt<T>(&self, wanted: Wanted, work: impl Fn(&Session) -> Result<T, Trouble>) -> Result<T, Trouble> {
        // In a statement of its own: the lock must not be held while the token works.
        let kept = if wanted == Wanted::Any { self.sessions().pop() } else { None };
        let session = match kept {
            Some(session) => session,
            None => self.open_session(wanted)?,
        };
        self.log_in(&session)?;
        let mut result = work(&session);
        if matches!(result, Err(Trouble::Found(_))) && !is_logged_in(&session)? {
            // Logged out meanwhile, and so the keys were invisible: no verdict on them.
            result = Err(Error::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects).into());
        }
        // A session in which the module failed is closed: an operation may still be active in it.
        if !matches!(result, Err(Trouble::Module(_))) && wanted != Wanted::Writable {
            self.sessions().push(session);
        }
        result
    }

    fn open_session(&self, wanted: Wanted) -> Result<Session, Trouble> {
        let slot = self.slot()?;
        Ok(match wanted {
            Wanted::Writable => self.module.open_rw_session(slot)?,
            Wanted::Any | Wanted::New => self.module.open_ro_session(slot)?,
        })
    }

    fn log_in(&self, session: &Session) -> Result<(), Trouble> {
        // Without a login private keys are not refused but invisible, which would look like a destroyed key.
        if is_logged_in(session)? {
            return Ok(());
        }
        let _one_at_a_time = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_refused_the_pin() {
            return Err(KekError::new(KekCause::Unauthenticated, "the token has refused the PIN in pinFile").into());
        }
        match session.login(UserType::User, Some(&AuthPin::new(self.pin.as_str().into()))) {
            Ok(()) => {
                tracing::info!(token = self.label, "logged in to the token");
                Ok(())
            }
            // Another session of this process was faster: the login is the token's, not the session's.
            Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => {
                use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
                if let Error::Pkcs11(PinIncorrect | PinLocked | PinInvalid | PinLenRange | PinExpired, _) = error {
                    self.refused.store(true, Relaxed);
                }
                Err(error.into())
            }
        }
    }

    /// Whether the PIN is a wrong one.
    pub fn has_refused_the_pin(&self) -> bool {
        self.refused.load(Relaxed)
    }

    fn slot(&self) -> Result<Slot, KekError> {
        let mut labels = Vec::new();
        let mut found = Vec::new();
        for slot in self.module.get_slots_with_initialized_token().map_err(|error| kek_error(&error))? {
            // A token pulled out between the two calls is simply not among them.
            let Ok(token) = self.module.get_token_info(slot) else { continue };
            let label = token.label().trim_end();
            labels.push(format!("{label:?}"));
            if label == self.label {
                found.push(slot);
            }
        }
        match found.as_slice() {
            [slot] => Ok(*slot),
            [] => {
                let there = if labels.is_empty() { "the module shows none".into() } else { labels.join(", ") };
                let configured = std::env::var("SOFTHSM2_CONF").map(|file| format!(" (SOFTHSM2_CONF is {file})"));
                Err(KekError::unavailable(format!(
                    "no token is labelled {:?}; there: {there}{}; check tokenLabel",
                    self.label,
                    configured.unwrap_or_default()
                )))
            }
            _ => Err(KekError::misconfigured(format!("several tokens are labelled {:?}; relabel one", self.label))),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_logged_in(session: &Session) -> Result<bool, Trouble> {
    Ok(matches!(session.get_session_info()?.session_state(), SessionState::RoUser | SessionState::RwUser))
}
