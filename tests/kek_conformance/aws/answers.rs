//! Each answer of AWS → its cause. The answers are canned: an error code, and the message AWS words it in.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::SignedDuration;
use kube_envelope::kek::{KekCause, KekError};
use kube_envelope::telemetry::{LogFormat, subscriber};
use tracing_subscriber::EnvFilter;

use super::fake::FakeBench;
use crate::bench::{Bench, Remote, dek};
use crate::support::fakes::faults::{Answer, Fault};

/// What Encrypt and Decrypt get for an answer, and what the KEK makes of it.
async fn answered(status: u16, code: &str, message: &str) -> KekError {
    answered_with(status, &serde_json::json!({ "__type": code, "message": message })).await
}

async fn answered_with(status: u16, body: &serde_json::Value) -> KekError {
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    let headers = vec![("content-type".into(), "application/x-amz-json-1.1".into())];
    bench.faults().set(Fault::Answer(Answer { status, headers, body: body.to_string() }));
    kek.unwrap(&wrapped, &context).await.expect_err("an error answer")
}

async fn assert_each(answers: &[(u16, &str, &str)], cause: KekCause) {
    for (status, code, message) in answers {
        let error = answered(*status, code, message).await;
        assert_eq!(error.cause(), cause, "{code} {message}: {}", error.chain());
        assert!(error.chain().contains(code), "AWS's own code is kept: {}", error.chain());
        assert!(!error.to_string().contains("unmapped"), "{error}");
    }
}

#[tokio::test]
async fn too_many_calls_are_throttled() {
    let rate = "You have exceeded the rate at which you may call KMS.";
    assert_each(&[(400, "ThrottlingException", rate), (400, "LimitExceededException", rate)], KekCause::Throttled)
        .await;
}

#[tokio::test]
async fn what_kms_cannot_do_just_now_is_unavailable() {
    let answers = [
        (500, "KMSInternalException", ""),
        (503, "DependencyTimeoutException", ""),
        (500, "KeyUnavailableException", ""),
        (503, "ServiceUnavailableException", ""),
        (400, "KMSInvalidStateException", "The CustomKeyStore is not connected."),
    ];
    assert_each(&answers, KekCause::Unavailable).await;
}

#[tokio::test]
async fn withdrawn_permission_and_final_key_states_are_denied() {
    let answers = [
        (400, "AccessDeniedException", "User: arn:aws:sts::111122223333:assumed-role/r/s is not authorized"),
        (400, "DisabledException", "arn:aws:kms:eu-central-1:111122223333:key/1 is disabled."),
        (400, "KMSInvalidStateException", "arn:aws:kms:eu-central-1:111122223333:key/1 is pending deletion."),
        (400, "KMSInvalidStateException", "arn:aws:kms:eu-central-1:111122223333:key/1 is pending import."),
    ];
    assert_each(&answers, KekCause::Denied).await;
}

#[tokio::test]
async fn the_words_of_a_denial_in_another_form_are_no_denial() {
    for (status, body) in [
        (403, serde_json::json!({ "code": "AccessDeniedException", "message": "Forbidden" })),
        (400, serde_json::json!({ "code": "NotFoundException" })),
        (404, serde_json::json!({ "__type": "NotFoundException", "message": "no such route" })),
        (502, serde_json::json!({ "__type": "DisabledException" })),
        (400, serde_json::json!({ "__type": "SomethingNew", "code": "DisabledException" })),
    ] {
        assert_eq!(answered_with(status, &body).await.cause(), KekCause::Unavailable, "{status} {body}");
    }
}

#[tokio::test]
async fn refused_credentials_are_unauthenticated() {
    let answers = [
        (400, "ExpiredTokenException", "The security token included in the request is expired"),
        (400, "UnrecognizedClientException", "The security token included in the request is invalid."),
        (403, "InvalidClientTokenId", "The security token included in the request is invalid."),
        (400, "InvalidSignatureException", "The request signature we calculated does not match"),
        (400, "MissingAuthenticationTokenException", "Missing Authentication Token"),
    ];
    assert_each(&answers, KekCause::Unauthenticated).await;
}

#[tokio::test]
async fn data_that_do_not_match_are_rejected() {
    assert_each(&[(400, "InvalidCiphertextException", ""), (400, "IncorrectKeyException", "")], KekCause::Rejected)
        .await;
}

#[tokio::test]
async fn a_wrong_setting_is_misconfigured() {
    let answers = [
        (400, "InvalidArnException", "Invalid arn"),
        (400, "NotFoundException", "Invalid arn us-east-1"),
        (400, "InvalidKeyUsageException", "key usage is SIGN_VERIFY"),
        (404, "UnknownOperationException", ""),
    ];
    assert_each(&answers, KekCause::Misconfigured).await;
}

#[tokio::test]
async fn an_unknown_answer_is_transient_and_says_that_it_is_unmapped() {
    let error = answered(400, "BrandNewException", "never seen").await;
    assert_eq!(error.cause(), KekCause::Unavailable);
    assert!(error.to_string().contains("unmapped"), "{error}");
    assert!(error.chain().contains("BrandNewException"), "{}", error.chain());
}

#[tokio::test]
async fn a_wrong_clock_is_named_with_its_error() {
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    bench.kms.state().clock_ahead = SignedDuration::from_hours(1);
    let error = kek.version().await.expect_err("the signature is too old");
    assert_eq!(error.cause(), KekCause::Unauthenticated, "{}", error.chain());
    assert!(error.to_string().contains("behind AWS's"), "{error}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The subscriber is that of the whole process: of a thread's own one, `tracing` does not tell call sites that
/// other threads have met before. Lines of other tests are among those looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_line_holds_a_dek_even_when_all_is_logged() {
    let lines = Lines::default();
    let writer = lines.clone();
    let all = subscriber(LogFormat::Text, EnvFilter::new("trace"), move || writer.clone());
    tracing::subscriber::set_global_default(all).expect("the only one of this process");
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    kek.unwrap(&wrapped, &context).await.expect("unwrap");
    let text = String::from_utf8_lossy(&lines.0.lock().expect("not poisoned")).into_owned();
    assert!(text.contains("beginning attempt"), "the SDK's own lines are there");
    assert!(!text.contains("TRACE"), "lines of the level at which requests are printed");
    assert!(!text.contains(&BASE64_STANDARD.encode(dek.expose())), "a DEK was logged");
}
