//! The KEK: wraps to the recipient of the configuration, and unwraps where private halves were given.

use std::sync::Arc;

use async_trait::async_trait;

use super::text::fingerprint;
use crate::crypto::recipient::{Identity, OVERHEAD, Recipient};
use crate::crypto::secret::{DEK_BYTES, Dek};
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek, unwrapped_dek};

/// A recipient, and perhaps its private half.
#[derive(Debug)]
pub(super) struct BreakGlassKek {
    pub(super) recipient: Recipient,
    /// Those of former recipients as well, where their file has them.
    pub(super) identities: Vec<Arc<Identity>>,
}

/// One for all: another recipient is another version of the same KEK.
pub(super) fn lineage() -> Lineage {
    Lineage::derive("break-glass", &[])
}

impl BreakGlassKek {
    fn version_of(recipient: &Recipient) -> KekVersion {
        KekVersion { lineage: lineage(), version: fingerprint(recipient) }
    }

    fn identity(&self, version: &str) -> Result<&Identity, KekError> {
        let known = self.identities.iter().find(|identity| fingerprint(&identity.recipient()) == version);
        known.map(|identity| &**identity).ok_or_else(|| {
            let problem =
                format!("the private half of the recipient with fingerprint {version:?} is not among those given");
            KekError::new(KekCause::UnknownVersion, problem)
        })
    }
}

#[async_trait]
impl Kek for BreakGlassKek {
    fn lineage(&self) -> Lineage {
        lineage()
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        Ok(Self::version_of(&self.recipient))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let sealed = self.recipient.seal(&context.to_bytes(), dek.expose());
        let blob = sealed.map_err(|error| KekError::misconfigured("nothing can be sealed to it").with_source(error))?;
        Ok(WrappedDek { version: Self::version_of(&self.recipient), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let identity = self.identity(&wrapped.version.version)?;
        let rejected = || KekError::new(KekCause::Rejected, "wrapped DEK does not open");
        if wrapped.blob.len() != DEK_BYTES + OVERHEAD {
            return Err(rejected());
        }
        let plain = identity.open(&context.to_bytes(), &wrapped.blob);
        let plain = plain.map_err(|error| rejected().with_source(error))?;
        Ok(Unwrapped { dek: unwrapped_dek(plain)?, version: Self::version_of(&identity.recipient()) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::{identity, recipient};
    use super::*;
    use crate::crypto::seal::dek_id;

    const SECRET_HALF: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    const PUBLIC_HALF: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    /// A DEK of 32 times 0x2a for cluster `vector`, sealed to that recipient by another implementation of RFC 9180: X25519 and
    /// the key schedule written out in Python, AES-256-GCM by OpenSSL (Node.js). What is stored in etcd must open for ever.
    const STORED: &str = "71481ce7abd6f55da9449344d837c6aed6a376fa939db4516060d59c79d2c632cc603862b161d7391194c7a92e97f7b6\
                          33538d1375b3c156e964898e176f57fe398703ed378b8a0c13c539a4848d4d37";

    fn context(cluster: &str, dek: &Dek) -> WrapContext {
        WrapContext { cluster: cluster.parse().unwrap(), dek_id: dek_id(dek) }
    }

    fn unlocked() -> BreakGlassKek {
        let identities = vec![Arc::new(identity(SECRET_HALF).unwrap())];
        BreakGlassKek { recipient: recipient(PUBLIC_HALF).unwrap(), identities }
    }

    #[tokio::test]
    async fn what_another_implementation_sealed_opens_and_in_no_other_cluster() {
        let dek = Dek::from_unwrapped([0x2a; 32]).unwrap();
        let version = KekVersion { lineage: lineage(), version: "ad7982e6d420cfad42e672700962284a".into() };
        let stored = WrappedDek { version, blob: hex::decode(STORED).unwrap() };
        let unwrapped = unlocked().unwrap(&stored, &context("vector", &dek)).await.unwrap();
        assert_eq!(unwrapped.dek.expose(), dek.expose());
        let error = unlocked().unwrap(&stored, &context("another", &dek)).await.unwrap_err();
        assert_eq!(error.cause(), KekCause::Rejected);
    }

    #[tokio::test]
    async fn the_public_half_alone_unwraps_nothing() {
        let dek = Dek::from_unwrapped([0x2a; 32]).unwrap();
        let locked = BreakGlassKek { identities: Vec::new(), ..unlocked() };
        let wrapped = locked.wrap(&dek, &context("it", &dek)).await.unwrap();
        assert_eq!(wrapped.blob.len(), 80);
        let error = locked.unwrap(&wrapped, &context("it", &dek)).await.unwrap_err();
        assert!(error.chain().contains("not among those given"), "{}", error.chain());
        unlocked().unwrap(&wrapped, &context("it", &dek)).await.unwrap();
    }
}
