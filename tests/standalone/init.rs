//! `init` and `policy`: what they write for each distribution, what they keep, and what they refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use kube_envelope::cli::Cli;
use kube_envelope::config::Config;
use kube_envelope::encryption_config::{EncryptionConfiguration, Endpoint, Provider};
use tempfile::TempDir;

use crate::{Ran, path, run};

const DISTRIBUTIONS: &[&str] = &["kubeadm", "k3s", "rke2", "talos", "kind", "kops", "systemd"];
const KEY: &str = "c2VjcmV0IGlzIHNlY3VyZSwgaXQgaXMgMzIgYnl0ZXM=";

fn init(root: &Path, more: &[&str]) -> Ran {
    let all = ["init", "--root", path(root), "--cluster", "c", "--kek", "keyring"];
    run(&[&all, more].concat())
}

/// Every file below a folder, by its path from there.
fn written(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let at = entry.unwrap().path();
            if at.is_dir() {
                folders.push(at);
            } else {
                let name = at.strip_prefix(root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&at).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn of<'a>(files: &'a [(String, String)], end: &str) -> &'a str {
    let file = files.iter().find(|(name, _)| name.ends_with(end));
    &file.unwrap_or_else(|| panic!("no {end} in {:?}", files.iter().map(|(name, _)| name).collect::<Vec<_>>())).1
}

/// An `EncryptionConfiguration` as RKE2 and k3s write it.
fn rancher_former(folder: &Path) -> String {
    let file = folder.join("encryption-config.json");
    let text = format!(
        r#"{{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{{"resources":["secrets"],
        "providers":[{{"aescbc":{{"keys":[{{"name":"aescbckey","secret":"{KEY}"}}]}}}},{{"identity":{{}}}}]}}]}}"#
    );
    fs::write(&file, text).unwrap();
    path(&file).to_owned()
}

/// The audit command of the CIS Kubernetes Benchmark (v1.9 to v1.11, "Ensure that encryption providers are
/// appropriately configured"), after it has found the file's name: each line must be one of three.
fn cis_providers(text: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let command = format!("grep -A1 'providers:' {} | tail -n1 | grep -o '[A-Za-z]*'", file.path().display());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_distribution_gets_files_that_the_program_itself_accepts() {
    for distribution in DISTRIBUTIONS {
        let root = tempfile::tempdir().unwrap();
        let ran = init(root.path(), &["--for", distribution, "--new-cluster", "--image", "r.example/ke:1"]);
        assert_eq!((ran.code, ran.error.as_str()), (Some(0), ""), "{distribution}: {}", ran.out);
        let files = written(root.path());
        let whole: String = files.iter().map(|(_, text)| text.as_str()).collect();
        assert!(!whole.contains("registry.example"), "{distribution}: the image is put in");
        if let Some((name, config)) =
            files.iter().find(|(name, _)| name.ends_with("config.yaml") && !name.contains("talos"))
        {
            let config =
                Config::parse(Path::new(name), config).unwrap_or_else(|error| panic!("{distribution}: {error}"));
            assert_eq!(config.cluster.as_str(), "c");
            let file = ["encryption-configuration.yaml", "plugin-first.yaml"];
            let file = file.iter().find(|end| files.iter().any(|(name, _)| name.ends_with(*end))).unwrap();
            let text = of(&files, file);
            let encryption =
                EncryptionConfiguration::parse(text).unwrap_or_else(|error| panic!("{distribution}: {error}"));
            let Some(Provider::Kms(kms)) = encryption.entry("secrets", "").unwrap().writer() else { panic!("{text}") };
            assert_eq!(kms.endpoint.to_string(), config.socket.address.endpoint(), "{distribution}");
            assert_eq!(cis_providers(text), ["kms"], "{distribution}: {text}");
        }
        for (name, _) in &files {
            let mode = fs::metadata(root.path().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if name.ends_with(".service") { 0o644 } else { 0o600 }, "{name}");
        }
    }
}

#[test]
fn talos_gets_documents_whose_provider_and_plugin_meet_at_an_abstract_socket() {
    let root = tempfile::tempdir().unwrap();
    let machine = root.path().join("controlplane.yaml");
    fs::write(&machine, format!("version: v1alpha1\ncluster:\n  secretboxEncryptionSecret: {KEY}\n")).unwrap();
    let ran = init(root.path(), &["--for", "talos", "--former", path(&machine), "--image", "r.example/ke:1"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.error);
    let text = fs::read_to_string(root.path().join("talos-plugin-first.yaml")).unwrap();
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
    let [machine, encryption, pod] = documents.as_slice() else { panic!("{text}") };
    assert_eq!(encryption["kind"], "KubeEtcdEncryptionConfig");
    let as_file = serde_json::json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": encryption["config"]["resources"],
    });
    let parsed = EncryptionConfiguration::parse(&as_file.to_string()).unwrap();
    let providers = &parsed.entry("secrets", "").unwrap().providers;
    assert_eq!(providers[0].kms().unwrap().endpoint, Endpoint::Abstract("kube-envelope".into()));
    assert!(
        matches!(&providers[1..], [Provider::LocalKeys(keys), Provider::Identity] if keys.kind == "secretbox"),
        "{providers:?}"
    );
    assert_eq!(pod["kind"], "KubeStaticPodConfig");
    assert_eq!(pod["pod"]["spec"]["hostNetwork"], true, "an abstract socket belongs to the network namespace");
    assert_eq!(pod["pod"]["spec"]["containers"][0]["image"], "r.example/ke:1");
    let file = &machine["machine"]["files"][0];
    let config =
        Config::parse(Path::new("c"), file["content"].as_str().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.socket.allowed_uids, [65534]);
    let volume = &pod["pod"]["spec"]["volumes"][0]["hostPath"]["path"];
    assert_eq!(Path::new(file["path"].as_str().unwrap()).parent().unwrap().to_str(), volume.as_str());
}

#[test]
fn a_second_run_finds_everything_there_and_a_change_needs_force() {
    let root = tempfile::tempdir().unwrap();
    let arguments = ["--for", "systemd", "--new-cluster"];
    assert_eq!(init(root.path(), &arguments).code, Some(0));
    let before = written(root.path());
    let again = init(root.path(), &arguments);
    assert_eq!(again.code, Some(0));
    assert_eq!(again.out.matches("already exists").count(), before.len(), "{}", again.out);

    let config = root.path().join("etc/kube-envelope/config.yaml");
    fs::write(&config, "cluster: mine\nkeks: []\n").unwrap();
    let refused = init(root.path(), &arguments);
    assert_eq!(refused.code, Some(1));
    assert!(refused.out.contains("  - cluster: mine\n") && refused.out.contains("  + cluster: c\n"), "{}", refused.out);
    assert!(refused.error.contains("config.yaml differ; nothing was written"), "{}", refused.error);
    assert_eq!(fs::read_to_string(&config).unwrap(), "cluster: mine\nkeks: []\n");
    assert_eq!(init(root.path(), &[&arguments[..], &["--force"]].concat()).code, Some(0));
    assert_eq!(written(root.path()), before);
}

#[test]
fn a_dry_run_writes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let ran = init(root.path(), &["--for", "systemd", "--new-cluster", "--dry-run"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("  + kind: EncryptionConfiguration"), "{}", ran.out);
    assert_eq!(written(root.path()), []);
}

#[test]
fn the_former_key_is_found_on_the_node_kept_and_never_shown() {
    for (distribution, credentials) in
        [("rke2", "var/lib/rancher/rke2/server/cred"), ("k3s", "var/lib/rancher/k3s/server/cred")]
    {
        let root = tempfile::tempdir().unwrap();
        let credentials = root.path().join(credentials);
        fs::create_dir_all(&credentials).unwrap();
        rancher_former(&credentials);
        let ran = init(root.path(), &["--for", distribution, "--image", "i"]);
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.error);
        assert!(!ran.out.contains(KEY), "{}", ran.out);
        let files = written(root.path());
        let text = of(&files, "encryption/encryption-configuration.yaml");
        assert!(text.contains(KEY));
        let providers = EncryptionConfiguration::parse(text).unwrap().entries.remove(0).providers;
        assert!(
            matches!(&providers[..], [Provider::Kms(_), Provider::LocalKeys(keys), Provider::Identity] if keys.kind == "aescbc")
        );
    }
}

#[test]
fn with_several_nodes_the_plugin_reads_everywhere_before_it_writes_anywhere() {
    let root = tempfile::tempdir().unwrap();
    let former = rancher_former(root.path());
    let ran = init(root.path(), &["--for", "rke2", "--former", &former, "--image", "i", "--control-planes", "3"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.error);
    let files = written(root.path());
    let writer = |name: &str| {
        let encryption = EncryptionConfiguration::parse(of(&files, name)).unwrap();
        matches!(encryption.entry("secrets", "").unwrap().writer(), Some(Provider::Kms(_)))
    };
    assert!(!writer("encryption/encryption-configuration.yaml"), "the former provider writes at first");
    assert!(writer("plugin-first.yaml") && !writer("former-first.yaml"));
    let order = [
        "kube-envelope status",
        "systemctl restart rke2-server",
        "cp -p plugin-first.yaml",
        "kube-envelope rotate-keys --",
    ];
    let places: Vec<_> =
        order.iter().map(|step| ran.out.find(step).unwrap_or_else(|| panic!("{step}: {}", ran.out))).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_cluster_that_may_be_encrypted_is_never_taken_for_one_that_is_not() {
    for distribution in DISTRIBUTIONS {
        let root = tempfile::tempdir().unwrap();
        let ran = init(root.path(), &["--for", distribution, "--image", "i"]);
        assert_eq!(ran.code, Some(2), "{distribution}: {}", ran.out);
        assert!(ran.error.contains("--former FILE"), "{distribution}: {}", ran.error);
        assert_eq!(written(root.path()), []);
    }
}

#[test]
fn on_a_kubeadm_node_the_api_servers_own_manifest_tells_whether_it_encrypts() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("etc/kubernetes/manifests");
    fs::create_dir_all(&manifests).unwrap();
    let write = |flag: &str| {
        let text = format!("spec:\n  containers:\n  - command: [kube-apiserver, {flag}]\n");
        fs::write(manifests.join("kube-apiserver.yaml"), text).unwrap();
    };
    write("--encryption-provider-config=/x");
    let ran = init(root.path(), &["--for", "kubeadm", "--image", "i"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error.contains("already names an EncryptionConfiguration"), "{}", ran.error);
    write("--v=2");
    let ran = init(root.path(), &["--for", "kubeadm", "--image", "i"]);
    assert_eq!(ran.code, Some(0), "{}", ran.error);
    assert!(ran.out.contains("kubeadm upgrade node phase control-plane"), "{}", ran.out);
}

#[test]
fn what_is_missing_is_named_at_once_where_nobody_can_be_asked() {
    let ran = run(&["init"]);
    assert_eq!(ran.code, Some(2));
    for flag in ["--for", "--cluster", "--kek"] {
        assert!(ran.error.contains(flag), "{flag}: {}", ran.error);
    }
}

#[cfg(feature = "aws")]
#[test]
fn a_setting_that_is_missing_or_wrong_is_named_as_in_the_configuration() {
    let root = tempfile::tempdir().unwrap();
    let aws = |set: &[&str]| {
        run(&[
            &[
                "init",
                "--for",
                "systemd",
                "--new-cluster",
                "--root",
                path(root.path()),
                "--cluster",
                "c",
                "--kek",
                "awsKms",
            ],
            set,
        ]
        .concat())
    };
    let ran = aws(&[]);
    assert!(ran.code == Some(2) && ran.error.contains("keks.awsKms.key: is missing"), "{}", ran.error);
    let ran = aws(&["--set", "key=x"]);
    assert!(ran.code == Some(2) && ran.error.contains("keks[0].awsKms.key"), "{}", ran.error);
    let ran = aws(&["--set", "key"]);
    assert!(ran.error.contains("write FIELD=VALUE"), "{}", ran.error);
}

#[test]
fn at_a_terminal_the_missing_answers_are_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let command = format!(
        "{} init --for systemd --new-cluster --root {}",
        env!("CARGO_BIN_EXE_kube-envelope"),
        root.path().display()
    );
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("script, of util-linux");
    // Cluster, kind, number of nodes.
    std::io::Write::write_all(&mut terminal.stdin.take().unwrap(), b"asked\nkeyring\n\n").unwrap();
    let output = terminal.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("Name of the cluster") && shown.contains("Number of control-plane nodes"), "{shown}");
    assert!(of(&written(root.path()), "config.yaml").contains("cluster: asked\n"));
}

/// Commands of steps go over two lines where the first ends with a backslash.
#[test]
fn every_step_that_calls_this_program_is_one_that_it_understands() {
    let mut seen = 0;
    for distribution in DISTRIBUTIONS {
        for nodes in ["1", "3"] {
            let root = tempfile::tempdir().unwrap();
            let former = rancher_former(root.path());
            let ran = init(
                root.path(),
                &["--for", distribution, "--former", &former, "--image", "i", "--control-planes", nodes],
            );
            assert_eq!(ran.code, Some(0), "{}", ran.error);
            for command in
                ran.out.replace("\\\n", " ").lines().map(str::trim).filter(|line| line.starts_with("kube-envelope "))
            {
                seen += 1;
                let arguments = command.split_whitespace();
                Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{distribution}: {command}: {error}"));
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

/// The documents show the policies that the program prints.
#[test]
fn the_documents_show_the_least_policies_that_are_printed() {
    let folder = TempDir::new().unwrap();
    let cases = [
        ("aws", "awsKms: {key: 'arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab'}"),
        ("gcp", "gcpKms: {key: projects/PROJECT/locations/europe-west3/keyRings/RING/cryptoKeys/KEY}"),
        (
            "azure",
            "azureKeyVault: {vault: 'https://NAME.vault.azure.net', key: kube-envelope, credential: {managedIdentity: {}}}",
        ),
        ("transit", "transit: {addresses: ['https://v:8200'], key: kube-envelope, auth: {tokenFile: /t}}"),
    ];
    for (kind, settings) in cases {
        let config = folder.path().join("config.yaml");
        fs::write(&config, format!("cluster: prod-eu-1\nkeks: [{{name: primary, {settings}}}]\n")).unwrap();
        let ran = run(&["policy", "--config", path(&config)]);
        assert_eq!(ran.code, Some(0), "{}", ran.error);
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/keks/{kind}.md"));
        let document = fs::read_to_string(document).unwrap();
        let parts: Vec<_> = ran.out.split("# for ").skip(1).collect();
        assert_eq!(parts.len(), 2, "{}", ran.out);
        for part in parts {
            let text = part.split_once('\n').unwrap().1.trim();
            assert!(squeezed(&document).contains(&squeezed(text)), "docs/keks/{kind}.md lacks:\n{text}");
        }
    }
}

fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
