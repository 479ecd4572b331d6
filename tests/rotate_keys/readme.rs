//! The README's procedure, word for word, with every default and without a pause.

use std::path::Path;
use std::process::{Command, Output};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::control_plane::BINARY;
use crate::support::plugin::encryption_configuration;
use crate::support::{ADMIN, ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin};

/// The shell blocks of the section *Rotate a key*, in their order.
fn blocks() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(file).unwrap();
    let section = text.split("\n## Rotate a key\n").nth(1).unwrap().split("\n## ").next().unwrap();
    section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

fn shell(script: &str) -> Output {
    let path = format!("{}:{}", Path::new(BINARY).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("PATH", path);
    tokio::task::block_in_place(|| command.output().unwrap())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Puts a folder of this test over one of the machine, in the mount namespace of the tests (scripts/in-netns).
fn over(folder: &str, scratch: &Path) {
    let (upper, work) = (scratch.join("upper").join(&folder[1..]), scratch.join("work").join(&folder[1..]));
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    let options = format!("lowerdir={folder},upperdir={},workdir={}", upper.display(), work.display());
    let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, folder]).output().unwrap();
    assert!(mounted.status.success(), "{}", said(&mounted));
}

fn copy(from: &Path, to: &str) {
    std::fs::create_dir_all(Path::new(to).parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
}

/// Leads the port that the README names to an etcd.
async fn forward(from: u16, to: String) {
    let listener = TcpListener::bind(("127.0.0.1", from)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes, as it runs with every default; scripts/e2e runs it"]
async fn the_procedure_in_the_readme_is_right_as_it_stands_there() {
    crate::support::prepare();
    let scratch = tempfile::Builder::new().tempdir_in("/run").unwrap();
    over("/etc", scratch.path());
    over("/var", scratch.path());
    let keyring = KeyringFile::create();
    let file = Path::new("/etc/kube-envelope/keyring.json");
    std::fs::create_dir_all("/etc/kube-envelope").unwrap();
    std::fs::copy(keyring.path(), file).unwrap();
    let mut plugin =
        Plugin::start(&format!("cluster: test\nkeks: [{{name: primary, keyring: {{file: {}}}}}]", file.display()))
            .await;
    plugin.wait_healthy().await;
    std::fs::copy(plugin.config_file(), "/etc/kube-envelope/config.yaml").unwrap();
    let etcd = Etcd::start_tls().await;
    let encryption = "/etc/kubernetes/encryption/encryption-configuration.yaml";
    let providers = [plugin.provider(), "{identity: {}}".to_owned()];
    let text = encryption_configuration(&["secrets", "configmaps"], &providers.each_ref().map(String::as_str));
    std::fs::create_dir_all("/etc/kubernetes/encryption").unwrap();
    std::fs::write(encryption, &text).unwrap();
    let options = ApiServerOptions { encryption: Encryption::File(encryption.into()), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    for number in 0..50 {
        server.write_secret(&format!("s-{number}"), &format!("value {number}")).await;
    }
    copy(&server.kubeconfig(ADMIN), "/etc/kubernetes/admin.conf");
    let (url, certificates) = etcd.tls();
    copy(&certificates.join("etcd-ca.crt"), "/etc/kubernetes/pki/etcd/ca.crt");
    copy(&certificates.join("etcd.crt"), "/etc/kubernetes/pki/apiserver-etcd-client.crt");
    copy(&certificates.join("etcd.key"), "/etc/kubernetes/pki/apiserver-etcd-client.key");
    forward(2379, url.trim_start_matches("https://").to_owned()).await;
    std::fs::create_dir_all("/var/backups").unwrap();

    let blocks = blocks();
    let [activate, rotate, resume, verify] = blocks.as_slice() else { panic!("{blocks:?}") };
    let ended = shell(activate);
    assert!(ended.status.success(), "{}", said(&ended));
    // Without a pause: no plugin has noticed the new version yet.
    let ended = shell(rotate);
    assert_eq!(ended.status.code(), Some(7), "{}", said(&ended));
    assert!(said(&ended).contains("Not yet"), "{}", said(&ended));
    etcd.snapshot(Path::new("/var/backups/etcd.db")).await;
    let ended = shell(resume);
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    let verdict = said(&ended);
    assert!(verdict.contains("Yes: nothing is stored under KEK primary version "), "{verdict}");
    let command = verdict.lines().find_map(|line| line.trim().strip_prefix("command: ")).unwrap().to_owned();
    let ended = shell(verify);
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));

    // What it allows is done, and a cold start reads everything.
    let ended = shell(&command);
    assert!(ended.status.success(), "{command}: {}", said(&ended));
    let versions = |file: &str| std::fs::read_to_string(file).unwrap().matches("\"created\"").count();
    let copy = command.split_whitespace().find(|word| word.contains(".before-")).unwrap();
    let kept = [copy, "/etc/kube-envelope/keyring.json"].map(versions);
    assert_eq!(kept, [2, 1], "what is destroyed is in the copy: {command}");
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    plugin.restart().await;
    server.stop();
    server.restart().await;
    for number in 0..50 {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("value {number}"));
    }
}
