//! How a KMS key is named: the setting `key`, the lineage made of it, and the version text.

use std::fmt;

use crate::kek::{KekCause, KekError, Lineage};

/// The setting `key`, taken apart: a key or an alias, as an ARN or bare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyName {
    home: Option<Home>,
    resource: Resource,
}

/// Where an ARN says that the key is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    partition: String,
    region: String,
    account: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Resource {
    Key(String),
    Alias(String),
}

/// Multi-Region keys have the same id in every Region, and only they begin so.
const MULTI_REGION: &str = "mrk-";
const LONGEST_KEY_ID: usize = 64;
const ACCOUNT_DIGITS: usize = 12;

impl KeyName {
    /// Takes the setting apart, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (home, resource) = match text.strip_prefix("arn:") {
            Some(rest) => {
                let (home, resource) = parse_arn(rest).ok_or_else(|| bad_name(text))?;
                (Some(home), resource)
            }
            None => (None, text),
        };
        let resource = match (resource.strip_prefix("alias/"), home.is_some(), resource.strip_prefix("key/")) {
            (Some(alias), ..) if alias.starts_with("aws/") => {
                return Err(format!(
                    "{text:?} is an alias of a key that AWS manages for its own services; make a customer managed key"
                ));
            }
            (Some(alias), ..) if is_alias(alias) => Resource::Alias(alias.into()),
            (None, true, Some(id)) if is_whole_key_id(id) => Resource::Key(id.into()),
            (None, false, None) if is_whole_key_id(resource) => Resource::Key(resource.into()),
            _ => return Err(bad_name(text)),
        };
        Ok(Self { home, resource })
    }

    /// The Region that an ARN names.
    pub(super) fn region(&self) -> Option<&str> {
        self.home.as_ref().map(|home| home.region.as_str())
    }

    /// Whether the name may come to mean another key, as an alias can.
    pub(super) fn is_alias(&self) -> bool {
        matches!(self.resource, Resource::Alias(_))
    }

    /// The fingerprint. A multi-Region key has one for all its replicas. A bare name tells no account: it is
    /// taken as written, with the Region that the configuration names.
    pub(super) fn lineage(&self, configured_region: Option<&str>) -> Lineage {
        let resource = self.resource.to_string();
        let region = match &self.resource {
            // One key in every Region: a node that asks a replica makes the same `key_id`.
            Resource::Key(id) if id.starts_with(MULTI_REGION) => "",
            _ => self.region().or(configured_region).unwrap_or_default(),
        };
        let (partition, account) =
            self.home.as_ref().map_or(("", ""), |home| (home.partition.as_str(), home.account.as_str()));
        Lineage::derive("awsKms", &[partition, account, region, &resource])
    }

    /// The key `id` in the account and Region that this name names.
    pub(super) fn sibling(&self, id: &str) -> String {
        match &self.home {
            Some(Home { partition, region, account }) => format!("arn:{partition}:kms:{region}:{account}:key/{id}"),
            None => id.into(),
        }
    }

    /// Whether a version of the key `id` can be one of ours: an alias may have pointed to any key.
    pub(super) fn may_be(&self, id: &str) -> bool {
        match &self.resource {
            Resource::Key(own) => own == id,
            // It may have led to any key when this was wrapped.
            Resource::Alias(_) => true,
        }
    }
}

/// As KMS takes it.
impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.home, &self.resource) {
            (Some(Home { partition, region, account }), resource) => {
                write!(f, "arn:{partition}:kms:{region}:{account}:{resource}")
            }
            (None, Resource::Key(id)) => f.write_str(id),
            (None, alias) => write!(f, "{alias}"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key/{id}"),
            Self::Alias(name) => write!(f, "alias/{name}"),
        }
    }
}

fn parse_arn(rest: &str) -> Option<(Home, &str)> {
    let mut parts = rest.splitn(5, ':');
    let (partition, service, region, account, resource) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let is_account = account.len() == ACCOUNT_DIGITS && account.chars().all(|c| c.is_ascii_digit());
    (service == "kms" && word(partition) && word(region) && is_account)
        .then(|| (Home { partition: partition.into(), region: region.into(), account: account.into() }, resource))
}

/// A UUID, or the id of a multi-Region key: nothing cut off.
fn is_whole_key_id(text: &str) -> bool {
    let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    if let Some(id) = text.strip_prefix(MULTI_REGION) {
        return id.len() == 32 && is_hex(id);
    }
    let groups: Vec<_> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|group| is_hex(group))
}

fn is_key_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_KEY_ID && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn is_alias(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 250
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/'))
}

fn bad_name(text: &str) -> String {
    format!(
        "{text:?} does not name a KMS key; write its ARN, for example \
         arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    )
}

/// The version text: the key's id, and after `/` its material's id; where the key has none, after `@` the time
/// of its creation (Unix milliseconds). A multi-Region key without material ids is its id alone, since each
/// replica has a creation time of its own and no key id is ever given out again.
pub(super) fn version_text(key_id: &str, material: Option<&str>, created_millis: Option<i64>) -> String {
    match (material, created_millis) {
        (Some(material), _) => format!("{key_id}/{material}"),
        (None, Some(created)) if !key_id.starts_with(MULTI_REGION) => format!("{key_id}@{created}"),
        _ => key_id.into(),
    }
}

/// The key id of a version text.
///
/// # Errors
/// [`KekCause::UnknownVersion`] for a text that this kind cannot have made.
pub(super) fn key_id_of(version: &str) -> Result<&str, KekError> {
    let id = version.split(['/', '@']).next().unwrap_or_default();
    let rest = &version[id.len()..];
    let rest_fits = rest.is_empty() || (rest.len() > 1 && rest[1..].chars().all(|c| c.is_ascii_alphanumeric()));
    if is_key_id(id) && rest_fits {
        Ok(id)
    } else {
        Err(KekError::new(KekCause::UnknownVersion, format!("{version:?} is not a version of an AWS KMS key")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn name(text: &str) -> KeyName {
        KeyName::parse(text).expect("a name")
    }

    #[test]
    fn every_form_of_a_key_name_is_understood_and_sent_as_written() {
        for text in [
            KEY,
            "arn:aws-cn:kms:cn-north-1:111122223333:alias/kube/etcd",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "mrk-1234abcd12ab34cd56ef1234567890ab",
            "alias/kube-envelope",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn what_names_no_key_is_refused_with_an_example() {
        let cut = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890a";
        let short_account = KEY.replace("111122223333", "11112222333");
        for text in
            ["", "alias/", "arn:aws:s3:::bucket", "arn:aws:kms:eu-west-1::key/1", "a b", "key/1234abcd", "mrk-1", cut]
        {
            assert!(KeyName::parse(text).expect_err(text).contains("for example"), "{text}");
        }
        assert!(KeyName::parse(&short_account).is_err());
        assert!(KeyName::parse("alias/aws/ebs").expect_err("AWS managed").contains("customer managed"));
    }

    #[test]
    fn replicas_of_a_multi_region_key_have_one_lineage_and_all_other_keys_their_own() {
        let at =
            |region: &str, account: &str, id: &str| name(&format!("arn:aws:kms:{region}:{account}:{id}")).lineage(None);
        let multi = "key/mrk-1234abcd12ab34cd56ef1234567890ab";
        let single = "key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(at("eu-west-1", "111122223333", multi), at("us-east-1", "111122223333", multi));
        let different = [
            at("eu-west-1", "111122223333", multi),
            at("eu-west-1", "444455556666", multi),
            at("eu-west-1", "111122223333", single),
            at("us-east-1", "111122223333", single),
            at("us-east-1", "111122223333", "alias/1"),
            name("alias/1").lineage(Some("us-east-1")),
            name("alias/1").lineage(Some("eu-west-1")),
            name("alias/1").lineage(None),
        ];
        let distinct: std::collections::HashSet<_> = different.iter().collect();
        assert_eq!(distinct.len(), different.len());
    }

    #[test]
    fn a_version_names_its_key_and_a_foreign_text_is_refused() {
        assert_eq!(version_text("1-2", Some("ab12"), Some(5)), "1-2/ab12");
        assert_eq!(version_text("1-2", None, Some(5)), "1-2@5");
        assert_eq!(version_text("mrk-1", None, Some(5)), "mrk-1");
        for version in ["1-2/ab12", "1-2@5", "1-2"] {
            assert_eq!(key_id_of(version).expect("ours"), "1-2");
        }
        for version in ["", "/ab", "1-2/", "1-2/a b", "projects/p/keys/k", "1-2/ab/../../x", "vault:v1"] {
            assert_eq!(key_id_of(version).expect_err(version).cause(), KekCause::UnknownVersion);
        }
    }

    #[test]
    fn an_old_version_is_looked_for_in_the_account_and_region_of_the_configuration() {
        assert!(name(KEY).may_be("1234abcd-12ab-34cd-56ef-1234567890ab"));
        assert!(!name(KEY).may_be("other"));
        assert!(name("alias/k").may_be("other"));
        assert_eq!(name(KEY).sibling("other"), "arn:aws:kms:eu-central-1:111122223333:key/other");
        assert_eq!(name("alias/k").sibling("other"), "other");
    }
}
