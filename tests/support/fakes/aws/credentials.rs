//! Where AWS credentials come from, on one address: instance metadata (`IMDSv2`), container credentials (Pod
//! Identity), STS for roles and web identities. Each gives out a user of the fake KMS with a session token, for an
//! hour, and only to those who ask as the real one demands.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::task::JoinHandle;

use super::kms::{FakeKms, Kms, User, check_signature};

/// What a container's or a web identity's token file must hold.
pub const FILE_TOKEN: &str = "token-of-a-service-account";
pub const EXTERNAL_ID: &str = "agreed-upon";
pub const ROLE: &str = "arn:aws:iam::111122223333:role/kms";

const METADATA_TOKEN: &str = "metadata-token";

/// The server; ends when dropped.
pub struct Sources {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Sources {
    pub async fn start(kms: &FakeKms) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let app = Router::new().fallback(answer).with_state(kms.shared());
        Self { address, task: tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") }) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(kms): State<Arc<Mutex<Kms>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let mut kms = kms.lock().expect("not poisoned");
    let has = |name: &str, value: &str| headers.get(name).is_some_and(|header| header == value);
    let metadata = "/latest/meta-data/iam/security-credentials";
    match (method, uri.path()) {
        (Method::PUT, "/latest/api/token") if headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds") => {
            ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], METADATA_TOKEN).into_response()
        }
        (Method::GET, path) if path.starts_with("/latest/") && !has("x-aws-ec2-metadata-token", METADATA_TOKEN) => {
            StatusCode::UNAUTHORIZED.into_response()
        }
        (Method::GET, path) if path.trim_end_matches('/') == metadata => "the-role".into_response(),
        (Method::GET, path) if path == format!("{metadata}/the-role") => document(&mut kms).into_response(),
        (Method::GET, "/container") if has("authorization", FILE_TOKEN) => document(&mut kms).into_response(),
        (Method::GET, "/container") => StatusCode::UNAUTHORIZED.into_response(),
        (Method::POST, "/") => sts(&mut kms, &headers, &body),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn document(kms: &mut Kms) -> Json<serde_json::Value> {
    let (access_key, User { secret, token, .. }) = give_out(kms);
    Json(json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": Timestamp::now().to_string(), "AccessKeyId": access_key,
        "SecretAccessKey": secret, "Token": token, "Expiration": in_an_hour(),
    }))
}

/// `AssumeRole` is signed by the user who takes the role on; a web identity proves itself by its token.
fn sts(kms: &mut Kms, headers: &HeaderMap, body: &str) -> Response {
    let says = |pair: String| body.split('&').any(|part| part == pair);
    let role = says(format!("RoleArn={}", ROLE.replace(':', "%3A").replace('/', "%2F")));
    let signed = || check_signature(&kms.users, headers, body.as_bytes(), Timestamp::now(), "sts").is_ok();
    let action =
        ["AssumeRole", "AssumeRoleWithWebIdentity"].into_iter().find(|action| says(format!("Action={action}")));
    let allowed = match action {
        Some("AssumeRole") => says(format!("ExternalId={EXTERNAL_ID}")) && signed(),
        _ => says(format!("WebIdentityToken={FILE_TOKEN}")),
    };
    let (Some(action), true, true) = (action, role, allowed) else {
        let error =
            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not authorized</Message></Error></ErrorResponse>";
        return (StatusCode::FORBIDDEN, error).into_response();
    };
    let (access_key, User { secret, token, .. }) = give_out(kms);
    let (token, end) = (token.expect("given out with a token"), in_an_hour());
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{end}</Expiration>\
         </Credentials></{action}Result></{action}Response>"
    )
    .into_response()
}

fn give_out(kms: &mut Kms) -> (String, User) {
    let access_key = format!("ASIA{}", hex::encode_upper(rand::random::<[u8; 8]>()));
    let user = User {
        secret: hex::encode(rand::random::<[u8; 20]>()),
        token: Some(hex::encode(rand::random::<[u8; 20]>())),
        expired: false,
        powerless: false,
    };
    kms.users.insert(access_key.clone(), user.clone());
    (access_key, user)
}

fn in_an_hour() -> String {
    (Timestamp::now() + SignedDuration::from_hours(1)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
