//! Files that hold credentials: read again whenever they are needed, by the same rules for every key store.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::crypto::seal::digest;
use crate::kek::{KekCause, KekError};

/// Far above any token, key file or secret.
const MAX_BYTES: u64 = 64 * 1024;

/// What a credential file held when it was read.
#[derive(Clone)]
pub(in crate::key_stores) struct Content {
    /// The text without the white space around it.
    pub text: Zeroizing<String>,
    file: PathBuf,
    /// What a file held that this one names.
    #[cfg(feature = "gcp")]
    pub named: Option<Box<Self>>,
}

/// Tells one content of a file from another; tells nothing about it.
pub(in crate::key_stores) type Fingerprint = [u8; 32];

impl Content {
    fn new(text: &str, file: &Path) -> Self {
        Self {
            text: Zeroizing::new(text.to_owned()),
            file: file.to_owned(),
            #[cfg(feature = "gcp")]
            named: None,
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        #[cfg(feature = "gcp")]
        if let Some(named) = &self.named {
            return digest(&[b"credential files", self.text.as_bytes(), named.text.as_bytes()]);
        }
        digest(&[b"credential file", self.text.as_bytes()])
    }

    #[cfg(any(feature = "azure", feature = "gcp", feature = "transit"))]
    pub fn file(&self) -> &Path {
        &self.file
    }

    #[cfg(test)]
    pub fn for_tests(text: &str) -> Self {
        Self::new(text, Path::new("/file"))
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Reads a credential file. `what` names its content in messages: "AppRole secret id".
///
/// # Errors
/// `Unavailable` when the file is missing, empty or cannot be read now: it may come at any moment. `Misconfigured` when
/// it is not text, or far too long.
pub(in crate::key_stores) async fn read(what: &str, file: &Path) -> Result<Content, KekError> {
    let name = file.display();
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || crate::files::read(&path, MAX_BYTES));
    let wrong = |why: &str| KekError::new(KekCause::Misconfigured, format!("the {what} in {name} {why}"));
    let bytes = read.await.map_err(std::io::Error::from).flatten().map(Zeroizing::new).map_err(|error| {
        if error.kind() == std::io::ErrorKind::FileTooLarge {
            return wrong(&format!("is longer than {MAX_BYTES} bytes; name the right file"));
        }
        KekError::unavailable(format!("cannot read the {what} in {name}")).with_source(error)
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not text; name the right file"))?.trim();
    // A file is empty for a moment where it is written in place.
    if text.is_empty() {
        return Err(KekError::unavailable(format!("the {what} is missing: {name} is empty")));
    }
    Ok(Content::new(text, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_or_empty_file_may_still_come_and_a_binary_one_is_the_wrong_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let error = read("token", &file).await.unwrap_err();
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        std::fs::write(&file, " \n").unwrap();
        assert_eq!(read("token", &file).await.unwrap_err().cause(), KekCause::Unavailable);
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(read("token", &file).await.unwrap_err().cause(), KekCause::Misconfigured);
        for more in [1, 1000] {
            std::fs::write(&file, "a".repeat(usize::try_from(MAX_BYTES).unwrap() + more)).unwrap();
            assert_eq!(read("token", &file).await.unwrap_err().cause(), KekCause::Misconfigured, "{more} too many");
        }
    }

    #[tokio::test]
    async fn the_fingerprint_follows_the_content_and_the_content_does_not_print() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "hvs.one\n").unwrap();
        let one = read("token", &file).await.unwrap();
        std::fs::write(&file, "hvs.one").unwrap();
        assert_eq!(read("token", &file).await.unwrap().fingerprint(), one.fingerprint());
        std::fs::write(&file, "hvs.two").unwrap();
        assert_ne!(read("token", &file).await.unwrap().fingerprint(), one.fingerprint());
        assert!(!format!("{one:?}").contains("hvs"));
    }
}
