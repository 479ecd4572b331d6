//! What a check found, and what to do about it.

use std::time::Duration;

use serde::Serialize;

/// What one check found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was checked: `socket`, or a KEK and what it was asked.
    pub check: String,
    /// How it ended.
    pub result: Outcome,
    /// What is so, or what is wrong.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The control of the CIS Kubernetes Benchmark that asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cis: Option<&'static str>,
    /// How long the KEK took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<u64>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, and could be better.
    Advice,
    /// Cannot be said, because an earlier check failed, or because something may not be read.
    Skipped,
    /// Wrong: it does not work, or leaves Secrets exposed. Makes `doctor` end with 1.
    Failed,
}

impl Finding {
    /// As it should be.
    #[must_use]
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        let (check, detail) = (check.into(), detail.into());
        Self { check, result: Outcome::Ok, detail, fix: None, cis: None, milliseconds: None }
    }

    /// Works, and could be better.
    #[must_use]
    pub fn advice(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Outcome::Advice, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }

    /// Cannot be said.
    #[must_use]
    pub fn skipped(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { result: Outcome::Skipped, ..Self::ok(check, detail) }
    }

    /// A check that failed, with what to do about it.
    #[must_use]
    pub fn failed(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Outcome::Failed, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }

    /// The same, asked for by a control of the CIS benchmark.
    #[must_use]
    pub fn of_cis(self, control: &'static str) -> Self {
        Self { cis: Some(control), ..self }
    }

    /// The same, and how long it took.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self { milliseconds: u64::try_from(time.as_millis()).ok(), ..self }
    }
}
