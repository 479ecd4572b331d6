//! The module's own process: reads calls, makes them on threads, writes answers. A module that hangs or crashes takes
//! this process with it, and no other.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use zeroize::Zeroizing;

use super::home::Home;
use super::key::KeyId;
use super::mechanism::Mechanism;
use super::protocol::{Call, Done, Failed, Request, Response, read, write};
use crate::kek::{KekCause, KekError};

/// Answers calls until the plugin closes the connection, which is standard input.
///
/// # Errors
/// Of the connection.
pub(in crate::key_stores) fn serve() -> io::Result<()> {
    let connection = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let answers = Arc::new(Mutex::new(connection.try_clone()?));
    let home = Arc::new(OnceLock::new());
    let mut calls = connection;
    while let Some((Request { number, call }, secret)) = read::<Request>(&mut calls)? {
        let (home, answers) = (home.clone(), answers.clone());
        std::thread::spawn(move || {
            let (result, secret) = match answer(&home, call, &secret) {
                Ok((done, secret)) => (Ok(done), secret),
                Err(failed) => (Err(failed), Zeroizing::default()),
            };
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            // A plugin that is gone needs no answer.
            let _ = write(&mut *answers, &Response { number, result }, &secret);
        });
    }
    Ok(())
}

type Answer = Result<(Done, Zeroizing<Vec<u8>>), Failed>;

/// Calls wait until the module is loaded, or could not be.
fn answer(home: &OnceLock<Result<Home, KekError>>, call: Call, secret: &[u8]) -> Answer {
    let opened = match call {
        Call::Open(opening) => {
            let _ = home.set(Home::open(opening, secret));
            return home.wait().as_ref().map(|_| Default::default()).map_err(|error| failed(error, false));
        }
        _ => home.wait().as_ref().map_err(|error| failed(error, false))?,
    };
    work(opened, call, secret).map_err(|error| failed(&error, opened.has_refused_the_pin()))
}

fn work(home: &Home, call: Call, secret: &[u8]) -> Result<(Done, Zeroizing<Vec<u8>>), KekError> {
    let version = |id: KeyId| Done { version: id.to_string(), ..Done::default() };
    let nothing = Zeroizing::default;
    match call {
        Call::Open(_) => Err(KekError::unavailable("the module is loaded already")),
        Call::Version => Ok((version(home.active_id()?), nothing())),
        Call::Profile => {
            let (id, extractable) = home.active_profile()?;
            Ok((Done { extractable, ..version(id) }, nothing()))
        }
        Call::Rotate => Ok((version(home.rotate()?), nothing())),
        Call::Wrap { context } => {
            let (id, blob) = home.wrap(secret, &context)?;
            Ok((Done { blob, ..version(id) }, nothing()))
        }
        Call::Unwrap { version, blob, context } => {
            let wrong = |what| KekError::new(KekCause::Rejected, format!("{what} that cannot be"));
            let id = KeyId::parse(&version).ok_or_else(|| wrong("a version"))?;
            let (by, made) = Mechanism::of_blob(&blob).ok_or_else(|| wrong("a wrapped DEK"))?;
            Ok((Done::default(), Zeroizing::new(home.unwrap(&id, by, made, &context)?)))
        }
    }
}

fn failed(error: &KekError, pin_refused: bool) -> Failed {
    Failed { cause: error.cause(), text: error.problem(), pin_refused }
}
