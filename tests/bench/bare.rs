//! The limit of a rewrite by `PATCH {}`: list the names, patch each, so many in flight. No bookkeeping, no proof.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, header};
use http_body_util::BodyExt;
use kube::client::Body;

const LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const ONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// `arguments`: the API server's address, a token, how many in flight.
pub async fn run(arguments: &[String]) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = kube::Config::new(arguments[0].parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(arguments[1].clone().into());
    let client = kube::Client::try_from(config).unwrap();
    let paths = Arc::new(list(&client).await);
    let next = Arc::new(AtomicUsize::new(0));
    let tasks = (0..arguments[2].parse().unwrap()).map(|_| {
        let (client, paths, next) = (client.clone(), paths.clone(), next.clone());
        tokio::spawn(async move {
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                let patch = Request::patch(path).header(header::ACCEPT, ONE);
                let patch = patch.header(header::CONTENT_TYPE, "application/merge-patch+json");
                send(&client, patch.body(Body::from(b"{}".to_vec())).unwrap()).await;
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
}

async fn list(client: &kube::Client) -> Vec<String> {
    let (mut paths, mut next) = (Vec::new(), String::new());
    loop {
        let page = Request::get(format!("/api/v1/secrets?limit=500{next}")).header(header::ACCEPT, LIST);
        let page: serde_json::Value =
            serde_json::from_slice(&send(client, page.body(Body::empty()).unwrap()).await).unwrap();
        for item in page["items"].as_array().unwrap() {
            let field = |name: &str| item["metadata"][name].as_str().unwrap().to_owned();
            paths.push(format!("/api/v1/namespaces/{}/secrets/{}", field("namespace"), field("name")));
        }
        match page["metadata"]["continue"].as_str() {
            // The token is base64url, with padding.
            Some(token) if !token.is_empty() => next = format!("&continue={}", token.replace('=', "%3D")),
            _ => return paths,
        }
    }
}

async fn send(client: &kube::Client, request: Request<Body>) -> Vec<u8> {
    let answer = client.send(request).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.into_body().collect().await.unwrap().to_bytes().to_vec()
}
