//! Asks each KEK for all that the plugin will ask of it, under the same deadline and retries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::SignedDuration;

use crate::config::Config;
use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::Dek;
use crate::kek::guard::{DEADLINE, GuardedKek};
use crate::kek::offline::{OfflineKey, PROOF_LASTS};
use crate::kek::{ClusterName, KekCause, KekError, Lineage, WrapContext};
use crate::key_stores::{Advice, KekConfig, TakeoverConfig};
use crate::posture::finding::Finding;
use crate::telemetry::Metrics;

/// AWS refuses what was signed more than five minutes before or after its own time, and tokens live little longer.
const CLOCK_FAILS: SignedDuration = SignedDuration::from_mins(5);
const CLOCK_ADVICE: SignedDuration = SignedDuration::from_mins(1);
/// The cryptoperiod that the vendors' own yearly rotation has.
const ROTATED_WITHIN: SignedDuration = SignedDuration::from_hours(366 * 24);
/// A question that nothing waits for.
const PROFILE_WITHIN: Duration = Duration::from_secs(10);

/// Checks all KEKs, all at once.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let active = config.keks.iter().map(|kek| check_one(&config.cluster, kek, true));
    let retired = config.retired.iter().map(|kek| check_one(&config.cluster, kek, false));
    let sealing = config.sealed_state.iter().map(|sealed| &sealed.kek);
    let sealed = sealing.clone().map(|kek| check_one(&config.cluster, kek, true));
    let (active, retired, sealed) = futures::future::join3(join_all(active), join_all(retired), join_all(sealed)).await;
    let (keks, answers) = (config.keks.iter().chain(&config.retired).chain(sealing), active.into_iter());
    let mut seen = HashMap::new();
    let mut findings = Vec::new();
    for (kek, (lineage, found)) in keks.zip(answers.chain(retired).chain(sealed)) {
        findings.extend(found);
        // Each wrap names its KEK by lineage alone.
        let former = seen.insert(lineage, &kek.name);
        if let Some(former) = former {
            findings.push(Finding::failed(
                format!("KEK {}", kek.name),
                format!("is the same KEK as {former}: their wraps cannot be told apart"),
                "list each KEK once; for failover name another key",
            ));
        }
    }
    if config.keks.iter().all(|kek| kek.offline().is_some()) {
        findings.push(Finding::failed(
            "keks",
            "lists break-glass KEKs alone, with which nothing here can unwrap",
            "add another KEK beside them",
        ));
    }
    findings
}

/// Checks what opens other plugins' data: whether its key store can be asked. Only a Decrypt shows that it opens what is
/// stored, and nothing here is encrypted with another plugin's key.
pub(super) async fn check_takeovers(config: &Config) -> Vec<Finding> {
    join_all(config.takeover.iter().map(check_takeover)).await
}

async fn check_takeover(entry: &TakeoverConfig) -> Finding {
    let (check, started) = (format!("takeover {}", entry.name), Instant::now());
    let probed = tokio::time::timeout(DEADLINE, entry.plugin().key().probe()).await;
    let probed = probed.unwrap_or_else(|_| Err(KekError::unavailable(format!("no answer within {DEADLINE:?}"))));
    let plugin = entry.plugin().plugin();
    let finding = match probed {
        Ok(version) => Finding::ok(check, format!("the key of {plugin} exists, version {version}")),
        // It need not be able to encrypt any more, nor to be looked at.
        Err(error) if matches!(error.cause(), KekCause::Denied | KekCause::UnknownVersion) => {
            Finding::advice(check, error.chain(), "make sure that data that it encrypted can still be opened")
        }
        Err(error) => failed(check, &error),
    };
    finding.after(started.elapsed())
}

async fn check_one(cluster: &ClusterName, config: &KekConfig, wraps: bool) -> (Lineage, Vec<Finding>) {
    let check = |what: &str| format!("KEK {}: {what}", config.name);
    let mut findings: Vec<_> = config
        .advice()
        .into_iter()
        .map(|Advice { finding, advice }| Finding::advice(check("settings"), finding, advice))
        .collect();
    // With the guard that `serve` has: what is too slow for the plugin must be too slow here.
    let kek = GuardedKek::new(config.name.clone(), config.open(), Arc::new(Metrics::new()));
    let started = Instant::now();
    let version = kek.version().await;
    // Whatever else keeps a KEK from telling its version keeps it from wrapping; a permission is one of several.
    let goes_on = version.as_ref().err().is_none_or(|error| error.cause() == KekCause::Denied);
    let finding = match version {
        Ok(version) => Finding::ok(check("version"), version.version),
        Err(error) if wraps => failed(check("version"), &error),
        // A retired KEK need not have an active version; what it wrapped must open.
        Err(error) => Finding::advice(
            check("version"),
            error.chain(),
            "make sure that DEKs that it wrapped can still be unwrapped",
        ),
    };
    findings.push(finding.after(started.elapsed()));
    if let Some(end) = kek.credentials_expire() {
        findings.push(Finding::ok(check("credentials"), format!("good until {end:.0}, renewed before")));
    }
    if goes_on {
        findings.extend(profile(config, check).await);
    }
    if let Some(key) = config.offline() {
        findings.push(private_half(&key, check("private half")));
    } else if wraps && goes_on {
        findings.extend(prove(cluster, &kek, check).await);
    } else if wraps {
        findings.push(Finding::skipped(check("wrap, unwrap"), "not tried, since the version cannot be read"));
    }
    // After all questions: the last answer counts.
    findings.extend(clock(&kek, check("clock"), goes_on));
    (kek.lineage(), findings)
}

/// Logins, tokens and certificates are good for a time by the service's clock. Nothing is said where a service that did
/// not answer was reported already.
fn clock(kek: &GuardedKek, check: String, answered: bool) -> Option<Finding> {
    let Some(clock) = kek.server_clock() else {
        return Some(Finding::ok(check, "local KEK, no server clock to compare"));
    };
    let Some(ahead) = clock.ahead() else {
        let detail = "no response had the service's time";
        return answered.then(|| Finding::skipped(check, detail));
    };
    let (seconds, direction) = (ahead.abs().as_secs(), if ahead.is_positive() { "ahead of" } else { "behind" });
    let detail = format!("this machine's clock is {seconds} s {direction} the service's");
    let fix = "correct this machine's clock (NTP)";
    Some(match ahead.abs() {
        off if off >= CLOCK_FAILS => Finding::failed(check, detail, fix),
        off if off >= CLOCK_ADVICE => Finding::advice(check, detail, fix),
        _ => Finding::ok(check, "agrees with the service's to within a minute"),
    })
}

/// What the key store reports about the key. A key store that does not report it is not at fault: the plugin does not need it.
async fn profile(config: &KekConfig, check: impl Fn(&str) -> String) -> Vec<Finding> {
    let asked = tokio::time::timeout(PROFILE_WITHIN, config.profile()).await;
    let profile = match asked.unwrap_or_else(|_| Err(KekError::unavailable("no answer"))) {
        Ok(profile) => profile,
        Err(error) => return vec![Finding::skipped(check("profile"), error.chain())],
    };
    let advised = |Advice { finding, advice }| Finding::advice(check("profile"), finding, advice);
    let mut findings: Vec<_> = profile.advice.into_iter().map(advised).collect();
    let age = profile.created.map(|created| jiff::Timestamp::now().duration_since(created));
    if let Some(age) = age.filter(|age| *age > ROTATED_WITHIN) {
        let detail = format!("the active version is {} days old", age.as_hours() / 24);
        let fix =
            "rotate it: kube-envelope rotate-keys --rotate-kek, or the vendor's own rotation and then rotate-keys";
        findings.push(Finding::advice(check("age"), detail, fix));
    }
    if let Some(place) = profile.only_in {
        findings.push(Finding::ok(
            check("place"),
            format!("only in {place}: during an outage there, no other place can unwrap"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check("profile"), "the key's settings are as recommended"));
    }
    findings
}

/// What was shown of a key that is not here.
fn private_half(key: &OfflineKey, check: String) -> Finding {
    let fix = "run `kube-envelope break-glass prove` where it is kept, and put the line that it prints under `proven`, on \
               every node";
    let Some(proven) = key.proven else {
        let detail = format!("nobody has shown that there is one for {}", key.recipient);
        return Finding::failed(check, detail, fix);
    };
    let age = jiff::Timestamp::now().duration_since(proven);
    let detail = format!("was last tried {} days ago", age.as_hours() / 24);
    if age > PROOF_LASTS { Finding::advice(check, detail, fix) } else { Finding::ok(check, detail) }
}

/// Wraps a throw-away DEK and unwraps it again.
async fn prove(cluster: &ClusterName, kek: &GuardedKek, check: impl Fn(&str) -> String) -> Vec<Finding> {
    // It protects nothing, and is forgotten at the end.
    let dek = Dek::generate(&mut os_random());
    let context = WrapContext { cluster: cluster.clone(), dek_id: dek_id(&dek) };
    let started = Instant::now();
    let wrapped = match kek.wrap(&dek, &context).await {
        Ok(wrapped) => wrapped,
        Err(error) => {
            let skipped = Finding::skipped(check("unwrap"), "there is no wrapped DEK to unwrap");
            return vec![failed(check("wrap"), &error).after(started.elapsed()), skipped];
        }
    };
    let wrap = Finding::ok(check("wrap"), format!("a wrapped DEK has {} bytes", wrapped.blob.len()));
    let wrap = wrap.after(started.elapsed());
    let started = Instant::now();
    let unwrap = match kek.unwrap(&wrapped, &context).await {
        // A DEK is not compared with the other byte by byte: its id commits to it.
        Ok(unwrapped) if dek_id(&unwrapped.dek) == context.dek_id => {
            Finding::ok(check("unwrap"), "returned the same DEK")
        }
        Ok(_) => Finding::failed(
            check("unwrap"),
            "returned a DEK other than the one that was wrapped",
            "do not use this KEK; check that the right service answers",
        ),
        Err(error) => failed(check("unwrap"), &error),
    };
    vec![wrap, unwrap.after(started.elapsed())]
}

fn failed(check: String, error: &KekError) -> Finding {
    let fix = match error.cause() {
        KekCause::Unavailable => {
            "make the named service or file available; for a service: check address, DNS, firewall, certificate"
        }
        KekCause::Throttled => "wait, or have the quota raised; refreshInterval may be lengthened",
        KekCause::Unauthenticated => "give it credentials that are accepted, and check this machine's clock",
        KekCause::Denied => "grant the named permission, or make the key usable again",
        KekCause::UnknownVersion => "find out who changed the key's versions",
        KekCause::Rejected => "check that the key and the service are the intended ones",
        KekCause::Misconfigured => "change the named setting",
    };
    Finding::failed(check, error.chain(), fix)
}
