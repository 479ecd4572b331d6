//! The KEK made of a Cloud KMS key: its primary version, and the wraps under it.

use std::time::Duration;

use async_trait::async_trait;

use super::client::{Client, CryptoKeyVersion};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};

/// How long `rotate` waits for the new version to be made, and to be seen as primary.
const ROTATE_TRIES: u32 = 60;
const ROTATE_PAUSE: Duration = Duration::from_millis(500);

/// The KEK made of a Cloud KMS key.
#[derive(Debug)]
pub(super) struct GcpKek {
    pub(super) lineage: Lineage,
    pub(super) client: Client,
}

impl GcpKek {
    /// The primary version, if it can wrap.
    async fn primary(&self) -> Result<CryptoKeyVersion, KekError> {
        let key = self.client.key().await?;
        if key.purpose != "ENCRYPT_DECRYPT" {
            return Err(KekError::misconfigured(format!(
                "the purpose of the key is {}, but a KEK needs ENCRYPT_DECRYPT; create a key with that purpose",
                key.purpose
            )));
        }
        let primary = key.primary.ok_or_else(|| {
            KekError::new(KekCause::Denied, "the key has no primary version; make one of its versions primary")
        })?;
        match primary.state.as_str() {
            "ENABLED" => Ok(primary),
            "PENDING_GENERATION" | "PENDING_IMPORT" => {
                Err(KekError::unavailable(format!("the primary version is {}", primary.state)))
            }
            state => Err(KekError::new(KekCause::Denied, format!("the primary version is {state}; enable it again"))),
        }
    }

    fn kek_version(&self, version: &CryptoKeyVersion) -> Result<KekVersion, KekError> {
        Ok(KekVersion { lineage: self.lineage, version: version.label(self.client.name())? })
    }
}

impl GcpKek {
    /// Decrypt rejects a label as it rejects data. If the key never had this version, that is what is wrong.
    async fn why_rejected(&self, label: &str, rejected: KekError) -> KekError {
        let number = label.split('@').next().unwrap_or_default();
        let there = match self.client.version(&self.client.version_name(number)).await {
            Ok(version) => version.label(self.client.name()).is_ok_and(|actual| actual == label),
            // Where it cannot be told, it counts as there: what was said of the data stands.
            Err(error) => error.cause() != KekCause::UnknownVersion,
        };
        if there {
            rejected
        } else {
            KekError::new(KekCause::UnknownVersion, format!("the key has no version {label}")).with_source(rejected)
        }
    }
}

/// What a wrap is bound to: the context, then the version's text; each length comes before its bytes.
fn associated_data(context: &WrapContext, label: &str) -> Vec<u8> {
    let mut bytes = context.to_bytes();
    bytes.extend((label.len() as u64).to_be_bytes());
    bytes.extend(label.as_bytes());
    bytes
}

/// Whether `label` is one that [`CryptoKeyVersion::label`] could have made.
fn is_label(label: &str) -> bool {
    label.split_once('@').is_some_and(|(number, created)| {
        number.parse::<u64>().is_ok_and(|n| n.to_string() == number)
            && created.parse::<jiff::Timestamp>().is_ok_and(|time| time.to_string() == created)
    })
}

#[async_trait]
impl Kek for GcpKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.client.credentials_expire()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        Some(self.client.clock())
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.kek_version(&self.primary().await?)
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let primary = self.primary().await?;
        let version = self.kek_version(&primary)?;
        let blob = self.client.encrypt(&primary.name, dek, &associated_data(context, &version.version)).await?;
        Ok(WrappedDek { version, blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let label = &wrapped.version.version;
        if wrapped.version.lineage != self.lineage || !is_label(label) {
            return Err(KekError::new(KekCause::UnknownVersion, format!("Cloud KMS has no version {label:?}")));
        }
        match self.client.decrypt(&wrapped.blob, &associated_data(context, label)).await {
            Err(error) if error.cause() == KekCause::Rejected => Err(self.why_rejected(label, error).await),
            result => {
                let dek = unwrapped_dek(result?.as_mut_slice())?;
                Ok(Unwrapped { dek, version: wrapped.version.clone() })
            }
        }
    }
}

#[async_trait]
impl RotateKek for GcpKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let mut made = self.client.create_version().await?;
        for _ in 0..ROTATE_TRIES {
            if made.state == "ENABLED" {
                break;
            }
            tokio::time::sleep(ROTATE_PAUSE).await;
            made = self.client.version(&made.name).await?;
        }
        if made.state != "ENABLED" {
            let (name, state) = (&made.name, &made.state);
            return Err(KekError::unavailable(format!("{name} is still {state}; make it primary once it is enabled")));
        }
        // Only once it is enabled: nothing could be wrapped in between.
        self.client.make_primary(&made).await?;
        for _ in 0..ROTATE_TRIES {
            if self.primary().await?.name == made.name {
                return self.kek_version(&made);
            }
            tokio::time::sleep(ROTATE_PAUSE).await;
        }
        Err(KekError::unavailable(format!("{} was made primary, but the key does not show it yet", made.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_that_this_kind_makes_is_a_version() {
        assert!(is_label("3@2026-01-02T03:04:05.678Z"));
        for other in
            ["", "3", "03@2026-01-02T03:04:05Z", "3@", "3@2026-01-02T03:04:05+00:00", "../3@2026-01-02T03:04:05Z"]
        {
            assert!(!is_label(other), "{other}");
        }
    }
}
