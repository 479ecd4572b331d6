//! What an error of the module means. The only place that reads return values.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::kek::{KekCause, KekError};

/// Why something in a session failed: the module said so, or it was found out here.
#[derive(Debug)]
pub(super) enum Trouble {
    Module(Error),
    Found(KekError),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Module(error)
    }
}

impl From<KekError> for Trouble {
    fn from(error: KekError) -> Self {
        Self::Found(error)
    }
}

impl From<Trouble> for KekError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Found(error) => error,
            Trouble::Module(error) => kek_error(&error),
        }
    }
}

impl Trouble {
    /// Whether the session, the login or what was found in it is gone: worth one try in a new session.
    pub fn is_lost_session(&self) -> bool {
        use RvError::{
            DeviceRemoved, KeyHandleInvalid, ObjectHandleInvalid, OperationActive, SessionClosed, SessionHandleInvalid,
            TokenNotPresent, UserNotLoggedIn,
        };
        matches!(
            self,
            Self::Module(Error::Pkcs11(
                SessionHandleInvalid
                    | SessionClosed
                    | UserNotLoggedIn
                    | DeviceRemoved
                    | TokenNotPresent
                    | KeyHandleInvalid
                    | ObjectHandleInvalid
                    | OperationActive,
                _
            ))
        )
    }
}

/// Whether the error may mean changed data as well as a broken token.
pub(super) fn no_verdict(error: &Error) -> bool {
    use RvError::{ArgumentsBad, DeviceError, FunctionFailed, GeneralError, VendorDefined};
    let unclear =
        |rv: &RvError| matches!(rv, GeneralError | FunctionFailed | DeviceError | ArgumentsBad | VendorDefined(_));
    matches!(error, Error::Pkcs11(rv, _) if unclear(rv))
}

/// The error for what the module answered.
pub(super) fn kek_error(error: &Error) -> KekError {
    let short = short(error);
    match cause(error) {
        Some((cause, text)) => KekError::new(cause, format!("{text} ({short})")),
        None => KekError::unmapped(short),
    }
}

/// The return value's name and who gave it: cryptoki's own text for it is a paragraph of the standard.
pub(super) fn short(error: &Error) -> String {
    match error {
        Error::Pkcs11(rv, function) => format!("C_{function:?}: {rv:?}"),
        other => other.to_string(),
    }
}

fn cause(error: &Error) -> Option<(KekCause, &'static str)> {
    let rv = match error {
        // Before there are data: it is the mechanism's parameters.
        Error::Pkcs11(RvError::ArgumentsBad, Function::EncryptInit | Function::DecryptInit) => {
            let text = "the token does not take the mechanism's parameters; name another mechanism";
            return Some((KekCause::Misconfigured, text));
        }
        Error::Pkcs11(rv, _) => rv,
        Error::LibraryLoading(_) => return Some((KekCause::Unavailable, "the PKCS#11 module cannot be loaded")),
        Error::MissingSymbol(_) | Error::NullFunctionPointer | Error::NotSupported => {
            return Some((KekCause::Misconfigured, "the PKCS#11 module lacks a function that is needed"));
        }
        _ => return None,
    };
    meaning(*rv)
}

/// The standard's return values.
fn meaning(rv: RvError) -> Option<(KekCause, &'static str)> {
    Some(match rv {
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => {
            (KekCause::Unauthenticated, "the token refuses the PIN; put the right one into pinFile")
        }
        RvError::PinExpired => (KekCause::Unauthenticated, "the PIN has expired; set a new one at the token"),
        RvError::PinLocked => (KekCause::Unauthenticated, "the PIN is locked; the security officer must unlock it"),
        RvError::UserPinNotInitialized => (KekCause::Unauthenticated, "the token has no user PIN yet"),
        RvError::UserNotLoggedIn | RvError::UserAnotherAlreadyLoggedIn | RvError::UserTooManyTypes => {
            (KekCause::Unauthenticated, "the token does not consider the user logged in")
        }
        RvError::KeyFunctionNotPermitted | RvError::ActionProhibited | RvError::FunctionRejected => {
            (KekCause::Denied, "the token does not permit this use of the key")
        }
        RvError::TokenWriteProtected | RvError::SessionReadOnly | RvError::AttributeReadOnly => {
            (KekCause::Denied, "the token does not permit changes")
        }
        RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::SignatureInvalid
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange => (KekCause::Rejected, "the wrapped DEK does not open"),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::FunctionNotSupported
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange
        | RvError::TemplateInconsistent
        | RvError::TemplateIncomplete => {
            (KekCause::Misconfigured, "the token does not offer the mechanism with this key")
        }
        RvError::DeviceRemoved | RvError::TokenNotPresent | RvError::TokenNotRecognized | RvError::SlotIdInvalid => {
            (KekCause::Unavailable, "the token is not there")
        }
        RvError::DeviceError
        | RvError::DeviceMemory
        | RvError::HostMemory
        | RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::FunctionCanceled
        | RvError::FipsSelfTestFailed
        | RvError::CryptokiNotInitialized => (KekCause::Unavailable, "the token or its module fails"),
        RvError::SessionCount
        | RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::ObjectHandleInvalid
        | RvError::OperationActive => (KekCause::Unavailable, "the session was lost"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause_of(rv: RvError) -> KekCause {
        kek_error(&Error::Pkcs11(rv, Function::Decrypt)).cause()
    }

    #[test]
    fn each_return_value_says_what_the_operator_must_do() {
        for (rv, cause) in [
            (RvError::PinIncorrect, KekCause::Unauthenticated),
            (RvError::PinLocked, KekCause::Unauthenticated),
            (RvError::UserNotLoggedIn, KekCause::Unauthenticated),
            (RvError::KeyFunctionNotPermitted, KekCause::Denied),
            (RvError::EncryptedDataInvalid, KekCause::Rejected),
            (RvError::MechanismInvalid, KekCause::Misconfigured),
            (RvError::DeviceRemoved, KekCause::Unavailable),
            (RvError::GeneralError, KekCause::Unavailable),
            (RvError::SessionHandleInvalid, KekCause::Unavailable),
        ] {
            assert_eq!(cause_of(rv), cause, "{rv:?}");
        }
    }

    #[test]
    fn a_return_value_that_nobody_mapped_is_transient_and_says_so() {
        let error = kek_error(&Error::Pkcs11(RvError::NextOtp, Function::Decrypt));
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains("unmapped"), "{error}");
    }

    #[test]
    fn a_general_error_is_no_verdict_on_the_data() {
        assert!(no_verdict(&Error::Pkcs11(RvError::GeneralError, Function::Decrypt)));
        assert!(!no_verdict(&Error::Pkcs11(RvError::EncryptedDataInvalid, Function::Decrypt)));
    }

    #[test]
    fn a_lost_session_is_told_from_other_failures() {
        let lost = |rv| Trouble::Module(Error::Pkcs11(rv, Function::Decrypt)).is_lost_session();
        assert!(lost(RvError::SessionHandleInvalid) && lost(RvError::UserNotLoggedIn) && lost(RvError::DeviceRemoved));
        assert!(!lost(RvError::PinIncorrect) && !lost(RvError::GeneralError));
    }
}
