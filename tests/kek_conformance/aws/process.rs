//! Credentials that a program prints: asked for once for all calls, asked for again when they are refused, and got from
//! within the plugin's sandbox as well.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube_envelope::kek::KekCause;
use serde_json::json;

use super::fake::FakeBench;
use crate::bench::{Authenticates, Bench, config};
use crate::support::fakes::aws::credentials::{EXTERNAL_ID, ROLE, Sources};
use crate::support::plugin::SANDBOX;
use crate::support::{Plugin, wait_until};

/// A program that prints the file that its argument names.
struct Helper<'a> {
    bench: &'a FakeBench,
    program: PathBuf,
    file: PathBuf,
}

impl<'a> Helper<'a> {
    fn new(bench: &'a FakeBench) -> Self {
        let [program, file] = ["helper", "printed"].map(|name| bench.folder().join(name));
        let calls = bench.folder().join("calls").display().to_string();
        // Where it may not write, as in the sandbox, it prints all the same.
        let script =
            format!("#!/bin/sh\necho call >>'{calls}' 2>/dev/null\nprintenv VAULT_TOKEN >>'{calls}'\ncat \"$1\"\n");
        std::fs::write(&program, script).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("set");
        let helper = Self { bench, program, file };
        helper.prints("AKIDFIRST");
        helper
    }

    /// Credentials of that user, for an hour.
    fn prints(&self, user: &str) {
        let secret = self.bench.kms.state().users[user].secret.clone();
        let end = Timestamp::now() + SignedDuration::from_hours(1);
        let printed =
            json!({"Version": 1, "AccessKeyId": user, "SecretAccessKey": secret, "Expiration": end.to_string()});
        std::fs::write(&self.file, printed.to_string()).expect("written");
    }

    fn item(&self, more: &str) -> String {
        let words = format!("[{}, {}]", self.program.display(), self.file.display());
        self.bench.item_with(&format!(", credentialProcess: {words}{more}"))
    }

    fn calls(&self) -> usize {
        std::fs::read_to_string(self.bench.folder().join("calls")).unwrap_or_default().lines().count()
    }
}

#[tokio::test]
async fn a_program_is_asked_once_for_all_calls_and_again_when_what_it_printed_is_refused() {
    let bench = FakeBench::start().await;
    let helper = Helper::new(&bench);
    let kek = config(&helper.item("")).open();
    for _ in 0..10 {
        kek.version().await.expect("version");
    }
    assert_eq!(helper.calls(), 1);
    let end = kek.credentials_expire().expect("their end is known");
    assert!(end > Timestamp::now() + SignedDuration::from_mins(50), "{end}");

    bench.expire_credentials().await;
    helper.prints("AKIDSECOND");
    kek.version().await.expect("with other credentials at once");
    assert_eq!(helper.calls(), 2);
    bench.revoke_credentials().await;
    assert_eq!(kek.version().await.expect_err("refused").cause(), KekCause::Unauthenticated);
}

#[tokio::test]
async fn a_program_that_fails_makes_the_kek_unavailable_until_it_prints_again() {
    let bench = FakeBench::start().await;
    let helper = Helper::new(&bench);
    std::fs::remove_file(&helper.file).expect("removed");
    let kek = config(&helper.item("")).open();
    let error = kek.version().await.expect_err("nothing is printed");
    assert_eq!(error.cause(), KekCause::Unavailable, "{}", error.chain());
    let name = helper.program.display().to_string();
    assert!(error.chain().contains(&name) && error.chain().contains("exit status: 1"), "{}", error.chain());
    helper.prints("AKIDFIRST");
    wait_until("it works", Duration::from_secs(10), async || kek.version().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_in_its_sandbox_starts_the_program_and_logs_nothing_of_what_it_prints() {
    let bench = FakeBench::start().await;
    let helper = Helper::new(&bench);
    let mut plugin = Plugin::spawn(&format!("cluster: it\nkeks: [{}]", helper.item("")));
    plugin.kill();
    let text = std::fs::read_to_string(plugin.config_file()).expect("read");
    std::fs::write(plugin.config_file(), text.replace(SANDBOX, "")).expect("written");
    plugin.restart().await;
    plugin.wait_healthy().await;
    let secret = bench.kms.state().users["AKIDFIRST"].secret.clone();
    let log = plugin.process.log();
    assert!(!log.contains(&secret) && !log.contains("AKIDFIRST"), "{log}");
    assert!(!log.contains("not restricted"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_taken_on_with_what_a_program_prints_and_a_file_that_others_may_write_fails() {
    let bench = FakeBench::start().await;
    let sources = Sources::start(&bench.kms).await;
    let helper = Helper::new(&bench);
    let item = helper.item(&format!(", assumeRole: {{ roleArn: \"{ROLE}\", externalId: {EXTERNAL_ID} }}"));
    let variables = [("AWS_ENDPOINT_URL_STS", sources.url()), ("VAULT_TOKEN", "of-another-kek".into())];
    let (code, text) = super::doctor::doctor(&bench, &item, &variables).await;
    assert!(code == 0 && !text.contains("chmod"), "{text}");
    let seen = std::fs::read_to_string(bench.folder().join("calls")).expect("it was started");
    assert!(seen.contains("call") && !seen.contains("of-another-kek"), "{seen}");
    std::fs::set_permissions(&helper.program, std::fs::Permissions::from_mode(0o722)).expect("set");
    let (code, text) = super::doctor::doctor(&bench, &item, &variables).await;
    assert!(code == 1 && text.contains(&format!("chmod go-w {}", helper.program.display())), "{text}");
}
