//! How `rotate-keys`, `verify` and others reach the cluster and etcd, and how a conclusion ends them.

use std::path::Path;

use super::exit::Exit;
use crate::cli::etcd::EtcdArgs;
use crate::cli::rotation::ClusterArgs;
use crate::etcd::EtcdAccess;
use crate::rotation::cluster::Access;
use crate::rotation::error::RotationError;
use crate::rotation::journal::verdict::Conclusion;

/// Only a *Yes* is success: what follows `rotate-keys &&` may be the command that disables a key.
pub fn exit_of(conclusion: Conclusion) -> Exit {
    match conclusion {
        Conclusion::MayBeDisabled | Conclusion::NothingLeft => Exit::Done,
        Conclusion::NothingLeftWait => Exit::NotYet,
        Conclusion::Unproven => Exit::NotProven,
        Conclusion::Refused => Exit::Quarantined,
        Conclusion::Leftovers => Exit::Leftovers,
        Conclusion::NothingRotated => Exit::NothingRotated,
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
    Ok(Some(EtcdAccess { endpoints: endpoints.to_vec(), ca: path(ca), certificate: path(certificate), key: path(key) }))
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
        assert_eq!(codes.map(|conclusion| exit_of(conclusion) as u8), [0, 3, 6, 7, 8, 9]);
        assert_eq!(exit_of(NothingLeft), Exit::Done, "what `verify` says");
    }
}
