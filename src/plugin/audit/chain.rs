//! One line of the audit log, and how it is tied to the one before.
//!
//! `{"seq":7,"time":…,"event":…,"prev":HASH,"hash":HASH}`: `prev` is the `hash` of record 6, and `hash` is SHA-256 over
//! the length (8 bytes, big endian) and the bytes of the line before `,"hash":`.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::event::Event;
use crate::crypto::seal::digest;

const HASH_FIELD: &str = ",\"hash\":\"";

/// The last record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first one.
    pub seq: u64,
    /// SHA-256 of the record, as 64 hex digits.
    pub hash: String,
}

impl Default for Head {
    /// Before the first record.
    fn default() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.trim().split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash)));
        match parsed {
            Some((seq, hash)) if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Self { seq, hash: hash.to_ascii_lowercase() })
            }
            _ => Err(format!("{text:?} is not NUMBER:HASH")),
        }
    }
}

#[derive(Serialize)]
struct Record<'a> {
    seq: u64,
    time: jiff::Timestamp,
    #[serde(flatten)]
    event: &'a Event,
    prev: &'a str,
}

/// What ties a line to the one before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written.
    pub time: jiff::Timestamp,
    /// The hash of the record before.
    pub prev: String,
    /// Its own hash, as written.
    pub hash: String,
    /// The kind of event, such as `decrypt`.
    pub event: String,
}

impl Link {
    /// This record, as the one that the next follows.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash.clone() }
    }
}

/// The line of the record that follows `head`, with its end, and the new head.
///
/// # Errors
/// When the event cannot be written as JSON, or the numbers are used up.
pub fn next_line(head: &Head, time: jiff::Timestamp, event: &Event) -> Result<(String, Head), serde_json::Error> {
    let seq = head.seq.checked_add(1).ok_or_else(|| serde::ser::Error::custom("no number is left"))?;
    let mut line = serde_json::to_string(&Record { seq, time, event, prev: &head.hash })?;
    // The brace that ends the object is written again after the hash.
    line.pop();
    let hash = hex::encode(digest(&[line.as_bytes()]));
    line.push_str(HASH_FIELD);
    line.push_str(&hash);
    line.push_str("\"}\n");
    Ok((line, Head { seq, hash }))
}

/// Reads a line, without its end.
///
/// # Errors
/// What is wrong with it: it is not a record, or its hash is not that of its bytes.
pub fn read_line(line: &str) -> Result<Link, &'static str> {
    let link: Link = serde_json::from_str(line).map_err(|_| "is not a record")?;
    let (body, rest) = line.rsplit_once(HASH_FIELD).ok_or("has no hash at its end")?;
    if rest.strip_suffix("\"}") != Some(&link.hash) {
        return Err("has no hash at its end");
    }
    if hex::encode(digest(&[body.as_bytes()])) != link.hash {
        return Err("was changed: its hash is not that of its bytes");
    }
    Ok(link)
}
