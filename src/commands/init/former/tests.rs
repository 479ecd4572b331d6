//! What becomes of a former configuration, entry by entry.

use serde_json::json;

use super::*;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n";

fn former(entries: &str) -> Former {
    Former::parse(Path::new("f"), &format!("{HEAD}{entries}")).unwrap_or_else(|error| panic!("{error:#}"))
}

fn plugin() -> Value {
    json!({"kms": {"apiVersion": "v2", "name": "kube-envelope", "endpoint": "unix:///run/kube-envelope/kms.sock"}})
}

fn extended(former: &Former, wanted: &[&str], first: First) -> Value {
    let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    let resources = former.extended(&wanted, &plugin(), first).unwrap_or_else(|error| panic!("{error:#}"));
    // What is written must be what an API server reads.
    file("", &resources).unwrap_or_else(|error| panic!("{error:#}"));
    resources
}

fn kinds(entry: &Value) -> Vec<String> {
    let providers = entry["providers"].as_array().unwrap();
    providers.iter().map(|provider| provider.as_object().unwrap().keys().next().unwrap().clone()).collect()
}

#[test]
fn a_cluster_in_clear_gets_the_plugin_and_identity_behind_it() {
    let resources = extended(&Former::default(), &["secrets", "configmaps"], First::Plugin);
    assert_eq!(resources[0]["resources"], json!(["secrets", "configmaps"]));
    assert_eq!(kinds(&resources[0]), ["kms", "identity"]);
    assert_eq!(kinds(&extended(&Former::default(), &["secrets"], First::Former)[0]), ["identity", "kms"]);
}

#[test]
fn the_former_key_stays_behind_the_plugin_and_its_resources_stay_encrypted() {
    let entries = "- resources: [secrets, widgets.example.com]\n  providers:\n  - aescbc: {keys: [{name: aescbckey, \
                   secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n  - identity: {}\n";
    let former = former(entries);
    assert_eq!((former.encrypts(), former.names()), (true, vec!["aescbc".to_owned(), "identity".to_owned()]));
    let resources = extended(&former, &["secrets", "configmaps"], First::Plugin);
    assert_eq!(resources[0]["resources"], json!(["secrets", "configmaps", "widgets.example.com"]));
    assert_eq!(kinds(&resources[0]), ["kms", "aescbc", "identity"]);
    assert_eq!(resources[0]["providers"][1]["aescbc"]["keys"][0]["secret"], "c2VjcmV0IGlzIHNlY3VyZQ==");
    assert_eq!(kinds(&extended(&former, &["secrets"], First::Former)[0]), ["aescbc", "kms", "identity"]);
}

#[test]
fn several_entries_become_one_since_a_provider_may_be_listed_once() {
    let entries = "- resources: [secrets]\n  providers: [{aesgcm: {keys: [{name: a, secret: AA==}]}}]\n\
                   - resources: [configmaps]\n  providers: [{secretbox: {keys: [{name: b, secret: AA==}]}}, {identity: {}}]\n";
    let resources = extended(&former(entries), &["secrets"], First::Plugin);
    assert_eq!(resources.as_array().unwrap().len(), 1);
    assert_eq!(resources[0]["resources"], json!(["secrets", "configmaps"]));
    assert_eq!(kinds(&resources[0]), ["kms", "aesgcm", "secretbox", "identity"]);
}

#[test]
fn what_was_exempted_before_a_wildcard_stays_exempted() {
    let entries = "- resources: [events]\n  providers: [{identity: {}}]\n\
                   - resources: ['*.*']\n  providers: [{secretbox: {keys: [{name: b, secret: AA==}]}}]\n";
    let resources = extended(&former(entries), &["secrets", "configmaps"], First::Plugin);
    assert_eq!(resources[0]["resources"], json!(["events"]));
    assert_eq!(resources[1]["resources"], json!(["*.*"]), "a wildcard includes what was wanted");
}

#[test]
fn an_order_that_one_entry_cannot_keep_is_refused() {
    let entries = "- resources: [secrets]\n  providers: [{aescbc: {keys: [{name: a, secret: AA==}]}}]\n\
                   - resources: ['*.']\n  providers: [{identity: {}}]\n\
                   - resources: ['*.*']\n  providers: [{secretbox: {keys: [{name: b, secret: AA==}]}}]\n";
    let error = former(entries).extended(&["secrets".into()], &plugin(), First::Plugin).unwrap_err();
    assert!(error.to_string().contains("by hand"), "{error}");
}

#[test]
fn the_plugins_own_socket_or_name_is_not_listed_twice() {
    let kms = |name: &str, socket: &str| {
        former(&format!(
            "- resources: [secrets]\n  providers: [{{kms: {{apiVersion: v2, name: {name}, endpoint: 'unix://{socket}'}}}}]\n"
        ))
    };
    let refused =
        |former: &Former| former.extended(&["secrets".into()], &plugin(), First::Plugin).unwrap_err().to_string();
    assert!(refused(&kms("other", "/run/kube-envelope/kms.sock")).contains("already"));
    assert!(refused(&kms("kube-envelope", "/run/other.sock")).contains("--provider-name"));
}

#[test]
fn a_talos_machine_configuration_gives_the_key_that_talos_names_key2() {
    let text = "version: v1alpha1\ncluster:\n  secretboxEncryptionSecret: z01mye6j16bspJYtTB/5SFX8j7Ph4JXxM2Xuu4vsBPM=\n---\nkind: Other\n";
    let former = Former::parse(Path::new("f"), text).unwrap();
    let resources = extended(&former, &["secrets"], First::Plugin);
    assert_eq!(kinds(&resources[0]), ["kms", "secretbox", "identity"]);
    assert_eq!(resources[0]["providers"][1]["secretbox"]["keys"][0]["name"], "key2");
}
