//! Whether somebody else could change the configuration, or a file that it names: whoever can, decides which keys wrap, and
//! with what.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::Config;
use crate::files::{Exposure, exposure};
use crate::posture::finding::Finding;

/// Checks the configuration file, the files that the KEKs' settings name, and the folders above all of them, for the user
/// that runs this command: it should be the plugin's.
pub(super) fn check(file: &Path, config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        exposed("configuration", file)
            .unwrap_or_else(|| Finding::ok("configuration", format!("{} is well-formed", file.display()))),
    ];
    let named: Vec<_> = config.files.iter().filter(|file| file.exists()).collect();
    let mut exposures: Vec<_> = named.iter().filter_map(|file| exposed("files", file)).collect();
    // One folder may be above all of them.
    let mut seen: BTreeSet<_> = findings.iter().map(|finding| finding.detail.clone()).collect();
    exposures.retain(|finding| seen.insert(finding.detail.clone()));
    if exposures.is_empty() && !named.is_empty() {
        findings.push(Finding::ok("files", "nobody else can change what the settings of the KEKs name"));
    }
    findings.extend(exposures);
    findings
}

fn exposed(check: &str, file: &Path) -> Option<Finding> {
    let Exposure { problem, fix, is_group_only } = exposure(file)?;
    // The members of a group may well be administrators; that is for an operator to know.
    Some(if is_group_only { Finding::advice(check, problem, fix) } else { Finding::failed(check, problem, fix) })
}
