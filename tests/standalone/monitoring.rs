//! Rules, dashboard and reference against what a plugin serves: nothing in them is about a metric that does not exist.
//! What the rules do is tested by promtool (scripts/e2e rules).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Written by `verify --metrics-file`, with and without `--watch`, whose own tests name them.
const OF_VERIFY: &[&str] = &[
    "kube_envelope_verify_exit_code",
    "kube_envelope_verify_last_run_timestamp_seconds",
    "kube_envelope_verify_last_yes_timestamp_seconds",
    "kube_envelope_verify_leftovers",
    "kube_envelope_verify_looked_at",
    "kube_envelope_watch_api_servers_agree",
    "kube_envelope_watch_api_servers_asked_timestamp_seconds",
    "kube_envelope_watch_censuses_total",
    "kube_envelope_watch_complete_timestamp_seconds",
    "kube_envelope_watch_leftovers",
    "kube_envelope_watch_old_key_write_timestamp_seconds",
    "kube_envelope_watch_old_key_writes_total",
    "kube_envelope_watch_revision",
    "kube_envelope_watch_updated_timestamp_seconds",
    "kube_envelope_watch_values",
];

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Every word of the text that begins as our metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("kube_envelope_")).map(str::to_owned).collect()
}

/// The names that the plugin registers. A family that has no sample yet is not in `/metrics`, so they are read where they
/// are registered.
fn registered() -> Vec<String> {
    let source = file("src/telemetry/metrics.rs");
    let quoted = |text: &str| text.split('"').nth(1).unwrap_or_default().to_owned();
    let registered: Vec<_> =
        source.match_indices(".register(").map(|(at, call)| quoted(&source[at + call.len()..])).collect();
    assert!(registered.len() > 10, "{registered:?}");
    registered
}

/// The series of a plugin, as Prometheus calls them: of each registered name, with the endings that its kind may have.
fn series() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = OF_VERIFY.iter().map(ToString::to_string).collect();
    for name in registered() {
        names.extend(
            ["", "_total", "_bucket", "_sum", "_count", "_info"].map(|end| format!("kube_envelope_{name}{end}")),
        );
    }
    names
}

#[test]
fn every_metric_of_rules_and_dashboard_exists() {
    let series = series();
    for name in ["rules.yaml", "rules-test.yaml", "dashboard.json"] {
        let unknown: Vec<_> =
            named(&file(&format!("manifests/monitoring/{name}"))).difference(&series).cloned().collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
    }
}

#[test]
fn the_operators_rules_are_the_plain_ones() {
    let plain: Value = serde_saphyr::from_str(&file("manifests/monitoring/rules.yaml")).unwrap();
    let operator: Value = serde_saphyr::from_str(&file("manifests/monitoring/prometheus-rule.yaml")).unwrap();
    assert_eq!(operator["kind"], "PrometheusRule");
    assert_eq!(operator["spec"]["groups"], plain["groups"]);
}

#[test]
fn every_alert_says_what_to_do_and_has_a_unit_test_that_fires_and_one_that_does_not() {
    let rules: Value = serde_saphyr::from_str(&file("manifests/monitoring/rules.yaml")).unwrap();
    let tests: Value = serde_saphyr::from_str(&file("manifests/monitoring/rules-test.yaml")).unwrap();
    let document = file("docs/monitoring.md");
    let cases: Vec<_> = tests["tests"].as_array().unwrap().iter().map(|test| &test["alert_rule_test"][0]).collect();
    let alerts = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(alerts.len() >= 10);
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(alert["annotations"]["action"].is_string(), "{name}");
        let fires = |fires: bool| {
            cases
                .iter()
                .any(|case| case["alertname"] == name && case["exp_alerts"].as_array().unwrap().is_empty() != fires)
        };
        assert!(fires(true) && fires(false), "{name} has no test that fires, or none that stays silent");
        assert!(document.contains(&format!("`{name}`")), "docs/monitoring.md lacks {name}");
    }
}

#[test]
fn the_reference_names_every_metric() {
    let document = named(&file("docs/monitoring.md"));
    let is_named = |name: &String| {
        let mut ends = ["", "_total", "_info"].iter();
        ends.any(|end| document.contains(&format!("kube_envelope_{name}{end}")))
    };
    let missing: Vec<_> = registered().into_iter().filter(|name| !is_named(name)).collect();
    assert!(missing.is_empty(), "docs/monitoring.md lacks {missing:?}");
}

#[test]
fn the_reference_names_no_metric_that_does_not_exist() {
    let document = named(&file("docs/monitoring.md"));
    let plain = |name: &String| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let known: BTreeSet<_> = series().iter().map(plain).collect();
    // rotate-keys' own are named by what follows this.
    let unknown: Vec<_> = document.difference(&known).filter(|name| *name != "kube_envelope_rotation").collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(document.len() > 15, "{document:?}");
}

/// The messages of the plugin's log events in the source, each with its level; `…` in the place of what is put in.
fn events() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut places: Vec<_> = ["plugin", "key_stores", "dek", "kek", "telemetry", "commands/serve"]
        .iter()
        .flat_map(|name| [format!("src/{name}.rs"), format!("src/{name}")])
        .map(|place| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(place))
        .collect();
    while let Some(place) = places.pop() {
        if place.is_dir() {
            places.extend(std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = std::fs::read_to_string(&place) {
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
            for level in ["error", "warn", "info"] {
                let call = format!("{level}!(");
                let calls = code.match_indices(&call).filter(|(at, _)| !code[..*at].ends_with('_'));
                found.extend(
                    calls.filter_map(|(at, call)| Some((level.to_uppercase(), last_text(&code[at + call.len()..])?))),
                );
            }
        }
    }
    found
}

/// The last text among the arguments of a call.
fn last_text(arguments: &str) -> Option<String> {
    let (mut depth, mut text, mut last, mut is_placeholder) = (0_i32, None::<String>, None, false);
    for c in arguments.chars() {
        match (c, &mut text) {
            ('"', Some(_)) => last = text.take(),
            ('"', None) => text = Some(String::new()),
            ('{', Some(text)) => {
                text.push('…');
                is_placeholder = true;
            }
            ('}', Some(_)) => is_placeholder = false,
            (c, Some(text)) if !is_placeholder => text.push(c),
            ('(' | '[' | '{', None) => depth += 1,
            (')' | ']' | '}', None) if depth == 0 => return last,
            (')' | ']' | '}', None) => depth -= 1,
            _ => {}
        }
    }
    None
}

#[test]
fn the_reference_names_every_warning_and_no_event_that_does_not_exist() {
    let (events, text) = (events(), file("docs/monitoring.md"));
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let level = cells.next().filter(|level| ["ERROR", "WARN", "INFO"].contains(level))?;
        Some((level.to_owned(), cells.next()?.trim_matches('`').to_owned()))
    });
    let rows: BTreeSet<_> = rows.collect();
    assert!(rows.len() > 50 && events.len() > 60, "{} rows, {} events", rows.len(), events.len());
    let unknown: Vec<_> = rows.difference(&events).collect();
    assert!(unknown.is_empty(), "docs/monitoring.md has {unknown:#?}");
    let missing: Vec<_> = events.difference(&rows).filter(|(level, _)| level != "INFO").collect();
    assert!(missing.is_empty(), "docs/monitoring.md lacks {missing:#?}");
}
