//! The ways to log in that need a method mounted at the server.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use kube_envelope::kek::KekCause;
use serde_json::{Value, json};

use super::beyond::{build, cause_of_version, round_trip};
use super::*;
use crate::support::fakes::faults::{Fault, TestIssuer};

#[tokio::test]
async fn logs_in_with_a_name_and_a_password() {
    let bench = TransitBench::start().await;
    bench.server.write("sys/auth/people", json!({ "type": "userpass" })).await;
    let user = json!({ "password": "right", "token_policies": ["plugin"], "token_no_default_policy": true, "token_ttl": "1h" });
    bench.server.write("auth/people/users/plugin", user).await;
    let file = bench.folder.path().join("password");
    std::fs::write(&file, "wrong\n").expect("written");
    let auth = format!("{{ userpass: {{ username: plugin, passwordFile: {}, mount: people }} }}", file.display());
    let kek = build(&bench.item_with("kube-envelope", &auth));
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    std::fs::write(&file, "right\n").expect("written");
    round_trip(&*kek).await;
}

#[tokio::test]
async fn logs_in_with_a_jwt() {
    let bench = TransitBench::start().await;
    let key = rcgen::KeyPair::generate().expect("a key");
    bench.server.write("sys/auth/jwt", json!({ "type": "jwt" })).await;
    bench.server.write("auth/jwt/config", json!({ "jwt_validation_pubkeys": [key.public_key_pem()] })).await;
    let role = json!({ "role_type": "jwt", "bound_audiences": ["vault"], "user_claim": "sub",
        "token_policies": ["plugin"], "token_no_default_policy": true });
    bench.server.write("auth/jwt/role/plugin", role).await;
    let file = bench.folder.path().join("jwt");
    let claims =
        |audience: &str| json!({ "sub": "plugin", "aud": audience, "nbf": 1_700_000_000, "exp": 4_000_000_000_u64 });
    std::fs::write(&file, jwt(&key, &claims("somebody else"))).expect("written");
    let auth = format!("{{ jwt: {{ role: plugin, jwtFile: {} }} }}", file.display());
    let kek = build(&bench.item_with("kube-envelope", &auth));
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    std::fs::write(&file, jwt(&key, &claims("vault"))).expect("written");
    round_trip(&*kek).await;
}

#[tokio::test]
async fn logs_in_with_a_service_account_token_that_an_api_server_reviews() {
    let bench = TransitBench::start().await;
    let user = json!({ "username": "system:serviceaccount:kube-system:plugin", "uid": "1", "groups": [] });
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "status": { "authenticated": true, "user": user } });
    let api_server = Faults::plain(bench.server.address).await;
    let json_type = ("content-type".into(), "application/json".into());
    api_server.set(Fault::Answer(Answer { status: 200, headers: vec![json_type], body: review.to_string() }));
    bench.server.write("sys/auth/kubernetes", json!({ "type": "kubernetes" })).await;
    let host = json!({ "kubernetes_host": api_server.url(), "disable_local_ca_jwt": true,
        "kubernetes_ca_cert": TestIssuer::new().pem });
    bench.server.write("auth/kubernetes/config", host).await;
    let role = json!({ "bound_service_account_names": ["plugin"], "bound_service_account_namespaces": ["kube-system"],
        "token_policies": ["plugin"], "token_no_default_policy": true });
    bench.server.write("auth/kubernetes/role/plugin", role).await;
    let account = json!({ "namespace": "kube-system", "serviceaccount": { "name": "plugin", "uid": "1" } });
    let claims = json!({ "nbf": 1_700_000_000, "exp": 4_000_000_000_u64, "kubernetes.io": account,
        "sub": "system:serviceaccount:kube-system:plugin" });
    let file = bench.folder.path().join("jwt");
    std::fs::write(&file, jwt(&rcgen::KeyPair::generate().expect("a key"), &claims)).expect("written");
    let auth = format!("{{ kubernetes: {{ role: plugin, jwtFile: {} }} }}", file.display());
    round_trip(&*build(&bench.item_with("kube-envelope", &auth))).await;
}

fn jwt(key: &rcgen::KeyPair, claims: &Value) -> String {
    let key_pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der()).expect("a P-256 key");
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(claims));
    let signature = key_pair.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).expect("signed");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
