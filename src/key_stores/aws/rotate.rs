//! On-demand rotation: started, then waited for. Used by the `rotate-keys` command only.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::error::{Action, Call, aws_code};
use super::kek::AwsKek;
use crate::kek::{KekCause, KekError, KekVersion, RotateKek};

/// Longest wait for new material to be current: AWS gives no bound, only that it takes a moment.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[async_trait]
impl RotateKek for AwsKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let before = self.describe().await?;
        if !before.version.version.contains('/') {
            return Err(KekError::misconfigured(format!(
                "{} has no key material that AWS KMS rotates; make a new key and list it beside this one under keks",
                before.arn
            )));
        }
        let call = Call { action: Action::RotateKeyOnDemand, key: &before.arn, by_alias: false };
        let started = self.ask(call, || self.client.rotate_key_on_demand().key_id(&before.arn).send()).await;
        match started {
            // A rotation by schedule runs already, or is about to: what remains is to wait for it.
            Err(error) if aws_code(&error) != Some("ConflictException") => return Err(error),
            _ => {}
        }
        self.wait_for_another(&before.version).await
    }
}

impl AwsKek {
    async fn wait_for_another(&self, before: &KekVersion) -> Result<KekVersion, KekError> {
        let end = Instant::now() + LONGEST_WAIT;
        loop {
            match self.describe().await {
                Ok(now) if now.version != *before => return Ok(now.version),
                Err(error) if !error.cause().is_transient() => return Err(error),
                _ if Instant::now() + ASK_AGAIN > end => {
                    return Err(KekError::new(
                        KekCause::Unavailable,
                        format!(
                            "{} is being rotated, and its new material is not current yet; run again in 20 minutes",
                            self.key
                        ),
                    ));
                }
                _ => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }
}
