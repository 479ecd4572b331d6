//! How `rotate-keys`, `verify` and others reach the cluster and etcd, and how a conclusion ends them.

use std::path::Path;

use super::exit::Exit;
use crate::cli::etcd::EtcdArgs;
use crate::cli::rotation::ClusterArgs;
use crate::etcd::EtcdAccess;
use crate::rotation::cluster::Access;
use crate::rotation::error::RotationError;
use crate::rotation::journal::verdict::{Conclusion, Verdict};

/// Only a *Yes* that names a key is success: what follows `rotate-keys &&` may be the command that disables the key that
/// somebody noted before.
pub fn exit_of(verdict: &Verdict) -> Exit {
    match verdict.conclusion {
        Conclusion::MayBeDisabled if verdict.may_be_disabled.is_empty() => Exit::NothingRotated,
        Conclusion::MayBeDisabled | Conclusion::NothingLeft => Exit::Done,
        Conclusion::NothingLeftWait => Exit::NotYet,
        Conclusion::Unproven => Exit::NotProven,
        Conclusion::Refused => Exit::Quarantined,
        Conclusion::Leftovers => Exit::Leftovers,
        Conclusion::NothingRotated => Exit::NothingRotated,
    }
}

/// How a verdict ends a command that only repeats it: what was shown once does not show that it holds now.
pub fn exit_of_past(verdict: &Verdict) -> Exit {
    match exit_of(verdict) {
        Exit::Done => Exit::NotProven,
        exit => exit,
    }
}

/// How the cluster is reached, from the arguments.
pub fn access(args: &ClusterArgs) -> Access {
    Access {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        servers: args.servers.clone(),
        server_count: args.server_count.map(usize::from),
        server_ca: args.server_ca.clone(),
    }
}

/// How etcd is reached, if it is.
///
/// # Errors
/// [`RotationError::Unusable`] when an endpoint over TLS could not be verified.
pub fn etcd_access(
    endpoints: &[String],
    ca: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<Option<EtcdAccess>, RotationError> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    if let Some(url) = endpoints.iter().find(|url| url.starts_with("https:") && ca.is_none()) {
        return Err(RotationError::Unusable(format!(
            "{url} cannot be verified; name the authority that signed etcd's certificate with --etcd-ca"
        )));
    }
    let path = |path: Option<&Path>| path.map(Path::to_owned);
    Ok(Some(EtcdAccess {
        endpoints: endpoints.to_vec(),
        ca: path(ca),
        certificate: path(certificate),
        key: path(key),
        timeout: None,
    }))
}

/// The same from the command line.
///
/// # Errors
/// As of [`etcd_access`].
pub fn etcd_of(args: &EtcdArgs) -> Result<Option<EtcdAccess>, RotationError> {
    etcd_access(&args.endpoints, args.ca.as_deref(), args.certificate.as_deref(), args.key.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_success_and_every_other_conclusion_has_a_code_of_its_own() {
        use Conclusion::{Leftovers, MayBeDisabled, NothingLeft, NothingLeftWait, NothingRotated, Refused, Unproven};
        let codes = [MayBeDisabled, Refused, Leftovers, NothingLeftWait, Unproven, NothingRotated];
        let named = codes.map(|conclusion| verdict(conclusion, &["KEK k version 1"]));
        assert_eq!(named.each_ref().map(|verdict| exit_of(verdict) as u8), [0, 3, 6, 7, 8, 9]);
        assert_eq!(named.each_ref().map(|verdict| exit_of_past(verdict) as u8), [8, 3, 6, 7, 8, 9]);
        assert_eq!(exit_of(&verdict(NothingLeft, &[])), Exit::Done, "what `verify` says");
    }

    #[test]
    fn a_yes_without_a_key_to_disable_is_no_success_for_whoever_noted_one() {
        assert_eq!(exit_of(&verdict(Conclusion::MayBeDisabled, &[])), Exit::NothingRotated);
    }

    fn verdict(conclusion: Conclusion, keys: &[&str]) -> Verdict {
        Verdict {
            conclusion,
            sentence: String::new(),
            may_be_disabled: keys.iter().map(ToString::to_string).collect(),
            may_be_destroyed: Vec::new(),
            commands: Vec::new(),
            must_stay: Vec::new(),
            holds: Vec::new(),
            evidence: Vec::new(),
            not_looked_at: Vec::new(),
            missing: Vec::new(),
        }
    }
}
