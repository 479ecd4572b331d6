//! The settings of an `awsKms` KEK.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::client::{self, KmsKey};
use super::credentials::{self, AssumeRole, Aws};
use super::kek::AwsKek;
use super::key::{KeyName, key_id_of};
use super::process::Program;
use super::{http, policy, profile};
use crate::kek::clock::ServerClock;
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Advice, Disabling, KeyStore, Mistake, Parsed, Policy, Profile};
use crate::key_stores::shared::renewing::Renewing;
use crate::key_stores::shared::{address, path};
use crate::shell::quoted;

/// Settings as they are written. Credentials come from the SDK's usual places unless `profile` or `credentialsFile`
/// names one.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The key: best its ARN, which says account and Region; else a key id, an alias or an alias ARN.
    key: String,
    /// The Region, where `key` names none.
    region: Option<String>,
    /// Another address than the Region's own: a VPC endpoint.
    endpoint: Option<String>,
    /// Allows `http` to other machines in `endpoint`.
    #[serde(default)]
    insecure_http: bool,
    /// Certificates (PEM) that the endpoint's own must come from, in place of the system's.
    ca_file: Option<PathBuf>,
    /// An HTTP proxy to KMS and STS, `http://HOST:PORT`; none by default.
    proxy: Option<String>,
    /// The profile to take credentials from.
    profile: Option<String>,
    /// A file in the format of `~/.aws/credentials` to take credentials from; read again when it changes.
    credentials_file: Option<PathBuf>,
    /// A program that prints credentials as a profile's `credential_process` does: its absolute path and its arguments.
    credential_process: Option<Vec<String>>,
    /// A role to assume with those credentials.
    assume_role: Option<AssumeRole>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        self.parse_key().map(|key| Arc::new(key) as _)
    }

    /// The setting `key`, as written.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn parse_key(self) -> Result<KmsKey, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let key = KeyName::parse(&self.key).map_err(|problem| mistakes.push(Mistake::new("key", problem)));
        if let (Ok(Some(of_key)), Some(region)) = (key.as_ref().map(KeyName::region), &self.region)
            && of_key != region
        {
            let problem = format!("is {region}, and the key's ARN says {of_key}; leave region out");
            mistakes.push(Mistake::new("region", problem));
        }
        let endpoint = self
            .endpoint
            .as_deref()
            .map(|text| address::parse(text, self.insecure_http.into(), "https://kms.example.internal"))
            .transpose()
            .map_err(|problem| mistakes.push(Mistake::new("endpoint", problem)));
        path::check_optional(&mut mistakes, "caFile", self.ca_file.as_deref());
        path::check_optional(&mut mistakes, "credentialsFile", self.credentials_file.as_deref());
        let proxy = address::proxy(&mut mistakes, self.proxy.as_deref());
        let program = self.credential_process.map(Program::parse).transpose();
        let program = program.map_err(|problem| mistakes.push(Mistake::new("credentialProcess", problem)));
        if matches!(program, Ok(Some(_))) && (self.profile.is_some() || self.credentials_file.is_some()) {
            let problem = "is one of several origins of credentials; keep it, profile or credentialsFile";
            mistakes.push(Mistake::new("credentialProcess", problem));
        }
        if let Some(role) = self.assume_role.as_ref().filter(|role| !is_role_arn(&role.role_arn)) {
            let problem = format!("{:?} is not the ARN of a role (arn:aws:iam::111122223333:role/NAME)", role.role_arn);
            mistakes.push(Mistake::new("assumeRole.roleArn", problem));
        }
        match (key, endpoint, program) {
            (Ok(key), Ok(endpoint), Ok(program)) if mistakes.is_empty() => Ok(KmsKey {
                key,
                region: self.region,
                endpoint,
                ca_file: self.ca_file,
                proxy,
                credentials: credentials::Origin {
                    profile: self.profile,
                    file: self.credentials_file,
                    program,
                    role: self.assume_role,
                },
            }),
            _ => Err(mistakes),
        }
    }
}

fn is_role_arn(text: &str) -> bool {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    matches!(parts[..], ["arn", _, "iam", "", _, role] if role.starts_with("role/"))
}

impl KmsKey {
    pub(super) async fn kek(&self) -> Result<AwsKek, KekError> {
        let region = client::region(self).await?;
        let clock = Arc::<ServerClock>::default();
        // The authorities of `caFile` are those of the endpoint, and not of STS.
        let to_sts = http::client(None, self.proxy.as_ref())?;
        let aws = Aws { origin: self.credentials.clone(), region: region.clone(), http: to_sts };
        let credentials = Renewing::new(aws);
        let client = client::kms(self, region, &credentials, clock.clone()).await?;
        Ok(AwsKek { lineage: self.lineage(), key: self.key.clone(), client, credentials, clock })
    }
}

#[async_trait]
impl KeyStore for KmsKey {
    fn lineage(&self) -> Lineage {
        self.key.lineage(self.region.as_deref())
    }

    fn disabling(&self, version: &str, active: &str) -> Disabling {
        let (Ok(key_id), Ok(active)) = (key_id_of(version), key_id_of(active)) else {
            return Disabling::ByHand("in the console of AWS KMS".into());
        };
        if key_id == active {
            return Disabling::ByHand(
                "AWS KMS keeps every material of one key and disables none alone: there is nothing to do".into(),
            );
        }
        let region = self.key.region().or(self.region.as_deref());
        let region = region.map(|region| format!(" --region {}", quoted(region))).unwrap_or_default();
        // By the key's own id: an alias leads to the active key by now.
        Disabling::Command(format!("aws kms disable-key --key-id {}{region}", quoted(key_id)))
    }

    fn program(&self) -> Option<&Path> {
        Some(self.credentials.program.as_ref()?.file())
    }

    fn advice(&self) -> Vec<Advice> {
        let mut advice = Vec::new();
        if self.key.region().is_none() {
            let finding = format!("{} tells no account: credentials and Region decide which key it is", self.key);
            advice.push(Advice::new(finding, "write the key's ARN, before anything is stored under this name"));
        }
        if self.credentials.is_an_api_server() {
            let finding = "the credentials come from a token of an API server: if it is the one that waits for this \
                           plugin, they can be had only once it is up";
            advice.push(Advice::new(finding, "use the instance's role on the control plane's machines"));
        }
        advice
    }

    /// `kms:GetKeyRotationStatus` is asked as well; the plugin itself needs no such right, so a denial tells nothing.
    async fn profile(&self) -> Result<Profile, KekError> {
        let kek = self.kek().await?;
        let key = kek.metadata().await?;
        Ok(profile::of(&key, kek.rotates_yearly(&key).await))
    }

    /// `DescribeKey` tells when the key was made, not its material, and nothing says whether that is the first one.
    async fn made(&self) -> Result<Option<jiff::Timestamp>, KekError> {
        Ok(None)
    }

    fn policy(&self, cluster: &ClusterName) -> Policy {
        policy::least(&self.key, cluster)
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.kek().await?))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.kek().await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn mistakes(settings: &str) -> Vec<(String, String)> {
        let settings: Settings = serde_saphyr::from_str(settings).expect("settings");
        let mistakes = settings.parse().err().unwrap_or_default();
        mistakes.into_iter().map(|mistake| (mistake.field, mistake.problem)).collect()
    }

    #[test]
    fn settings_that_can_work_have_no_mistakes() {
        for more in [
            "",
            ", region: eu-central-1",
            ", endpoint: 'https://vpce-1.kms.eu-central-1.vpce.amazonaws.com'",
            ", endpoint: 'http://127.0.0.1:4566'",
            ", endpoint: 'http://[::1]:4566/'",
            ", endpoint: 'http://kms.example', insecureHttp: true",
            ", credentialsFile: /no/such/file, caFile: /no/such/file",
            ", assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/path/name', externalId: x}",
        ] {
            assert_eq!(mistakes(&format!("{{key: '{KEY}'{more}}}")), [], "{more}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named_with_the_fix() {
        for (more, field, fix) in [
            (", region: eu-west-1", "region", "leave region out"),
            (", endpoint: 'http://kms.example'", "endpoint", "write https"),
            (", endpoint: 'http://127.0.0.1.example:80'", "endpoint", "write https"),
            (", endpoint: 'http://localhost:80@evil.example'", "endpoint", "write for example"),
            (", endpoint: kms.example", "endpoint", "lacks its scheme"),
            (", proxy: 'proxy.example:3128'", "proxy", "lacks its scheme"),
            (", proxy: 'http://me:secret@proxy.example:3128'", "proxy", "more than scheme, host and port"),
            (", caFile: '~/ca.pem'", "caFile", "is not expanded"),
            (", assumeRole: {roleArn: name}", "assumeRole.roleArn", "not the ARN of a role"),
            (", credentialProcess: [helper]", "credentialProcess", "not an absolute path"),
            (", credentialProcess: [/h], profile: p", "credentialProcess", "keep it, profile or credentialsFile"),
        ] {
            let found = mistakes(&format!("{{key: '{KEY}'{more}}}"));
            assert!(matches!(&found[..], [(name, text)] if name == field && text.contains(fix)), "{more}: {found:?}");
        }
        assert_eq!(mistakes("{key: 'no key'}")[0].0, "key");
        assert!(serde_saphyr::from_str::<Settings>(&format!("{{key: '{KEY}', accessKey: x}}")).is_err());
    }
}
