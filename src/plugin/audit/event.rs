//! What the audit log records.

use serde::Serialize;

/// What is recorded.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// The plugin starts.
    Start {
        /// The program's version.
        version: &'static str,
    },
    /// It was told to stop.
    Stop,
    /// A seed was encrypted.
    Encrypt(Use),
    /// A seed was decrypted, for which a KEK unwrapped the DEK.
    Decrypt(Use),
    /// A seed was decrypted that another plugin had encrypted: its own key was used.
    TakenOver {
        /// The API server's name for its request.
        uid: String,
        /// That plugin's name for its key.
        key_id: String,
        /// The entry under `takeover`.
        entry: String,
        /// Who asked, where the kernel told.
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<Peer>,
    },
    /// Another generation, or another DEK of it, is active.
    Adopted {
        /// The generation's `key_id`.
        key_id: String,
        /// This node's DEK of it.
        dek_id: String,
    },
    /// Nothing is encrypted or decrypted any more.
    Denied {
        /// The KEK, and what it said.
        reason: String,
    },
    /// Records could not be written.
    Lost {
        /// How many records, since the last one that was written.
        records: u64,
    },
    /// The file ends before what had been written to it.
    Truncated {
        /// The last record that had been written.
        expected: String,
    },
}

/// A use of a key for an API server.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// The API server's name for its request, as in its own audit log.
    pub uid: String,
    /// The generation's `key_id`.
    pub key_id: String,
    /// The DEK's id, in hex.
    pub dek_id: String,
    /// Who asked, where the kernel told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

/// The process at the other end of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The user that it runs as.
    pub uid: u32,
    /// Its process id, where the kernel knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}
