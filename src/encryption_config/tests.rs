//! The corpus: files that API servers take, and files that they refuse.

use super::*;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";

fn with_kms(kms: &str) -> String {
    format!("{HEAD}resources:\n- resources: [secrets]\n  providers:\n  - kms: {{{kms}}}\n  - identity: {{}}\n")
}

fn kms(text: &str) -> Kms {
    EncryptionConfiguration::parse(text).unwrap().kms().next().unwrap().clone()
}

fn refusal(text: &str) -> String {
    EncryptionConfiguration::parse(text).unwrap_err().to_string()
}

const V2: &str = "apiVersion: v2, name: a, endpoint: 'unix:///run/kms.sock'";

#[test]
fn a_usual_file_is_read_whole() {
    let read = EncryptionConfiguration::parse(&with_kms(V2)).unwrap();
    let kms = Kms {
        name: "a".into(),
        version: KmsVersion::V2,
        endpoint: Endpoint::Path("/run/kms.sock".into()),
        timeout: Duration::from_secs(3),
    };
    assert_eq!(read.entries[0].resources, ["secrets"]);
    assert_eq!(read.entries[0].providers, [Provider::Kms(kms), Provider::Identity]);
}

#[test]
fn only_the_first_document_counts() {
    let good = with_kms(V2);
    for text in
        [format!("{good}---\n"), format!("---\n{good}---\nnot: [yaml"), format!("# a\n\n--- # b\n{good}...\n}}")]
    {
        assert_eq!(kms(&text).name, *"a", "{text}");
    }
}

#[test]
fn unknown_fields_and_the_other_registered_kind_are_taken() {
    let text = with_kms(&format!("{V2}, more: 1")).replace(HEAD, "apiVersion: v1\nkind: EncryptionConfig\nmore: []\n");
    assert_eq!(kms(&text).name, *"a");
}

#[test]
fn a_provider_without_api_version_is_kms_v1_and_may_have_a_cache_size() {
    let read = kms(&with_kms("name: 'a:b', endpoint: 'unix:///run/kms.sock', cachesize: 100"));
    assert_eq!((read.version, read.name.as_str()), (KmsVersion::V1, "a:b"));
}

#[test]
fn endpoints_are_urls() {
    for (text, read) in [
        ("unix:///run/a.sock", Endpoint::Path("/run/a.sock".into())),
        ("unix:/run/a.sock", Endpoint::Path("/run/a.sock".into())),
        ("unix://run/a.sock", Endpoint::Path("/a.sock".into())),
        ("unix:///@a", Endpoint::Abstract("a".into())),
    ] {
        assert_eq!(Endpoint::parse(text), Ok(read), "{text}");
    }
    for text in ["", "/run/a.sock", "tcp://127.0.0.1:1", "unix:a.sock", "unix://a.sock"] {
        assert!(Endpoint::parse(text).is_err(), "{text}");
    }
    let endpoint = Endpoint::parse("unix:///var/run//kube-envelope/./kms.sock").unwrap();
    assert!(endpoint.leads_to(Path::new("/run/kube-envelope/kms.sock")));
    assert!(!endpoint.leads_to(Path::new("/run/kube-envelope/other.sock")));
}

#[test]
fn timeouts_are_durations_of_go() {
    for (text, millis) in [("3s", 3_000), ("1.5s", 1_500), ("1m0.5s", 60_500), ("250ms", 250), ("1h", 3_600_000)] {
        let read = kms(&with_kms(&format!("{V2}, timeout: {text}")));
        assert_eq!(read.timeout, Duration::from_millis(millis), "{text}");
    }
    for text in ["3", "3sec", "-3s", "''", "0s", "s", "1..5s"] {
        assert!(
            refusal(&with_kms(&format!("{V2}, timeout: {text}"))).contains(".timeout: must be a duration"),
            "{text}"
        );
    }
}

#[test]
fn what_the_api_server_refuses_is_refused_with_its_place() {
    for (text, problem) in [
        (with_kms(&format!("{V2}, cachesize: 1")), "providers[0].kms.cachesize"),
        (with_kms(&V2.replace("name: a", "name: 'a:b'")), "contains a colon"),
        (with_kms(&V2.replace("name: a", "name: ''")), "name: is missing"),
        (with_kms(&V2.replace("v2", "v3")), "\"v3\" is unknown"),
        (with_kms(&V2.replace("unix://", "http://")), "is not a unix socket"),
        (with_kms(V2).replace("[secrets]", "[secrets, secrets]"), "is listed twice"),
        (with_kms(V2).replace("[secrets]", "[secrets, '*.*']"), "which includes it"),
        (with_kms(V2).replace("[secrets]", "['*']"), "is ambiguous"),
        (with_kms(V2).replace("[secrets]", "[Secrets]"), "has capital letters"),
        (with_kms(V2).replace("[secrets]", "[events.events.k8s.io]"), "write events"),
        (with_kms(V2).replace("[secrets]", "[]"), "resources[0].resources: lists nothing"),
        (with_kms(V2).replace("identity: {}", "other: {}"), "must name exactly one of"),
        (with_kms(V2).replace("EncryptionConfiguration", "EncryptionConfig"), "are not an EncryptionConfiguration"),
        (format!("{HEAD}resources: []\n"), "resources: lists nothing"),
        (format!("{HEAD}resources: {{}}\n"), "not an EncryptionConfiguration"),
        (format!("{0}- resources: [configmaps]\n  providers: [{{kms: {{{V2}}}}}]\n", with_kms(V2)), "used twice"),
    ] {
        let refused = refusal(&text);
        assert!(refused.contains(problem), "{refused:?} lacks {problem:?}");
    }
}

#[test]
fn the_first_entry_that_names_a_resource_decides() {
    let text = format!(
        "{HEAD}resources:\n- resources: [secrets, widgets.example.com]\n  providers: [{{kms: {{{V2}}}}}]\n- resources: \
         ['*.apps']\n  providers: [{{aescbc: {{keys: []}}}}]\n- resources: ['*.']\n  providers: [{{identity: {{}}}}]\n"
    );
    let read = EncryptionConfiguration::parse(&text).unwrap();
    let writer = |plural, group| read.entry(plural, group).and_then(Entry::writer);
    assert_eq!(writer("secrets", "").and_then(Provider::kms).unwrap().name, *"a");
    assert_eq!(writer("widgets", "example.com").and_then(Provider::kms).unwrap().name, *"a");
    assert!(matches!(writer("deployments", "apps"), Some(Provider::LocalKeys(keys)) if keys.kind == "aescbc"));
    assert_eq!(writer("configmaps", ""), Some(&Provider::Identity));
    assert_eq!(writer("widgets", "other.example.com"), None);
}

#[test]
fn wildcards_name_a_group_or_everything() {
    assert!(matches("*.*", "x", "g"));
    assert!(matches("*.", "x", "") && !matches("*.", "x", "g"));
    assert!(matches("*.g.io", "x", "g.io") && !matches("*.g.io", "x", "h.io"));
    assert!(matches("secrets", "secrets", "") && !matches("secrets", "secrets", "g"));
}
