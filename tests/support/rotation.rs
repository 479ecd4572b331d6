//! `rotate-keys` and `verify` against a real API server and its etcd.

use std::process::{Command, Output};

use super::plugin::encryption_configuration;
use super::plugin::proto::{DecryptRequest, EncryptRequest};
use super::{ADMIN, ApiServer, ApiServerOptions, Encryption, Etcd, Plugin};

/// Runs a command as the administrator, told where everything is.
pub fn run(server: &ApiServer, etcd: &Etcd, command: &str, more: &[&str]) -> Output {
    run_with(server, etcd, command, more, &[])
}

fn run_with(server: &ApiServer, etcd: &Etcd, command: &str, more: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
    program
        .arg(command)
        .arg(format!("--kubeconfig={}", server.kubeconfig(ADMIN).display()))
        .arg(format!("--encryption-config={}", server.encryption_file().display()))
        .arg(format!("--etcd={}", etcd.url()))
        .args(more)
        .envs(environment.iter().copied());
    tokio::task::block_in_place(|| program.output().unwrap())
}

/// All that a command said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Has `rotate-keys --rotate-kek` rotate the keys of the plugin's KEKs while a real API server runs: every Secret ends under the new version, the former may be disabled, and what it sealed stays readable.
pub async fn rotates_end_to_end(plugin: &Plugin, environment: &[(&str, &str)]) {
    const SECRETS: usize = 20;
    let first = plugin.wait_healthy().await;
    let mut client = plugin.client().await.unwrap();
    let request = EncryptRequest { plaintext: vec![7; 32], uid: "u".into() };
    let old = client.encrypt(request).await.unwrap().into_inner();
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    for number in 0..SECRETS {
        server.write_secret(&format!("s-{number}"), &format!("value {number}")).await;
    }
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [first.as_str()]);

    let (config, journal) = (plugin.config_file(), server.folder().join("journal.json"));
    let (config, journal) = (format!("--config={}", config.display()), format!("--journal={}", journal.display()));
    let more = [
        "--rotate-kek",
        &config,
        &journal,
        "--settle=0s",
        "--compact",
        "--agreement-interval=1s",
        "--snapshot-command=true",
    ];
    let rotated = run_with(&server, &etcd, "rotate-keys", &more, environment);
    assert_eq!(rotated.status.code(), Some(0), "{}", text(&rotated));
    assert!(text(&rotated).contains("Yes: nothing is stored under KEK "), "{}", text(&rotated));

    let second = plugin.wait_healthy().await;
    assert_ne!(second, first);
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [second]);
    let request = DecryptRequest {
        ciphertext: old.ciphertext,
        uid: "u".into(),
        key_id: old.key_id,
        annotations: old.annotations,
    };
    assert_eq!(client.decrypt(request).await.unwrap().into_inner().plaintext, [7; 32], "the former version opens");
    server.stop();
    server.restart().await;
    for number in 0..SECRETS {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("value {number}"));
    }
}
