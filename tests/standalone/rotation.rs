//! What `rotate-keys` answers without any server.

use crate::run;
use crate::support::KeyringFile;
use crate::support::plugin::encryption_configuration;

#[test]
fn a_rate_at_which_nothing_gets_done_is_refused() {
    for rate in ["0", "-1", "nan", "inf", "0.001", "many"] {
        let ran = run(&["rotate-keys", "--plan", &format!("--qps={rate}")]);
        assert_eq!(ran.code, Some(2), "{rate}: {}", ran.error);
        assert!(ran.error.contains("--qps"), "{rate}: {}", ran.error);
    }
}

#[test]
fn the_least_rights_are_printed_without_a_cluster_where_the_configuration_names_its_resources() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("encryption.yaml");
    let kms = "{kms: {apiVersion: v2, name: p, endpoint: \"unix:///run/p.sock\"}}";
    let flag = format!("--encryption-config={}", file.display());
    let arguments = ["rotate-keys", "--print-rbac", &flag, "--kubeconfig=/nonexistent"];
    std::fs::write(&file, encryption_configuration(&["secrets", "widgets.example.com"], &[kms, "{identity: {}}"]))
        .unwrap();
    let ran = run(&arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.error);
    assert!(ran.out.contains("apiGroups: [\"example.com\"]\n  resources: [widgets]"), "{}", ran.out);
    assert!(ran.out.contains("customresourcedefinitions"), "{}", ran.out);
    std::fs::write(&file, encryption_configuration(&["*.*"], &[kms, "{identity: {}}"])).unwrap();
    let ran = run(&arguments);
    assert_eq!(ran.code, Some(2), "what a wildcard stands for only a cluster knows: {}", ran.out);
}

#[test]
fn a_verdict_names_the_vendors_own_command_for_each_kind_of_kek() {
    use kube_envelope::key_stores::{Disabling, KekItem};
    let key = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let aws = format!("{{name: k, awsKms: {{key: {key}}}}}");
    let material = "1234abcd-12ab-34cd-56ef-1234567890ab/aa";
    for (settings, version, active, expected) in [
        (
            "{name: k, keyring: {file: /etc/kube-envelope/keyring.json}}",
            "v1",
            "v2",
            "cp -p /etc/kube-envelope/keyring.json /etc/kube-envelope/keyring.json.before-v1 && kube-envelope keyring destroy \
             /etc/kube-envelope/keyring.json v1 --yes",
        ),
        #[cfg(feature = "aws")]
        (
            &aws,
            "0000abcd-12ab-34cd-56ef-1234567890ab@1700000000000",
            material,
            "aws kms disable-key --key-id 0000abcd-12ab-34cd-56ef-1234567890ab --region eu-central-1",
        ),
        #[cfg(feature = "aws")]
        (&aws, "1234abcd-12ab-34cd-56ef-1234567890ab/bb", material, "there is nothing to do"),
        #[cfg(feature = "gcp")]
        (
            "{name: k, gcpKms: {key: projects/p/locations/l/keyRings/r/cryptoKeys/c}}",
            "3@2026-01-31T12:00:00Z",
            "4@2026-02-28T12:00:00Z",
            "gcloud kms keys versions disable 3 --key c --keyring r --location l --project p",
        ),
        #[cfg(feature = "azure")]
        (
            "{name: k, azureKeyVault: {vault: 'https://v.vault.azure.net', key: c, credential: {managedIdentity: {}}}}",
            "0123",
            "4567",
            "az keyvault key set-attributes --id https://v.vault.azure.net/keys/c/0123 --enabled false",
        ),
        #[cfg(feature = "transit")]
        (
            "{name: k, transit: {addresses: ['https://v:8200'], key: c, auth: {tokenFile: /t}}}",
            "3@1700000000",
            "4@1800000000",
            "vault write transit/keys/c/config min_decryption_version=4",
        ),
    ] {
        let item: KekItem = serde_saphyr::from_str(settings).unwrap();
        let (Disabling::Command(said) | Disabling::ByHand(said)) = item.parse().unwrap().disabling(version, active);
        assert!(said.contains(expected), "{settings}: {said}");
    }
}

#[test]
fn a_time_that_nobody_can_wait_for_is_a_usage_error() {
    for flag in ["--settle", "--adoption-timeout", "--agreement-interval", "--request-timeout"] {
        let ran = run(&["rotate-keys", flag, "100000years"]);
        assert_eq!(ran.code, Some(2));
        assert!(ran.error.contains("at most 365days"), "{flag}: {}", ran.error);
    }
}

/// The documents of the shipped CronJob.
fn cron_job() -> Vec<serde_json::Value> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/rotate-keys-cronjob.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

#[test]
fn the_cron_job_has_the_least_rights_that_the_command_prints() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/encryption-configuration.yaml");
    let (file, etcd) = (format!("--encryption-config={file}"), "--etcd=http://127.0.0.1:1");
    let printed = run(&["rotate-keys", "--print-rbac", &file, etcd, "--kubeconfig=/nonexistent"]);
    assert_eq!(printed.code, Some(0), "{}", printed.error);
    let roles = |documents: Vec<serde_json::Value>| -> Vec<_> {
        documents.into_iter().filter(|one| one["kind"].as_str().unwrap().ends_with("Role")).collect()
    };
    let shipped = roles(cron_job());
    assert_eq!(shipped.len(), 4);
    let printed = printed.out.split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    assert_eq!(shipped, roles(printed));
}

#[test]
fn a_young_version_is_not_due_and_only_an_unattended_run_calls_that_success() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, keyring.settings("test")).unwrap();
    let (config, journal) =
        (format!("--config={}", config.display()), format!("--journal={}", folder.path().join("j.json").display()));
    let due = |more: &[&str]| run(&[&["rotate-keys", "--kubeconfig=/nonexistent", &config, &journal], more].concat());
    let ran = due(&["--rotate-kek", "--if-older-than=90d"]);
    assert_eq!(ran.code, Some(11), "{}", ran.error);
    assert!(ran.out.contains("Nothing is due: no version is older than 90d."), "{}", ran.out);
    assert_eq!(due(&["--rotate-kek", "--if-older-than=90d", "--unattended"]).code, Some(0));
    let ran = due(&["--rotate-kek", "--if-older-than=0s", "--unattended"]);
    assert_eq!(ran.code, Some(2), "it is due, and there is no cluster: {}", ran.error);
    assert!(ran.error.contains("more than 0s ago") && ran.error.contains("cannot reach a cluster"), "{}", ran.error);
    assert!(!folder.path().join("j.json").exists());
    assert_eq!(due(&["--if-older-than=90d"]).code, Some(2), "only with --rotate-kek");
    assert_eq!(due(&["--rotate-kek", "--unattended"]).code, Some(2), "only with --if-older-than");
}
