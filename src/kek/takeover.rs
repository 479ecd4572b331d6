//! What another plugin stored under this plugin's provider name: read, and never made.
//!
//! Each rival has its format in the folder of its key store (`key_stores/KIND/takeover.rs`). Here are the contract, the
//! bounds that hold for all of them, and the set of all configured ones.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::guard::Guard;
use super::{KekError, Lineage};
use crate::crypto::secret::Seed;
use crate::telemetry::{KekOperation, Metrics};

/// The longest ciphertext that an API server stores (k8s.io/apiserver, kmsv2/envelope.go).
const MAX_CIPHERTEXT_BYTES: usize = 1024;
/// The longest `key_id` that it stores.
const MAX_KEY_ID_BYTES: usize = 1024;
/// The longest annotation that any of these plugins writes is a time stamp or a request's id.
const MAX_ANNOTATION_BYTES: usize = 256;
const MAX_ANNOTATIONS: usize = 8;
/// The longest seed that is handed on; those of API servers have 32 bytes.
const MAX_SEED_BYTES: usize = 512;

/// A plugin's answer to an Encrypt, as an API server stores it with an object and hands it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The encrypted seed.
    pub ciphertext: Vec<u8>,
    /// The plugin's name for its key.
    pub key_id: String,
    /// Whatever it noted beside them.
    pub annotations: HashMap<String, Vec<u8>>,
}

impl Stored {
    /// Whether an API server can have stored this, for a plugin that is known here.
    fn check(&self) -> Result<(), String> {
        let Self { ciphertext, key_id, annotations } = self;
        let within = |what: &str, length: usize, most: usize| match length {
            0 => Err(format!("{what} is empty")),
            length if length > most => Err(format!("{what} has {length} bytes, and at most {most} are possible")),
            _ => Ok(()),
        };
        within("the ciphertext", ciphertext.len(), MAX_CIPHERTEXT_BYTES)?;
        within("key_id", key_id.len(), MAX_KEY_ID_BYTES)?;
        let longest = annotations.iter().map(|(name, value)| name.len().max(value.len())).max().unwrap_or(1);
        within("an annotation", longest.max(1), MAX_ANNOTATION_BYTES)?;
        within("the list of annotations", annotations.len().max(1), MAX_ANNOTATIONS)
    }

    /// For a plugin that writes no annotations.
    ///
    /// # Errors
    /// When there are some.
    pub fn without_annotations(&self) -> Result<(), String> {
        let names: Vec<_> = self.annotations.keys().map(|name| shown(name)).collect();
        if names.is_empty() { Ok(()) } else { Err(format!("it has annotations ({})", names.join(", "))) }
    }
}

/// Text that came with a request, fit for a message.
pub fn shown(text: &str) -> String {
    const MOST: usize = 80;
    // Control characters could break a line of the log, or a terminal.
    let cut: String = text.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if text.chars().count() > MOST { format!("{cut}…") } else { cut }
}

/// A plugin that served this provider before. It opens what that plugin encrypted, and cannot encrypt.
#[async_trait]
pub trait FormerPlugin: Send + Sync + fmt::Debug {
    /// The plugin, as its project is called.
    fn plugin(&self) -> &'static str;

    /// The key that it used.
    fn key(&self) -> &dyn FormerKey;

    /// The program that is started for credentials, where the settings name one.
    fn program(&self) -> Option<&Path> {
        None
    }

    /// What every ciphertext that this entry takes has in common, as far as a request shows it: two entries that share
    /// one of these could not be told apart.
    fn marks(&self) -> Vec<String>;

    /// Whether that plugin, with the key of this entry, made this. Looks at the form alone, and asks nobody.
    ///
    /// # Errors
    /// What speaks against it.
    fn recognize(&self, stored: &Stored) -> Result<(), String>;

    /// Opens what [`FormerPlugin::recognize`] took: one request to the key store.
    async fn open(&self, stored: &Stored) -> Result<Seed, KekError>;
}

/// The key that such a plugin used.
#[async_trait]
pub trait FormerKey: Send + Sync + fmt::Debug {
    /// Which key it is, as a KEK with the same settings would have it: what one of them needs must not be disabled for the
    /// other.
    fn lineage(&self) -> Lineage;

    /// Asks the key store about the key, so that `doctor` can tell whether it can be reached. Encrypts nothing.
    async fn probe(&self) -> Result<String, KekError>;

    /// When the credentials now in use end, where that is known.
    fn credentials_expire(&self) -> Option<jiff::Timestamp>;
}

/// The seed that a key store gave back.
///
/// # Errors
/// [`KekCause::Rejected`](super::KekCause::Rejected) for a length that no API server's seed has.
pub fn opened_seed(bytes: Vec<u8>) -> Result<Seed, KekError> {
    let seed = Seed::new(bytes);
    match seed.expose().len() {
        1..=MAX_SEED_BYTES => Ok(seed),
        length => {
            let text = format!("the decrypted value has {length} bytes, which no seed has");
            Err(KekError::new(super::KekCause::Rejected, text))
        }
    }
}

/// All entries of `takeover:`.
#[derive(Clone, Default)]
pub struct Takeovers {
    entries: Vec<Arc<Entry>>,
}

struct Entry {
    guard: Guard,
    plugin: Arc<dyn FormerPlugin>,
    used: Mutex<Used>,
}

/// What became of the Decrypts that an entry was asked for.
#[derive(Clone, Debug, Default)]
struct Used {
    opened: u64,
    last: Option<jiff::Timestamp>,
    error: Option<String>,
}

/// What `/status` shows about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeoverHealth {
    /// Its configured name.
    pub name: String,
    /// Which plugin's data it opens.
    pub plugin: &'static str,
    /// How many Decrypts it answered since it was configured.
    pub opened: u64,
    /// When the last one was.
    pub last_opened: Option<jiff::Timestamp>,
    /// What the key store said, where the last Decrypt failed.
    pub error: Option<String>,
}

/// A seed, and the entry that opened it.
#[derive(Debug)]
pub struct TakenOver {
    /// What the other plugin had encrypted for the API server.
    pub seed: Seed,
    /// The entry's configured name.
    pub by: String,
}

/// Why what another plugin stored is not opened.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// No entry takes it; nobody was asked.
    #[error("no entry under takeover accepts what another plugin stored: {0}")]
    NotRecognized(String),
    /// The key store did not open it.
    #[error("{name}, under takeover: {}", error.chain())]
    Failed {
        /// The entry's configured name.
        name: String,
        /// What the key store said.
        error: KekError,
    },
}

impl Takeovers {
    /// The entries, each with its configured name.
    pub fn new(entries: Vec<(String, Arc<dyn FormerPlugin>)>, metrics: &Arc<Metrics>) -> Self {
        let entry = |(name, plugin)| {
            let guard = Guard::new(name, metrics.clone());
            Arc::new(Entry { guard, plugin, used: Mutex::default() })
        };
        Self { entries: entries.into_iter().map(entry).collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Opens what another plugin stored, by the one entry whose form it has.
    ///
    /// # Errors
    /// [`TakeoverError`]; what no entry recognizes is refused before anybody is asked.
    pub async fn open(&self, stored: &Stored) -> Result<TakenOver, TakeoverError> {
        // First the bounds that hold for all: `recognize` may then take lengths for granted.
        stored.check().map_err(TakeoverError::NotRecognized)?;
        let mut objections = Vec::new();
        for entry in &self.entries {
            match entry.plugin.recognize(stored) {
                // The first that recognizes it is the only one: `marks` of two entries are never the same.
                Ok(()) => return entry.open(stored).await,
                // All objections are shown: which entry the operator meant cannot be known.
                Err(why) => objections.push(format!("{} ({}): {why}", entry.guard.name(), entry.plugin.plugin())),
            }
        }
        Err(TakeoverError::NotRecognized(objections.join("; ")))
    }

    /// How each entry stands.
    pub fn health(&self) -> Vec<TakeoverHealth> {
        let health = |entry: &Arc<Entry>| {
            let Used { opened, last, error } = entry.used().clone();
            let (name, plugin) = (entry.guard.name().to_owned(), entry.plugin.plugin());
            TakeoverHealth { name, plugin, opened, last_opened: last, error }
        };
        self.entries.iter().map(health).collect()
    }
}

impl Entry {
    async fn open(&self, stored: &Stored) -> Result<TakenOver, TakeoverError> {
        let opened = self.guard.call(KekOperation::TakeOver, || self.plugin.open(stored)).await;
        // Also after a failure: the credentials may have been renewed for this very call.
        self.guard.note_credentials(self.plugin.key().credentials_expire());
        let mut used = self.used();
        match opened {
            Ok(seed) => {
                *used = Used { opened: used.opened + 1, last: Some(jiff::Timestamp::now()), error: None };
                Ok(TakenOver { seed, by: self.guard.name().to_owned() })
            }
            Err(error) => {
                used.error = Some(error.chain());
                Err(TakeoverError::Failed { name: self.guard.name().to_owned(), error })
            }
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Takeovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.iter().map(|entry| (entry.guard.name(), entry.plugin.plugin()));
        f.debug_struct("Takeovers").field("entries", &entries.collect::<BTreeMap<_, _>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::kek::KekCause;

    /// Takes what begins with its letter, and counts what it is asked.
    #[derive(Debug)]
    struct Fake {
        letter: u8,
        asked: Arc<AtomicUsize>,
        fails: Option<KekCause>,
    }

    #[async_trait]
    impl FormerPlugin for Fake {
        fn plugin(&self) -> &'static str {
            "fake"
        }

        fn key(&self) -> &dyn FormerKey {
            self
        }

        fn marks(&self) -> Vec<String> {
            vec![char::from(self.letter).into()]
        }

        fn recognize(&self, stored: &Stored) -> Result<(), String> {
            stored.without_annotations()?;
            let is_ours = stored.ciphertext.first() == Some(&self.letter);
            is_ours.then_some(()).ok_or_else(|| "it begins with another letter".into())
        }

        async fn open(&self, stored: &Stored) -> Result<Seed, KekError> {
            self.asked.fetch_add(1, SeqCst);
            match self.fails {
                Some(cause) => Err(KekError::new(cause, "no")),
                None => opened_seed(stored.ciphertext[1..].to_vec()),
            }
        }
    }

    #[async_trait]
    impl FormerKey for Fake {
        fn lineage(&self) -> Lineage {
            Lineage::derive("fake", &[])
        }

        async fn probe(&self) -> Result<String, KekError> {
            Ok(String::new())
        }

        fn credentials_expire(&self) -> Option<jiff::Timestamp> {
            None
        }
    }

    fn two(fails: Option<KekCause>) -> (Takeovers, [Arc<AtomicUsize>; 2]) {
        let asked = [Arc::<AtomicUsize>::default(), Arc::default()];
        let entry = |name: &str, letter, asked: &Arc<AtomicUsize>| {
            let plugin: Arc<dyn FormerPlugin> = Arc::new(Fake { letter, asked: asked.clone(), fails });
            (name.to_owned(), plugin)
        };
        let entries = vec![entry("first", b'a', &asked[0]), entry("second", b'b', &asked[1])];
        (Takeovers::new(entries, &Arc::new(Metrics::new())), asked)
    }

    fn stored(ciphertext: &[u8]) -> Stored {
        Stored { ciphertext: ciphertext.to_vec(), key_id: "k".into(), annotations: HashMap::new() }
    }

    fn counts(asked: &[Arc<AtomicUsize>; 2]) -> [usize; 2] {
        [asked[0].load(SeqCst), asked[1].load(SeqCst)]
    }

    #[tokio::test]
    async fn the_one_entry_whose_form_it_has_is_asked_and_no_other() {
        let (takeovers, asked) = two(None);
        let taken = takeovers.open(&stored(b"bseed")).await.expect("opens");
        assert_eq!((taken.seed.expose(), taken.by.as_str()), (&b"seed"[..], "second"));
        assert_eq!(counts(&asked), [0, 1]);
        let health = takeovers.health();
        assert_eq!((health[0].opened, health[1].opened), (0, 1));
        assert!(health[1].last_opened.is_some() && health[0].last_opened.is_none());
    }

    #[tokio::test]
    async fn what_no_entry_recognizes_and_what_no_api_server_stores_asks_nobody() {
        let (takeovers, asked) = two(None);
        let annotated = |name: &str, value: &[u8]| Stored {
            annotations: HashMap::from([(name.to_owned(), value.to_vec())]),
            ..stored(b"aseed")
        };
        let many = (0..=MAX_ANNOTATIONS).map(|number| (number.to_string(), Vec::new())).collect();
        for refused in [
            stored(b"cseed"),
            stored(b""),
            stored(&[b'a'; MAX_CIPHERTEXT_BYTES + 1]),
            Stored { key_id: String::new(), ..stored(b"aseed") },
            Stored { key_id: "k".repeat(MAX_KEY_ID_BYTES + 1), ..stored(b"aseed") },
            annotated("a.example", b""),
            annotated("a.example", &[b'x'; MAX_ANNOTATION_BYTES + 1]),
            Stored { annotations: many, ..stored(b"aseed") },
        ] {
            let error = takeovers.open(&refused).await.expect_err("refused");
            assert!(matches!(error, TakeoverError::NotRecognized(_)), "{error}");
        }
        assert_eq!(counts(&asked), [0, 0]);
    }

    #[tokio::test]
    async fn a_failure_names_the_entry_and_stays_in_its_health_until_it_opens_something() {
        let (takeovers, _) = two(Some(KekCause::Denied));
        let error = takeovers.open(&stored(b"aseed")).await.expect_err("denied");
        assert!(error.to_string().starts_with("first, under takeover: denied"), "{error}");
        let health = takeovers.health();
        assert!(health[0].error.as_ref().is_some_and(|said| said.contains("denied")), "{health:?}");
        assert_eq!(health[1].error, None);
    }

    #[test]
    fn a_seed_that_no_api_server_has_is_rejected() {
        for length in [0, MAX_SEED_BYTES + 1] {
            assert_eq!(opened_seed(vec![1; length]).expect_err("rejected").cause(), KekCause::Rejected);
        }
        assert!(opened_seed(vec![1; 32]).is_ok());
    }

    #[test]
    fn text_of_a_request_is_cut_and_has_no_control_characters() {
        assert_eq!(shown("a\nb"), "ab");
        assert_eq!(shown(&"x".repeat(100)).chars().count(), 81);
    }
}
