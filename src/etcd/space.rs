//! How full the database of each etcd member is. At its quota etcd raises the alarm NOSPACE, and from then on nobody in
//! the cluster can write; a rewrite must stop well before that, since each object needs a second revision until etcd
//! is compacted.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::cluster::{EtcdCluster, MemberStatus};

/// What etcd uses unless `--quota-backend-bytes` says otherwise; members before 3.6 do not tell their quota.
const DEFAULT_QUOTA: u64 = 2 << 30;
/// Of the quota, in percent, that live data and old revisions may fill before a rewrite waits for a compaction.
const FILL_TO: u64 = 75;
/// Of the quota, in percent, that the database file may have grown to. Pages that a compaction freed are used again,
/// but etcd compares the size of the whole file with its quota.
const GROW_TO: u64 = 90;

/// How full one member's database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSpace {
    /// Where it was asked.
    pub endpoint: String,
    /// Bytes of the database file.
    pub size: u64,
    /// Bytes of it that are in use.
    pub in_use: u64,
    /// Bytes at which etcd stops all writing.
    pub quota: u64,
    /// Whether the quota is only etcd's default, since the member does not tell it.
    pub quota_is_assumed: bool,
    /// Alarms that are raised, in etcd's own words.
    pub alarms: Vec<String>,
}

/// How full all members of a cluster are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The members that answered.
    pub members: Vec<MemberSpace>,
    /// Members whose space is not known: where, and why.
    pub unknown: Vec<(String, String)>,
}

/// What may be done with this much space; the worst last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Rewriting may go on.
    Enough,
    /// A compaction must come first.
    AfterCompaction(String),
    /// The file itself is close to the quota: only `etcdctl defrag` or a greater quota helps.
    AfterDefragmentation(String),
    /// How full some member is, is not known; the reason.
    Unknown(String),
    /// An alarm is raised: nothing may be written at all.
    Alarm(String),
}

impl EtcdCluster {
    /// Asks every member how full its database is.
    pub async fn space(&self) -> Space {
        let mut space = Space::default();
        for MemberStatus { endpoint, answer } in self.statuses().await {
            match answer {
                Ok(status) => space.members.push(MemberSpace {
                    endpoint,
                    size: status.db_size.unsigned_abs(),
                    in_use: status.db_size_in_use.unsigned_abs(),
                    quota: match status.db_size_quota {
                        // An SQL database has none.
                        _ if self.is_kine => u64::MAX,
                        told if told > 0 => told.unsigned_abs(),
                        _ => DEFAULT_QUOTA,
                    },
                    quota_is_assumed: status.db_size_quota <= 0,
                    // Other complaints are among these words, too, such as that there is no leader.
                    alarms: status.errors.into_iter().filter(|error| error.contains("alarm")).collect(),
                }),
                Err(why) => space.unknown.push((endpoint, why)),
            }
        }
        space
    }
}

impl Space {
    /// What may be done now.
    pub fn room(&self) -> Room {
        // The fullest member decides: the alarm of one stops the writes of all.
        if let Some(member) = self.members.iter().find(|member| !member.alarms.is_empty()) {
            return Room::Alarm(format!("etcd member {} has raised {}", member.endpoint, member.alarms.join(", ")));
        }
        if let Some(member) = self.members.iter().find(|member| member.in_use > member.percent(FILL_TO)) {
            return Room::AfterCompaction(format!("{member}; above {FILL_TO} % nothing is rewritten"));
        }
        if let Some(member) = self.members.iter().find(|member| member.size > member.percent(GROW_TO)) {
            return Room::AfterDefragmentation(format!(
                "{member}, and the file has {} of {} MiB although only a part of it is in use",
                mebibytes(member.size),
                mebibytes(member.quota)
            ));
        }
        Room::Enough
    }

    /// How often etcd must be compacted while this many bytes are stored again; 0 if they fit as it is.
    pub fn compactions_for(&self, bytes: u64) -> u64 {
        let rounds = self.members.iter().map(|member| {
            let free = member.percent(FILL_TO).saturating_sub(member.in_use).max(1);
            bytes.checked_div(free).unwrap_or(u64::MAX)
        });
        rounds.max().unwrap_or(0)
    }
}

impl MemberSpace {
    fn percent(&self, percent: u64) -> u64 {
        // Divided first, so that no quota is too great to be multiplied.
        (self.quota / 100).saturating_mul(percent)
    }
}

impl std::fmt::Display for MemberSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let assumed = if self.quota_is_assumed { " (assumed: this etcd does not report its quota)" } else { "" };
        write!(
            f,
            "etcd member {} uses {} of the {} MiB of its quota{assumed}",
            self.endpoint,
            mebibytes(self.in_use),
            mebibytes(self.quota)
        )
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(size: u64, in_use: u64) -> Space {
        let member = MemberSpace {
            endpoint: "e".into(),
            size: size << 20,
            in_use: in_use << 20,
            quota: 100 << 20,
            quota_is_assumed: false,
            alarms: Vec::new(),
        };
        Space { members: vec![member], unknown: Vec::new() }
    }

    #[test]
    fn a_rewrite_stops_long_before_the_quota() {
        assert_eq!(space(40, 40).room(), Room::Enough);
        assert!(matches!(space(80, 76).room(), Room::AfterCompaction(why) if why.contains("76 of the 100 MiB")));
        assert!(matches!(space(95, 40).room(), Room::AfterDefragmentation(_)));
        let mut alarmed = space(10, 10);
        alarmed.members[0].alarms.push("memberID:1 alarm:NOSPACE".into());
        assert!(matches!(alarmed.room(), Room::Alarm(why) if why.contains("NOSPACE")));
    }

    #[test]
    fn what_does_not_fit_is_stored_in_rounds() {
        assert_eq!(space(40, 40).compactions_for(30 << 20), 0);
        assert_eq!(space(40, 40).compactions_for(80 << 20), 2);
    }
}
