//! What the clients of `rotate-keys` offer in a TLS handshake; those of the KEKs are in the conformance suite.

use std::process::{Command, Stdio};

use kube_envelope::etcd::{EtcdAccess, EtcdClusters};
use rustls::NamedGroup;
use rustls::server::Acceptor;
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;

use crate::support;
use crate::support::fakes::faults::TestIssuer;

#[tokio::test]
async fn the_client_of_etcd_offers_post_quantum_key_exchange_first() {
    support::prepare();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, TestIssuer::new().pem).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = vec![format!("https://{}", listener.local_addr().unwrap())];
    let access = EtcdAccess { endpoints, ca: Some(ca), ..EtcdAccess::default() };
    let connecting = tokio::spawn(async move { EtcdClusters::connect(&access, "/registry/").await.map(drop) });
    assert_eq!(key_exchange_offered_first(&listener).await, NamedGroup::X25519MLKEM768);
    connecting.abort();
}

#[tokio::test]
async fn the_client_of_the_api_server_offers_post_quantum_key_exchange_first() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"https://{}\", insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let mut verify = Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .arg("verify")
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let offered = key_exchange_offered_first(&listener).await;
    verify.kill().unwrap();
    verify.wait().unwrap();
    assert_eq!(offered, NamedGroup::X25519MLKEM768);
}

/// The first named group in the ClientHello of the next connection.
async fn key_exchange_offered_first(listener: &TcpListener) -> NamedGroup {
    let (socket, _) = tokio::time::timeout(support::STARTS_WITHIN, listener.accept()).await.unwrap().unwrap();
    let handshake = LazyConfigAcceptor::new(Acceptor::default(), socket).await.unwrap();
    handshake.client_hello().named_groups().unwrap()[0]
}

/// A kubeconfig that leads to a port where nobody listens, with a client certificate of X.509 version 1.
fn kubeconfig_with_version_1(folder: &std::path::Path) -> std::path::PathBuf {
    let vectors = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/x509-version-1");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:1\"}}}}]\n\
         users: [{{name: u, user: {{client-certificate: {0}/client.crt, client-key: {0}/client.key}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        vectors.display()
    );
    let file = folder.join("kubeconfig");
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn a_client_certificate_of_version_1_is_named_in_plain_words() {
    support::prepare();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig_with_version_1(folder.path()).display());
    let ran = crate::run(&["rotate-keys", "--plan", &kubeconfig]);
    assert_eq!(ran.code, Some(2), "{}", ran.error);
    assert!(ran.error.contains("the client certificate is of X.509 version 1"), "{}", ran.error);
    assert!(ran.error.contains("openssl x509 -req"), "{}", ran.error);

    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, TestIssuer::new().pem).unwrap();
    let vectors = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/x509-version-1");
    let access = EtcdAccess {
        endpoints: vec!["https://127.0.0.1:1".into()],
        ca: Some(ca),
        certificate: Some(vectors.join("client.crt")),
        key: Some(vectors.join("client.key")),
        timeout: None,
    };
    let error = EtcdClusters::connect(&access, "/registry/").await.unwrap_err().to_string();
    assert!(error.contains("the client certificate is of X.509 version 1"), "{error}");
}
