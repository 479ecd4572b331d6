//! The in-toto Statement about a rotation (in-toto/attestation, spec/v1/statement.md): its subject is what the values of
//! one cluster were stored under at one revision of etcd, its predicate how that came about and what it shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::etcd::ClusterId;
use crate::rotation::adoption::ServerAdoption;
use crate::rotation::claim::{Claim, Subject as ClaimSubject};
use crate::rotation::journal::Journal;
use crate::rotation::journal::intent::Intent;
use crate::rotation::journal::verdict::Verdict;
use crate::rotation::keys::name::KeyName;

/// The type of a payload that is a Statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://github.com/kube-envelope/kube-envelope/key-rotation/v1";

/// A Statement about one rotation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<StatementSubject>,
    predicate_type: String,
    /// What is stated.
    pub predicate: Predicate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StatementSubject {
    name: String,
    digest: BTreeMap<String, String>,
}

/// A key under the name that people use, and under those of machines.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatedKey {
    /// As a verdict names it, for people.
    pub name: String,
    /// The KEK's lineage and the vendor's own text for the version, or the `key_id`.
    pub key: KeyName,
}

/// What was done to one resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatedResource {
    /// Plural and group, such as `deployments.apps`.
    pub resource: String,
    /// How many objects there were at first.
    pub objects: u64,
    /// How many were stored again.
    pub rewritten: u64,
}

/// A snapshot or backup that was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatedBackup {
    /// Its path, as it was named.
    pub file: String,
    /// The newest revision in it.
    pub revision: i64,
    /// SHA-256 at its end.
    pub sha256: Option<String>,
}

/// How a rotation came about, and what it shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// Program and version.
    pub tool: String,
    /// Uid of the namespace `kube-system`.
    pub cluster: Option<String>,
    /// etcd cluster → revision up to which it was looked at.
    pub etcd: BTreeMap<ClusterId, i64>,
    /// When the rotation began.
    pub started: jiff::Timestamp,
    /// When the last search ended.
    pub verified_at: Option<jiff::Timestamp>,
    /// When old revisions were gone.
    pub settled: Option<jiff::Timestamp>,
    /// When the newest snapshot was taken.
    pub snapshot: Option<jiff::Timestamp>,
    /// Keys that went out of use.
    pub former_keys: Vec<StatedKey>,
    /// Keys that everything is stored under.
    pub target_keys: Vec<StatedKey>,
    /// Resource → provider and `key_id` → how many values: the table whose digest the subject has. Where etcd was not
    /// looked at, it says how they are stored instead.
    pub stored: BTreeMap<String, BTreeMap<String, u64>>,
    /// What each API server stored a write under.
    pub servers: Vec<ServerAdoption>,
    /// What was done.
    pub resources: Vec<StatedResource>,
    /// Objects that were refused, by path.
    pub refused: Vec<String>,
    /// Snapshots and backups that were read.
    pub backups: Vec<StatedBackup>,
    /// Each claim with who looked, at what, and when.
    pub claims: BTreeMap<ClaimSubject, Claim>,
    /// What is concluded, and what was not looked at.
    pub verdict: Verdict,
    /// What the rotation was run with.
    pub arguments: Intent,
    /// SHA-256 of the evidence file, in hex.
    pub evidence_sha256: String,
}

/// Why a payload is not taken for a Statement about a rotation.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// There is none yet.
    #[error("the rotation has no verdict and no search yet")]
    Unfinished,
    /// It is something else.
    #[error("it is not a Statement about a rotation: {0}")]
    Other(String),
    /// Subject and predicate do not fit.
    #[error("its subject does not match its predicate")]
    OtherSubject,
}

impl Statement {
    /// The Statement about a rotation that was concluded, from its journal and the digest of its evidence file.
    ///
    /// # Errors
    /// [`StatementError::Unfinished`].
    pub fn of(journal: &Journal, evidence_sha256: String) -> Result<Self, StatementError> {
        let (Some(verdict), Some(scan)) = (journal.verdict.clone(), &journal.verified) else {
            return Err(StatementError::Unfinished);
        };
        let key = |key: KeyName| StatedKey { name: journal.names.show(&key), key };
        let resources = journal.resources.iter().map(|progress| StatedResource {
            resource: progress.resource.to_string(),
            objects: progress.objects,
            rewritten: progress.tally.rewritten,
        });
        let backups = journal.backups.iter().map(|backup| StatedBackup {
            file: backup.file.display().to_string(),
            revision: backup.revision,
            sha256: backup.sha256.clone(),
        });
        let predicate = Predicate {
            tool: journal.tool.clone(),
            cluster: journal.cluster.clone(),
            etcd: scan.revisions().collect(),
            started: journal.started,
            verified_at: journal.verified_at,
            settled: journal.settled,
            snapshot: journal.snapshot,
            former_keys: journal.former_keys().into_iter().map(key).collect(),
            target_keys: journal.target_keys.iter().cloned().map(key).collect(),
            stored: if scan.under.is_empty() { scan.stored.clone() } else { scan.under.clone() },
            servers: journal.adoption.iter().flat_map(|adoption| adoption.servers.clone()).collect(),
            resources: resources.collect(),
            refused: journal.refused().into_iter().collect(),
            backups: backups.collect(),
            claims: journal.claims.clone(),
            verdict,
            arguments: journal.intent.clone(),
            evidence_sha256,
        };
        let subject = vec![StatementSubject::of(&predicate)];
        Ok(Self { kind: STATEMENT_TYPE.into(), subject, predicate_type: PREDICATE_TYPE.into(), predicate })
    }

    /// Reads a payload, and checks that its subject is what its predicate speaks of.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn read(payload: &[u8]) -> Result<Self, StatementError> {
        let statement: Self =
            serde_json::from_slice(payload).map_err(|error| StatementError::Other(error.to_string()))?;
        if statement.kind != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
            return Err(StatementError::Other(format!("{} with {}", statement.kind, statement.predicate_type)));
        }
        // Policies in pipelines match the subject alone. One that does not follow from the predicate would let a Statement
        // about one cluster pass for another.
        if statement.subject != [StatementSubject::of(&statement.predicate)] {
            return Err(StatementError::OtherSubject);
        }
        Ok(statement)
    }

    /// What it is about: cluster, etcd clusters, revisions.
    pub fn about(&self) -> &str {
        self.subject.first().map_or("", |subject| &subject.name)
    }
}

impl Predicate {
    /// Whether the verdict allows to disable the key of this name: `KEK:VERSION`, a `key_id`, or the verdict's own words.
    pub fn may_be_disabled(&self, named: &str) -> bool {
        let allowed = |name: &str| self.verdict.may_be_disabled.iter().any(|allowed| allowed == name);
        let of_kek = |(kek, version): (&str, &str)| allowed(&format!("KEK {kek} version {version}"));
        let of_plugin = |stated: &StatedKey| {
            matches!(&stated.key, KeyName::KeyId { key_id, .. } if key_id == named) && allowed(&stated.name)
        };
        allowed(named) || named.split_once(':').is_some_and(of_kek) || self.former_keys.iter().any(of_plugin)
    }
}

impl StatementSubject {
    /// Bound to the cluster, its etcd and the revision by its name, to what was stored there by its digest.
    fn of(predicate: &Predicate) -> Self {
        let etcd: Vec<String> = predicate.etcd.iter().map(|(id, revision)| format!("{id}@{revision}")).collect();
        let cluster = predicate.cluster.as_deref().unwrap_or("unknown");
        // Maps in order, so that the same content has the same digest wherever it is computed.
        let lines = predicate.stored.iter().flat_map(|(resource, stored)| {
            stored.iter().map(move |(how, count)| format!("{resource}\t{how}\t{count}\n"))
        });
        Self {
            name: format!("kubernetes:{cluster}/etcd:{}", etcd.join(",")),
            digest: [("sha256".to_owned(), hex::encode(Sha256::digest(lines.collect::<String>())))].into(),
        }
    }
}
