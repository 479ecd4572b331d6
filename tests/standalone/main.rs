//! The real binary with nothing around it but keyring files: what its commands print and how they end, the KMS v2
//! contract, hostile input, the stored format. Needs no server.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "for tests only")]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod break_glass;
mod configuration;
mod doctor;
#[cfg(feature = "rotate")]
mod documents;
mod envelope_vectors;
#[cfg(feature = "rotate")]
mod evidence;
#[cfg(feature = "rotate")]
mod fuzz_corpus;
mod habits;
mod health_listener;
mod hostile_input;
mod init;
mod kept_deks;
mod keyring;
mod kms_v2_contract;
mod monitoring;
mod outages;
#[cfg(feature = "rotate")]
mod rotation;
mod running;
mod sandbox;
mod sealed_state;
mod seam;
mod secrets_stay_inside;
mod simulation;
mod state_folder;
#[cfg(feature = "rotate")]
mod tls;

use std::path::Path;
use std::process::Command;

/// What a run of the binary gave.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

pub fn run(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-envelope")).args(arguments).output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_command_that_does_not_exist_is_a_usage_error() {
    let ran = run(&["server"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error.contains("'serve'"), "a similar one is proposed: {}", ran.error);
}

#[test]
fn dev_and_config_exclude_each_other() {
    let ran = run(&["serve", "--dev", "/d", "--config", "/c"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error.contains("'--dev <DIR>' cannot be used with '--config <CONFIG>'"), "{}", ran.error);
}
