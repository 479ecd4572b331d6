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
    /// When this ends at the latest, where it comes from before a reboot.
    until: Option<Duration>,
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

/// Until when a KEK version vouches for what it wrapped: what outlives a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// The version that unwrapped.
    pub version: KekVersion,
    /// When it unwrapped last.
    pub opened: Duration,
    /// When this ends, whatever the configuration says; none where that alone decides.
    pub until: Option<Duration>,
}

impl Contact {
    /// When what the version wrapped may no longer be used.
    fn end(&self, limit: Duration) -> Option<Duration> {
        let end = self.opened?.saturating_add(limit);
        Some(self.until.map_or(end, |until| until.min(end)))
    }

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
        let (opened, until) = match standing {
            Standing::Opens => (Some(now), None),
            _ => before.map_or((None, None), |contact| (contact.opened, contact.until)),
        };
        self.versions.insert(version.clone(), Contact { standing, asked: now, opened, until, denials });
    }

    /// Takes up what an earlier process knew of a version; an unwrap of this one counts for more.
    pub(super) fn take_over(&mut self, vouched: &Vouched) {
        let Vouched { version, opened, until } = vouched;
        match self.versions.get_mut(version) {
            Some(contact) if contact.opened.is_some() => {}
            Some(contact) => (contact.opened, contact.until) = (Some(*opened), *until),
            None => {
                let contact = Contact {
                    standing: Standing::Opens,
                    asked: *opened,
                    opened: Some(*opened),
                    until: *until,
                    denials: None,
                };
                self.versions.insert(version.clone(), contact);
            }
        }
    }

    /// Ends what was taken up from before a reboot at `until` or before; what was unwrapped since is not concerned.
    pub(super) fn shorten(&mut self, version: &KekVersion, until: Duration) {
        if let Some(end) = self.versions.get_mut(version).and_then(|contact| contact.until.as_mut()) {
            *end = until.min(*end);
        }
    }

    /// The versions that are not denied, and when each unwrapped last.
    pub(super) fn vouched(&self) -> impl Iterator<Item = Vouched> {
        let known = self.versions.iter().filter(|(_, contact)| !contact.is_denied());
        known.filter_map(|(version, contact)| {
            Some(Vouched { version: version.clone(), opened: contact.opened?, until: contact.until })
        })
    }

    /// How long a DEK may be used after the last unwrap.
    pub(super) fn limit(&self) -> Duration {
        self.limit
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
        let ends = self.usable(versions).filter_map(|version| self.versions.get(version)?.end(self.limit));
        ends.max()?.checked_sub(now).filter(|left| !left.is_zero())
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
    fn what_is_taken_up_ends_as_it_was_said_until_the_version_unwraps() {
        let (mut contacts, by) = (contacts(), [version("a", "1")]);
        contacts.take_over(&Vouched { version: by[0].clone(), opened: at(100), until: Some(at(120)) });
        contacts.note(&by[0], Standing::Silent, at(101));
        assert_eq!(contacts.remaining(&by, at(110)), Some(at(10)));
        contacts.shorten(&by[0], at(130));
        assert_eq!(contacts.remaining(&by, at(110)), Some(at(10)), "it is never later");
        contacts.shorten(&by[0], at(115));
        assert_eq!(contacts.remaining(&by, at(110)), Some(at(5)));
        assert_eq!(contacts.remaining(&by, at(115)), None);
        contacts.note(&by[0], Standing::Opens, at(116));
        contacts.shorten(&by[0], at(117));
        contacts.take_over(&Vouched { version: by[0].clone(), opened: at(100), until: Some(at(117)) });
        assert_eq!(contacts.remaining(&by, at(116)), Some(LIMIT), "an unwrap counts for more");
    }

    #[test]
    fn what_is_taken_up_after_a_question_is_not_as_young_as_the_question() {
        let (mut contacts, by) = (contacts(), [version("a", "1")]);
        contacts.note(&by[0], Standing::Silent, at(150));
        contacts.take_over(&Vouched { version: by[0].clone(), opened: at(100), until: None });
        assert_eq!(contacts.remaining(&by, at(150)), Some(at(10)));
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
