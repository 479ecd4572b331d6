//! `awsKms`: on `LocalStack` in all that it is faithful in, and on a fake of KMS's protocol for what it is not:
//! material ids in Decrypt's answers, credentials, permissions, and rotations at awkward moments.

mod answers;
mod doctor;
mod fake;
mod localstack;
mod process;
mod replicas;

use std::path::Path;

use crate::support::fakes::faults::Faults;

/// Writes a file of AWS credentials in one step, as a rotation does.
fn write_credentials(file: &Path, access_key: &str, secret: &str) {
    let text = format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret}\n");
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(&beside, file).expect("renamed");
}

/// An item of `keks:` as an operator writes it.
fn item(key: &str, faults: &Faults, more: &str) -> String {
    let (endpoint, ca_file) = (faults.url(), faults.ca_file().display());
    format!("{{ name: it, awsKms: {{ key: \"{key}\", endpoint: \"{endpoint}\", caFile: {ca_file}{more} }} }}")
}

/// The setting that takes credentials from a file.
fn from_file(file: &Path) -> String {
    format!(", credentialsFile: {}", file.display())
}
