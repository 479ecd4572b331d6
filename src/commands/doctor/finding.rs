//! What a check found, and what to do about it.

use std::time::Duration;

use serde::Serialize;

/// What one check found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// What was checked: `socket`, or a KEK and what it was asked.
    pub(super) check: String,
    pub(super) result: Outcome,
    /// What is so, or what is wrong.
    pub(super) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
    /// How long the KEK took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) milliseconds: Option<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    Ok,
    /// Works, and could be better.
    Advice,
    /// Cannot be said, because an earlier check failed.
    Skipped,
    Failed,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), result: Outcome::Ok, detail: detail.into(), fix: None, milliseconds: None }
    }

    pub(super) fn advice(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Outcome::Advice, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }

    pub(super) fn skipped(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { result: Outcome::Skipped, ..Self::ok(check, detail) }
    }

    pub(super) fn failed(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Outcome::Failed, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }

    pub(super) fn after(self, time: Duration) -> Self {
        Self { milliseconds: Some(time.as_millis()), ..self }
    }
}
