//! Which KEK version still unwraps: kept for each (KEK, version), from unwraps alone. Pure; the caller brings the time.
//!
//! Reading a version, a metadata permission, a file that is there: none of these tells whether a DEK would come back.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::kek::{KekCause, KekVersion, Lineage};

/// A row of denials this long is definite.
pub const CONFIRMATION: Duration = Duration::from_secs(10);

/// Fewer denials than this do not count as a row, however far apart they are.
const LEAST_DENIALS: u32 = 3;

/// What a KEK version did with the last DEK that it was asked to unwrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It unwrapped the DEK.
    Opens,
    /// It refused, by policy or by the key's state.
    Denies,
    /// It answered that it has no such version, or that the wrap is not its own.
    Lost,
    /// It did not answer, or with something that tells nothing about the key.
    Silent,
}

impl Standing {
    /// The word for it in metrics and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opens => "opens",
            Self::Denies => "denies",
            Self::Lost => "lost",
            Self::Silent => "silent",
        }
    }
}

impl From<KekCause> for Standing {
    fn from(cause: KekCause) -> Self {
        match cause {
            KekCause::Denied => Self::Denies,
            KekCause::UnknownVersion | KekCause::Rejected => Self::Lost,
            KekCause::Unavailable | KekCause::Throttled | KekCause::Unauthenticated | KekCause::Misconfigured => {
                Self::Silent
            }
        }
    }
}

/// What is known of the KEK versions that DEKs in use are wrapped by.
#[derive(Clone, Debug, Default)]
pub(super) struct Contacts {
    /// How long a DEK may be used after the last unwrap by a KEK that could unwrap it.
    limit: Duration,
    /// The KEKs in the configuration; what others said once no longer counts.
    configured: BTreeSet<Lineage>,
    versions: BTreeMap<KekVersion, Contact>,
}

/// What is known of one KEK version.
#[derive(Clone, Debug)]
pub struct Contact {
    /// How the last unwrap ended.
    pub standing: Standing,
    /// When it was asked last.
    pub asked: Duration,
    /// When it unwrapped last.
    pub opened: Option<Duration>,
    denials: Option<Denials>,
}

/// Denials in a row, with nothing else in between.
#[derive(Clone, Copy, Debug)]
struct Denials {
    first: Duration,
    last: Duration,
    count: u32,
}

impl Denials {
    fn is_definite(self) -> bool {
        self.count >= LEAST_DENIALS && self.last.saturating_sub(self.first) >= CONFIRMATION
    }
}

impl Contact {
    /// Whether the denials are definite.
    pub fn is_denied(&self) -> bool {
        self.denials.is_some_and(Denials::is_definite)
    }

    /// Whether there was a denial that is not definite yet.
    pub fn is_doubtful(&self) -> bool {
        self.denials.is_some() && !self.is_denied()
    }
}

impl Contacts {
    /// Takes a new configuration: what is known of KEKs that are not in it is forgotten.
    pub(super) fn configure(&mut self, configured: BTreeSet<Lineage>, limit: Duration) {
        self.versions.retain(|version, _| configured.contains(&version.lineage));
        (self.configured, self.limit) = (configured, limit);
    }

    /// Notes how an unwrap under `version` ended, which was asked for at the moment `now`: the machine may have slept
    /// before the answer came.
    pub(super) fn note(&mut self, version: &KekVersion, standing: Standing, now: Duration) {
        let before = self.versions.get(version);
        // Answers may arrive in another order than they were asked for; time does not go back for it.
        let now = before.map_or(now, |contact| contact.asked.max(now));
        let denials = (standing == Standing::Denies).then(|| match before.and_then(|contact| contact.denials) {
            // Over a longer silence nobody knows what it would have said; what is definite stays so until it says
            // something else.
            Some(row) if row.is_definite() || now.saturating_sub(row.last) <= CONFIRMATION => {
                Denials { last: now, count: row.count.saturating_add(1), ..row }
            }
            _ => Denials { first: now, last: now, count: 1 },
        });
        let opened = match standing {
            Standing::Opens => Some(now),
            _ => before.and_then(|contact| contact.opened),
        };
        self.versions.insert(version.clone(), Contact { standing, asked: now, opened, denials });
    }

    /// Ends a row of denials: the version answered something else, which says nothing about the next DEK.
    pub(super) fn interrupt(&mut self, version: &KekVersion) {
        if let Some(contact) = self.versions.get_mut(version) {
            contact.denials = None;
        }
    }

    /// What is known of a version.
    pub(super) fn of(&self, version: &KekVersion) -> Option<&Contact> {
        self.versions.get(version)
    }

    /// Every version that anything is known of.
    pub(super) fn all(&self) -> impl Iterator<Item = (&KekVersion, &Contact)> {
        self.versions.iter()
    }

    /// The versions among `versions` whose KEK is configured.
    pub(super) fn usable<'a>(&'a self, versions: &'a [KekVersion]) -> impl Iterator<Item = &'a KekVersion> {
        versions.iter().filter(|version| self.configured.contains(&version.lineage))
    }

    /// How long a DEK that `versions` wrapped may still be used: nothing when all that could unwrap it deny, or
    /// when none has unwrapped for too long.
    pub(super) fn remaining(&self, versions: &[KekVersion], now: Duration) -> Option<Duration> {
        if self.is_denied(versions) {
            return None;
        }
        let opened = self.usable(versions).filter_map(|version| self.versions.get(version)?.opened).max()?;
        opened.saturating_add(self.limit).checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Whether every configured KEK that could unwrap what `versions` wrapped definitely denies it.
    pub fn is_denied(&self, versions: &[KekVersion]) -> bool {
        let mut usable = self.usable(versions).peekable();
        usable.peek().is_some() && usable.all(|version| self.versions.get(version).is_some_and(Contact::is_denied))
    }

    /// Forgets the versions that nothing in use is wrapped by.
    pub(super) fn retain(&mut self, used: &BTreeSet<KekVersion>) {
        self.versions.retain(|version, _| used.contains(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    fn version(home: &str, version: &str) -> KekVersion {
        KekVersion { lineage: Lineage::derive("test", &[home]), version: version.into() }
    }

    fn contacts() -> Contacts {
        let mut contacts = Contacts::default();
        contacts.configure(["a", "b"].map(|home| version(home, "").lineage).into(), LIMIT);
        contacts
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_deks_age_counts_from_the_last_unwrap_by_any_configured_kek() {
        let (mut contacts, by) = (contacts(), [version("a", "1"), version("b", "1"), version("gone", "1")]);
        contacts.note(&by[0], Standing::Opens, at(100));
        contacts.note(&by[1], Standing::Opens, at(110));
        contacts.note(&by[2], Standing::Opens, at(150));
        for standing in [Standing::Silent, Standing::Lost, Standing::Denies] {
            contacts.note(&by[1], standing, at(130));
        }
        assert_eq!(contacts.remaining(&by, at(130)), Some(at(40)));
        assert_eq!(contacts.remaining(&by, at(170)), None);
        assert_eq!(contacts.remaining(&[version("a", "2")], at(130)), None, "another version says nothing");
    }

    #[test]
    fn denials_are_definite_after_a_row_of_them_with_nothing_in_between() {
        let by = [version("a", "1")];
        for (between, definite) in [
            (None, true),
            (Some(Standing::Silent), false),
            (Some(Standing::Lost), false),
            (Some(Standing::Opens), false),
        ] {
            let mut contacts = contacts();
            contacts.note(&by[0], Standing::Opens, at(0));
            for second in [1, 5, 9] {
                contacts.note(&by[0], Standing::Denies, at(second));
            }
            assert!(!contacts.is_denied(&by), "too short");
            if let Some(standing) = between {
                contacts.note(&by[0], standing, at(10));
            }
            contacts.note(&by[0], Standing::Denies, at(11));
            assert_eq!(contacts.is_denied(&by), definite, "{between:?}");
        }
    }

    #[test]
    fn denials_far_apart_or_too_few_are_no_row() {
        let (mut contacts, by) = (contacts(), [version("a", "1")]);
        for second in [0, 28, 28 + 10] {
            contacts.note(&by[0], Standing::Denies, at(second));
        }
        assert!(!contacts.is_denied(&by));
    }

    #[test]
    fn a_definite_denial_stays_so_however_long_nobody_asks_until_something_else_is_answered() {
        let (mut contacts, by) = (contacts(), [version("a", "1")]);
        for second in [0, 5, 10, 100] {
            contacts.note(&by[0], Standing::Denies, at(second));
        }
        assert!(contacts.is_denied(&by));
        contacts.note(&by[0], Standing::Silent, at(101));
        contacts.note(&by[0], Standing::Denies, at(102));
        assert!(!contacts.is_denied(&by));
    }

    #[test]
    fn one_kek_that_may_still_answer_keeps_what_the_other_denies() {
        let (mut contacts, by) = (contacts(), [version("a", "1"), version("b", "1")]);
        contacts.note(&by[1], Standing::Opens, at(0));
        for second in [1, 6, 11] {
            contacts.note(&by[0], Standing::Denies, at(second));
        }
        assert!(contacts.remaining(&by, at(11)).is_some() && contacts.remaining(&by[..1], at(11)).is_none());
    }

    #[test]
    fn a_kek_that_left_the_configuration_takes_its_state_along() {
        let (mut contacts, by) = (contacts(), [version("a", "1")]);
        for second in [0, 5, 10] {
            contacts.note(&by[0], Standing::Denies, at(second));
        }
        contacts.configure([version("b", "").lineage].into(), LIMIT);
        contacts.configure([by[0].lineage].into(), LIMIT);
        assert!(!contacts.is_denied(&by) && contacts.of(&by[0]).is_none());
    }
}
