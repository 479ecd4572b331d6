//! A file of private halves, as age writes it: one to a line, comments after `#`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::text::{identity, of_identity, of_recipient};
use crate::crypto::recipient::Identity;
use crate::files;
use crate::kek::KekError;
use crate::key_stores::shared::private_file;

/// The private halves of one file.
#[derive(Clone, Debug)]
pub struct Identities {
    file: PathBuf,
    all: Vec<Arc<Identity>>,
}

impl Identities {
    /// Reads a file.
    ///
    /// # Errors
    /// When others can read it, or it holds no private half, or something else; the message names the fix and quotes nothing.
    pub fn read(file: &Path) -> Result<Self, KekError> {
        let text = private_file::read("identity file", file).map_err(|error| match error {
            private_file::Problem::Missing => KekError::misconfigured(format!("{} does not exist", file.display())),
            private_file::Problem::Other(error) => error,
        })?;
        let wrong = |line: usize, why: &str| KekError::misconfigured(format!("{}, line {line} {why}", file.display()));
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE ENCRYPTED FILE") {
            return Err(wrong(
                1,
                "begins an encrypted file; decrypt it to memory first: age -d FILE >/dev/shm/identity",
            ));
        }
        let mut all = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with("AGE-PLUGIN-") {
                return Err(wrong(number, "needs a plugin of age; only keys in the file itself can be used"));
            }
            all.push(Arc::new(
                identity(line).ok_or_else(|| wrong(number, "is not a private half (AGE-SECRET-KEY-1…)"))?,
            ));
        }
        if all.is_empty() {
            return Err(KekError::misconfigured(format!("{} holds no private half", file.display())));
        }
        Ok(Self { file: file.to_owned(), all })
    }

    /// Makes a pair, and writes its private half into a new file. Its public half.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(file: &Path) -> Result<String, KekError> {
        let identity = Identity::generate();
        let recipient = of_recipient(&identity.recipient());
        let secret = of_identity(&identity);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let text = zeroize::Zeroizing::new(format!("# created: {now}\n# public key: {recipient}\n{}\n", *secret));
        files::create(file, text.as_bytes()).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                KekError::misconfigured(format!("{} exists already; choose another name", file.display()))
            }
            _ => KekError::misconfigured(format!("cannot create {}", file.display())).with_source(error),
        })?;
        Ok(recipient)
    }

    /// The private halves.
    pub(in crate::key_stores) fn all(&self) -> &[Arc<Identity>] {
        &self.all
    }

    /// The file, and the public halves of what is in it.
    pub fn describe(&self) -> String {
        let recipients: Vec<_> = self.all.iter().map(|identity| of_recipient(&identity.recipient())).collect();
        format!("{} holds the private half of {}", self.file.display(), recipients.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_was_made_is_read_again_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity");
        let recipient = Identities::create(&file).unwrap();
        let read = Identities::read(&file).unwrap();
        assert!(read.describe().ends_with(&recipient), "{}", read.describe());
        assert!(Identities::create(&file).unwrap_err().to_string().contains("exists already"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identities::read(&file).unwrap_err().to_string();
        assert!(error.contains("others can read it") && error.contains("chmod 0600"), "{error}");
    }

    #[test]
    fn what_is_no_identity_file_is_refused_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity");
        let refused = |content: &str| {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            Identities::read(&file).unwrap_err().to_string()
        };
        assert!(refused("# only words\n\n").contains("holds no private half"));
        let slip = refused("# a\nAGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J34\n");
        assert!(slip.contains("line 2") && !slip.contains("GQ9778"), "{slip}");
        assert!(refused("AGE-PLUGIN-YUBIKEY-1QQ\n").contains("needs a plugin"));
        assert!(refused("age-encryption.org/v1\n-> scrypt x\n").contains("decrypt it"));
        assert!(Identities::read(&folder.path().join("none")).unwrap_err().to_string().contains("does not exist"));
    }
}
