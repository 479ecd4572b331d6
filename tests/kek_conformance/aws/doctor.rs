//! `doctor` on AWS: the missing permission by its name, wrong settings, and credentials of every source that needs
//! an environment of its own.

use std::process::{Command, Output};
use std::time::Duration;

use super::fake::{FakeBench, REGION};
use super::from_file;
use crate::behaviours::http_date;
use crate::bench::{Bench, Remote};
use crate::support::fakes::aws::credentials::{EXTERNAL_ID, FILE_TOKEN, ROLE, Sources};
use crate::support::fakes::aws::kms::Key;
use crate::support::{Plugin, wait_until};

/// Runs `doctor` with one KEK, in an environment that holds `variables` alone.
pub async fn doctor(bench: &FakeBench, item: &str, variables: &[(&str, String)]) -> (i32, String) {
    let folder = bench.folder();
    let at = folder.display();
    let text = format!(
        "cluster: it\nsocket: {at}/run/kms.sock\nstateDir: {at}/state\nhealth: {{ listen: '127.0.0.1:0' }}\nkeks: [{item}]\n"
    );
    let config = folder.join("config.yaml");
    std::fs::write(&config, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
    command.arg("doctor").arg("--config").arg(config).env_clear().envs(variables.iter().cloned()).env("HOME", folder);
    let run = tokio::task::spawn_blocking(move || command.output());
    let Output { status, stdout, stderr } = run.await.expect("not cancelled").expect("the command runs");
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().expect("an exit code"), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_works_passes() {
    let bench = FakeBench::start().await;
    let (code, text) = doctor(&bench, &bench.item(), &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(bench.kms.state().aliases["it"].as_str()), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_missing_permission_is_called_by_its_name() {
    for (permission, step) in [("DescribeKey", "version"), ("Encrypt", "wrap"), ("Decrypt", "unwrap")] {
        let bench = FakeBench::start().await;
        bench.change_key(|key: &mut Key| key.denied = vec![permission]);
        let (code, text) = doctor(&bench, &bench.item(), &[]).await;
        assert_eq!(code, 1, "{text}");
        let line = text.lines().find(|line| line.trim().starts_with(&format!("KEK it: {step} "))).expect(&text);
        assert!(line.contains("FAILED") && line.contains(&format!("kms:{permission}")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_account_is_advised_against_and_one_without_region_fails() {
    let bench = FakeBench::start().await;
    let item = bench.item_of("alias/it");
    let (code, text) = doctor(&bench, &item, &[]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no Region for alias/it; write the key's ARN"), "{text}");
    let (code, text) = doctor(&bench, &item, &[("AWS_REGION", REGION.into())]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("tells no account") && text.contains("write the key's ARN"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_told_and_fails_from_five_minutes_on() {
    let bench = FakeBench::start().await;
    let now = jiff::Timestamp::now();
    for (seconds, code, result, detail) in [
        (0, 0, " ok ", "agrees with the service's to within a minute"),
        (90, 0, " advice ", "s behind the service's"),
        (-400, 1, " FAILED ", "s ahead of the service's"),
    ] {
        bench.faults().set_date(http_date(now + jiff::SignedDuration::from_secs(seconds)));
        let (ended, text) = doctor(&bench, &bench.item(), &[]).await;
        assert_eq!(ended, code, "{text}");
        let line = text.lines().find(|line| line.trim().starts_with("KEK it: clock ")).expect(&text);
        assert!(line.contains(result) && line.contains(detail), "{text}");
        assert_eq!(text.contains("KEK it: clock: correct this machine's clock (NTP)"), seconds != 0, "{text}");
    }
}

async fn assert_works(bench: &FakeBench, item: &str, variables: &[(&str, String)]) {
    let (code, text) = doctor(bench, item, variables).await;
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_environment_and_their_lack_is_named() {
    let bench = FakeBench::start().await;
    let secret = bench.kms.state().users["AKIDFIRST"].secret.clone();
    let off = ("AWS_EC2_METADATA_DISABLED", String::from("true"));
    let variables = [("AWS_ACCESS_KEY_ID", "AKIDFIRST".into()), ("AWS_SECRET_ACCESS_KEY", secret), off.clone()];
    assert_works(&bench, &bench.item_with(""), &variables).await;
    let (code, text) = doctor(&bench, &bench.item_with(""), &[off]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("unauthenticated: no AWS credentials from environment"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_the_instance_metadata() {
    let bench = FakeBench::start().await;
    let sources = Sources::start(&bench.kms).await;
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", sources.url())];
    let (code, text) = doctor(&bench, &bench.item_with(""), &variables).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("good until "), "their end is told: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_a_role_that_is_taken_on() {
    let bench = FakeBench::start().await;
    let sources = Sources::start(&bench.kms).await;
    let item = |external_id: &str| {
        let file = from_file(&bench.folder().join("credentials"));
        bench.item_with(&format!("{file}, assumeRole: {{ roleArn: \"{ROLE}\", externalId: {external_id} }}"))
    };
    let variables = [("AWS_ENDPOINT_URL_STS", sources.url())];
    assert_works(&bench, &item(EXTERNAL_ID), &variables).await;
    let (code, text) = doctor(&bench, &item("guessed"), &variables).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("unauthenticated") && text.contains("AccessDenied"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_come_from_a_web_identity_and_from_a_container_with_the_advice_that_both_need_an_api_server() {
    let bench = FakeBench::start().await;
    let sources = Sources::start(&bench.kms).await;
    let token = bench.folder().join("token");
    std::fs::write(&token, FILE_TOKEN).expect("written");
    let token = token.display().to_string();
    let web_identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone()),
        ("AWS_ROLE_ARN", ROLE.into()),
        ("AWS_ENDPOINT_URL_STS", sources.url()),
    ];
    let container = [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", sources.url())),
    ];
    for variables in [web_identity.as_slice(), container.as_slice()] {
        let (code, text) = doctor(&bench, &bench.item_with(""), variables).await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("use the instance's role"), "{text}");
    }
}

/// Field case N16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_without_credentials_says_so_once_and_in_its_own_words() {
    let bench = FakeBench::start().await;
    let home = bench.folder().display().to_string();
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"), ("HOME", home.as_str())];
    let plugin = Plugin::spawn_with(&format!("cluster: it\nkeks: [{}]", bench.item_with("")), &variables);
    let told = "AWS credentials cannot be loaded";
    wait_until("it is told", Duration::from_secs(30), async || plugin.process.log().contains(told)).await;
    // Long enough for several attempts.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = plugin.process.log();
    assert_eq!(log.matches(told).count(), 1, "{log}");
    let is_foreign = |line: &&str| line.contains(" WARN ") && !line.contains(" kube_envelope::");
    assert_eq!(log.lines().filter(is_foreign).count(), 0, "{log}");
}

/// One line of our own words each, which names the file, the setting or the hop limit; none of the SDK's dumps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_cannot_be_had_are_told_in_one_line_with_what_to_change() {
    let bench = FakeBench::start().await;
    let profiles = bench.folder().join("config");
    let text = "[profile process]\ncredential_process = /bin/true\n\
                [profile person]\nsso_session = s\nsso_account_id = 111122223333\nsso_role_name = r\n\
                [sso-session s]\nsso_region = eu-central-1\nsso_start_url = https://sso.invalid/start\n";
    std::fs::write(&profiles, text).expect("written");
    let profiles = ("AWS_CONFIG_FILE", profiles.display().to_string());
    let no_metadata = ("AWS_EC2_METADATA_DISABLED", String::from("true"));
    let token = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/nosuch".into()), ("AWS_ROLE_ARN", ROLE.into()), no_metadata.clone()];
    let refusing = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1".into())];
    for (settings, variables, words) in [
        (
            ", profile: process",
            &[profiles.clone(), no_metadata.clone()][..],
            "write its words as the list credentialProcess",
        ),
        (", profile: person", &[profiles, no_metadata], "export-credentials"),
        ("", &token, "/nosuch"),
        ("", &refusing, "HttpPutResponseHopLimit 2"),
    ] {
        let (code, text) = doctor(&bench, &bench.item_with(settings), variables).await;
        assert_eq!(code, 1, "{settings}: {text}");
        let line = text.lines().find(|line| line.trim().starts_with("KEK it: version ")).expect(&text);
        assert!(line.contains("FAILED") && line.contains(words), "{settings}: {text}");
        assert!(!text.contains(" { ") && !text.contains("Some("), "{settings}: {text}");
    }
}
