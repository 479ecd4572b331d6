//! Every answer and failure of AWS → [`KekError`]; the only place that knows AWS's error codes.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ConnectorError, SdkError};
use jiff::SignedDuration;
use serde::Deserialize;

use crate::kek::clock::ahead_of;
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::retry_after;
use crate::key_stores::shared::vendor_text::shortened;

/// What KMS was asked, by the name that IAM policies know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    DescribeKey,
    Encrypt,
    Decrypt,
    RotateKeyOnDemand,
    GetKeyRotationStatus,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kms:{self:?}")
    }
}

/// A call: what was asked, of which key, and whether the key is looked for by an alias.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) action: Action,
    pub(super) key: &'a str,
    pub(super) by_alias: bool,
}

/// What a server that is not content answers: the parts that are fit to be kept. The raw answer is dropped,
/// since one that cannot be read may hold a DEK.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    code: String,
    message: String,
    request_id: Option<String>,
    retry_after: Option<Duration>,
    /// How far this machine's clock is ahead of the server's.
    skew: Option<SignedDuration>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.code.is_empty() { "no error code" } else { &self.code })?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        match &self.request_id {
            Some(id) => write!(f, " (HTTP {}, request {id})", self.status),
            None => write!(f, " (HTTP {})", self.status),
        }
    }
}

impl Error for Answer {}

/// AWS's own limit is 5 minutes; from here on the clock is named as the likely reason.
const SKEW_WORTH_NAMING: SignedDuration = SignedDuration::from_mins(4);

/// Maps a failed call.
pub(super) fn kek_error<E>(call: Call<'_>, error: SdkError<E, HttpResponse>) -> KekError
where
    E: Error + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(context) => answered(call, Answer::of(context.raw())),
        SdkError::ResponseError(context) => answered_unreadably(call, context.raw()),
        SdkError::TimeoutError(_) => KekError::unavailable(format!("{} was not answered in time", call.action)),
        SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
            Some(connector) => not_reached(call, connector),
            None => KekError::unavailable(format!("{} could not be sent", call.action)),
        },
        SdkError::ConstructionFailure(_) => KekError::misconfigured(format!(
            "{} could not be made into a request; check region and endpoint",
            call.action
        ))
        .with_source(aws_sdk_kms::error::DisplayErrorContext(error).to_string()),
        other => KekError::unmapped(aws_sdk_kms::error::DisplayErrorContext(other)),
    }
}

/// What an error answer means to each call.
pub(in crate::key_stores) fn meanings(status: u16, retry_after: Option<&str>, body: &[u8]) -> Vec<KekError> {
    let unread = Answer {
        status,
        code: String::new(),
        message: String::new(),
        request_id: None,
        retry_after: retry_after.and_then(retry_after::parse),
        skew: None,
    };
    let answer = unread.with_body(body);
    [Action::DescribeKey, Action::Encrypt, Action::Decrypt, Action::RotateKeyOnDemand]
        .into_iter()
        .flat_map(|action| [false, true].map(|by_alias| Call { action, key: "key", by_alias }))
        .map(|call| answered(call, answer.clone()))
        .collect()
}

/// The code that AWS gave, of an error made here.
pub(super) fn aws_code(error: &KekError) -> Option<&str> {
    error.source()?.downcast_ref::<Answer>().map(|answer| answer.code.as_str())
}

fn not_reached(call: Call<'_>, connector: &ConnectorError) -> KekError {
    // The innermost cause says it best: "connection refused", "invalid peer certificate: UnknownIssuer".
    let mut innermost: &dyn Error = connector;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    KekError::unavailable(format!("AWS KMS was not reached for {}", call.action)).with_source(innermost.to_string())
}

fn answered(call: Call<'_>, answer: Answer) -> KekError {
    match cause(call, &answer) {
        Some(KekCause::Denied) if is_permission(&answer) => {
            KekError::denied_by_policy(describe(call, KekCause::Denied, &answer))
        }
        Some(cause) => KekError::new(cause, describe(call, cause, &answer)),
        None => KekError::unmapped(format!("{} on {}", call.action, call.key)),
    }
    .with_retry_after(answer.retry_after)
    .with_source(answer)
}

fn answered_unreadably(call: Call<'_>, raw: &HttpResponse) -> KekError {
    let answer = Answer::without_body(raw);
    match answer.status {
        200..300 => KekError::unavailable(format!(
            "the answer to {} was cut off, too long, or not from AWS KMS; check endpoint and proxies",
            call.action
        )),
        _ => answered(call, answer),
    }
}

/// KMS's error body, and nobody else's
/// (<https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html#operation-error-serialization>). Read here and not by
/// the SDK, which also takes a `code` and a header for one: gateways of any kind answer with those.
#[derive(Deserialize)]
struct Body {
    #[serde(rename = "__type")]
    kind: String,
    message: Option<String>,
    #[serde(rename = "Message")]
    capital_message: Option<String>,
}

impl Answer {
    fn of(raw: &HttpResponse) -> Self {
        Self::without_body(raw).with_body(raw.body().bytes().unwrap_or_default())
    }

    fn without_body(raw: &HttpResponse) -> Self {
        let header = |name| raw.headers().get(name);
        Self {
            status: raw.status().as_u16(),
            code: String::new(),
            message: String::new(),
            request_id: header("x-amzn-requestid").map(|id| shortened(id, 60)),
            retry_after: header("retry-after").and_then(retry_after::parse),
            skew: header("date").and_then(ahead_of),
        }
    }

    fn with_body(mut self, body: &[u8]) -> Self {
        if let Ok(Body { kind, message, capital_message }) = serde_json::from_slice(body) {
            // `namespace#Code:address`: only the code says something.
            let code = kind.split(':').next().unwrap_or_default();
            self.code = shortened(code.rsplit('#').next().unwrap_or_default(), 60);
            self.message = shortened(&message.or(capital_message).unwrap_or_default(), 400);
        }
        self
    }
}

/// `None` for what no mapping knows.
#[expect(clippy::match_same_arms, reason = "each group has its own reason")]
fn cause(call: Call<'_>, answer: &Answer) -> Option<KekCause> {
    // KMS refuses with 400, and says 403 of what IAM refused (API Reference, "Common errors"): the words of a denial beside
    // another status are somebody's in between.
    let is_refusal = matches!(answer.status, 400 | 403);
    let cause = match answer.code.as_str() {
        // Of a rotation it means that the key has had its share of them; of all else, too many calls.
        "LimitExceededException" if call.action == Action::RotateKeyOnDemand => KekCause::Misconfigured,
        "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => KekCause::Throttled,
        "KMSInternalException"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ConflictException" => KekCause::Unavailable,
        // Where the node asks from is not allowed: key and permission are as good as before.
        "AccessDeniedException" | "AccessDenied" if is_endpoint_policy(&answer.message) => KekCause::Unavailable,
        "AccessDeniedException" | "AccessDenied" | "DisabledException" if is_refusal => KekCause::Denied,
        // Also said of a key store that is disconnected just now: only what stays is definite.
        "KMSInvalidStateException" if is_refusal && says_final_state(&answer.message) => KekCause::Denied,
        "KMSInvalidStateException" => KekCause::Unavailable,
        // "Invalid arn REGION": the endpoint is of another Region than the key.
        "NotFoundException" if is_of_another_region(answer) => KekCause::Misconfigured,
        // An alias can be removed by mistake while its key and all that it wrapped are well.
        "NotFoundException" if is_refusal && call.by_alias => match call.action {
            Action::Decrypt => KekCause::UnknownVersion,
            _ => KekCause::Misconfigured,
        },
        "NotFoundException" if is_refusal => KekCause::Denied,
        "InvalidCiphertextException" | "IncorrectKeyException" => KekCause::Rejected,
        "ExpiredTokenException"
        | "ExpiredToken"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed" => KekCause::Unauthenticated,
        "InvalidArnException"
        | "InvalidKeyUsageException"
        | "InvalidGrantTokenException"
        | "UnsupportedOperationException"
        | "UnknownOperationException"
        | "ValidationException"
        | "ValidationError" => KekCause::Misconfigured,
        _ => return by_status(answer),
    };
    Some(cause)
}

/// The cause where the code says nothing.
fn by_status(answer: &Answer) -> Option<KekCause> {
    match answer.status {
        429 => Some(KekCause::Throttled),
        500.. => Some(KekCause::Unavailable),
        // Without a code of KMS's own it is somebody else's answer, or one that broke.
        _ => answer.code.is_empty().then_some(KekCause::Unavailable),
    }
}

fn is_of_another_region(answer: &Answer) -> bool {
    answer.message.starts_with("Invalid arn")
}

fn is_permission(answer: &Answer) -> bool {
    matches!(answer.code.as_str(), "AccessDeniedException" | "AccessDenied")
}

/// IAM names the kind of policy that refuses ("no VPC endpoint policy allows …", "explicit deny in a VPC endpoint
/// policy"): IAM User Guide, "Troubleshoot access denied error messages".
fn is_endpoint_policy(message: &str) -> bool {
    message.contains("VPC endpoint policy")
}

fn says_final_state(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "pending deletion",
        "pendingdeletion",
        "pending replica deletion",
        "pendingreplicadeletion",
        "pending import",
        "pendingimport",
    ]
    .iter()
    .any(|state| message.contains(state))
}

/// What failed on what, and the fix.
fn describe(call: Call<'_>, cause: KekCause, answer: &Answer) -> String {
    let Call { action, key, .. } = call;
    match (cause, answer.code.as_str()) {
        (KekCause::Throttled, _) => format!("{action} was asked too often in this account and Region"),
        (KekCause::Denied, "AccessDeniedException" | "AccessDenied") => {
            format!("no permission for {action} on {key}; allow it in the key policy or the role's policy")
        }
        (KekCause::Denied, "DisabledException") => format!("{key} is disabled; enable it with kms:EnableKey"),
        (KekCause::Denied, "NotFoundException") => {
            format!("{key} does not exist: it was deleted, or account, Region or id are wrong")
        }
        (KekCause::Denied, _) => format!("the state of {key} forbids {action}"),
        (KekCause::UnknownVersion, _) => format!("the key {key}, to which the alias once pointed, does not exist"),
        (KekCause::Rejected, _) => {
            format!("{key} does not open this data: they are damaged, or made by another key or for another context")
        }
        (KekCause::Unauthenticated, _) => not_accepted(answer),
        (KekCause::Misconfigured, "NotFoundException") if is_of_another_region(answer) => {
            format!("{key} is not of the Region that was asked; check region and endpoint")
        }
        (KekCause::Misconfigured, code) => wrong_setting(call, code),
        (KekCause::Unavailable, "") => {
            format!("HTTP {} in place of AWS KMS's answer to {action}; check endpoint and proxies", answer.status)
        }
        (KekCause::Unavailable, _) if is_endpoint_policy(&answer.message) => {
            format!("a VPC endpoint policy refuses {action} on {key} from this network; allow it there")
        }
        (KekCause::Unavailable, _) => format!("AWS KMS could not do {action} on {key} just now"),
    }
}

fn not_accepted(answer: &Answer) -> String {
    match answer.skew {
        Some(skew) if skew.abs() > SKEW_WORTH_NAMING => {
            let direction = if skew.is_positive() { "ahead of" } else { "behind" };
            format!("this machine's clock is {} s {direction} AWS's; correct it (NTP)", skew.abs().as_secs())
        }
        _ => "AWS does not accept the credentials; renew them".into(),
    }
}

fn wrong_setting(Call { action, key, .. }: Call<'_>, code: &str) -> String {
    match (action, code) {
        (Action::RotateKeyOnDemand, "LimitExceededException") => format!(
            "{key} has used up its on-demand rotations; enable automatic rotation, or make a new key and list it \
             beside this one"
        ),
        (Action::RotateKeyOnDemand, "UnsupportedOperationException") => format!(
            "{key} cannot be rotated on demand: rotate a replica by its primary key's Region, give a key with \
             imported material its new material first, and replace a key of a custom key store by a new one"
        ),
        (_, "NotFoundException") => format!("the alias {key} points to no key in this account and Region"),
        (_, "InvalidKeyUsageException") => format!("{key} is not a symmetric encryption key; make one"),
        _ => format!("AWS KMS refuses {action} on {key} as it was asked; check key, region and endpoint"),
    }
}
