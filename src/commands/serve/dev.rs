//! `serve --dev`: everything made on the spot in one folder, and said loudly.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config::{Config, DEFAULT_LISTEN, SocketAddress};
use crate::crypto::seal::os_random;
use crate::key_stores::keyring::Keyring;
use crate::plugin::client::self_check as check;
use crate::shell::quoted;

/// How long the self-check waits for the plugin to serve.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes keyring and configuration in `folder` on the first start, reuses them afterwards, and says what to do next.
///
/// # Errors
/// A folder that cannot be used, or a keyring that cannot be read.
pub fn prepare(folder: &Path) -> Result<(PathBuf, (Config, String))> {
    let unusable =
        || format!("cannot use {} as a folder; name one that is yours, or that can be made", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(unusable)?;
    let folder = folder.canonicalize().with_context(unusable)?;
    let (keyring, file) = (folder.join("keyring.json"), folder.join("config.yaml"));
    // A second keyring would leave what the first one encrypted unreadable.
    if !keyring.exists() {
        Keyring::create(&mut os_random()).write_new(&keyring)?;
    }
    if !file.exists() {
        std::fs::write(&file, configuration(&folder, free_health()?))?;
    }
    let (config, text) = Config::load_with_text(&file)?;
    eprintln!(
        "kube-envelope serve --dev: NOT FOR PRODUCTION. The KEK is stored in {} beside the data that it protects: \
         anyone who can read this disk can read every Secret.",
        keyring.display()
    );
    let encryption = encryption_configuration(&config.socket.address);
    let for_api_server = folder.join("encryption-configuration.yaml");
    if !for_api_server.exists() {
        std::fs::write(&for_api_server, &encryption)?;
    }
    println!(
        "Give this file to the API server: --encryption-provider-config={}\n\n{encryption}",
        for_api_server.display()
    );
    println!("Ask this plugin how it is: kube-envelope status --config {}\n", quoted(&file.display().to_string()));
    Ok((file, (config, text)))
}

/// Shows, through the plugin's own socket, that it does its job.
pub async fn self_check(socket: SocketAddress) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match check(&socket).await {
            Ok(seen) => {
                println!(
                    "self-check through {socket}: Status ok, Encrypt ok, Decrypt ok; key_id {}, {} bytes of ciphertext, {} of annotations",
                    seen.key_id, seen.ciphertext_bytes, seen.annotation_bytes
                );
                return;
            }
            Err(error) if tokio::time::Instant::now() > deadline => {
                eprintln!("self-check failed: {:#}", anyhow::Error::from(error));
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The usual address, or one that is free: of two in two folders, each has its own.
fn free_health() -> Result<SocketAddr> {
    let usual: SocketAddr = DEFAULT_LISTEN.parse().context("the default of health.listen is an address")?;
    let found = TcpListener::bind(usual).or_else(|_| TcpListener::bind((usual.ip(), 0)))?;
    Ok(found.local_addr()?)
}

fn configuration(folder: &Path, health: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "# Made by `kube-envelope serve --dev`. Not for production.\n\
         cluster: dev\n\
         socket: {folder}/kms.sock\n\
         stateDir: {folder}/state\n\
         health: {{ listen: \"{health}\" }}\n\
         keks:\n  - name: dev\n    keyring: {{ file: {folder}/keyring.json }}\n\
         refreshInterval: 5s\n"
    )
}

fn encryption_configuration(socket: &SocketAddress) -> String {
    let endpoint = socket.endpoint();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\n\
         kind: EncryptionConfiguration\n\
         resources:\n\
         \x20 - resources: [secrets, configmaps]\n\
         \x20   providers:\n\
         \x20     - kms:\n\
         \x20         apiVersion: v2\n\
         \x20         name: kube-envelope\n\
         \x20         endpoint: \"{endpoint}\"\n\
         \x20     - identity: {{}}\n"
    )
}
