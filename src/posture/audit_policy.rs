//! The API servers' audit policy: whether it writes the bodies of Secrets and tokens to a log, in clear, or logs no request
//! for them at all.

use serde::Deserialize;

use super::finding::Finding;

const CHECK: &str = "API server: audit policy";

/// What carries credentials in requests or answers.
const SENSITIVE: [&str; 3] = ["secrets", "serviceaccounts/token", "tokenreviews"];

#[derive(Debug, Deserialize)]
struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    namespaces: Vec<String>,
    resources: Vec<GroupResources>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

// In the order of how much is written down, which `judge` compares by.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// Judges the text of a policy file.
#[must_use]
pub fn judge(file: &str, text: &str) -> Vec<Finding> {
    let policy: Policy = match serde_saphyr::from_str(text) {
        Ok(policy) => policy,
        Err(error) => {
            let detail = format!("{file} is not an audit policy: {}", error.without_snippet());
            return vec![Finding::failed(CHECK, detail, "correct it: the API server will not start with it")];
        }
    };
    let mut findings = Vec::new();
    for (resource, level, rule) in SENSITIVE.iter().filter_map(|resource| policy.most_logged(resource)) {
        if level > Level::Metadata {
            let detail =
                format!("rules[{rule}] of {file} writes the contents of {resource} to the audit log ({level:?})");
            let fix = "put a rule with level: Metadata for secrets, configmaps, serviceaccounts/token and tokenreviews before it, and \
                       treat existing logs like the Secrets themselves";
            findings.push(Finding::failed(CHECK, detail, fix).of_cis("3.2.2"));
        }
    }
    if policy.most_logged("secrets").is_none_or(|(_, level, _)| level == Level::None) {
        let fix = "log secrets at level: Metadata: who read which Secret is what an investigation needs first";
        findings.push(Finding::advice(CHECK, format!("{file} logs no request for Secrets"), fix).of_cis("3.2.2"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "requests for Secrets are logged, and their contents are not"));
    }
    findings
}

/// The finding for an API server without any audit policy.
#[must_use]
pub fn missing() -> Finding {
    let fix = "set --audit-policy-file and --audit-log-path, with secrets at level: Metadata";
    Finding::advice(CHECK, "--audit-policy-file is not set: nobody can say later who read which Secret", fix)
        .of_cis("3.2.1")
}

impl Policy {
    /// The most that may be logged of a resource, and by which rule: the first rule that matches a request counts, and
    /// one with conditions leaves the rest to those after it.
    fn most_logged<'a>(&self, resource: &'a str) -> Option<(&'a str, Level, usize)> {
        let mut most: Option<(&str, Level, usize)> = None;
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.names(resource)) {
            if most.is_none_or(|(_, level, _)| rule.level > level) {
                most = Some((resource, rule.level, at));
            }
            if rule.is_for_all(resource) {
                break;
            }
        }
        most
    }
}

impl Rule {
    /// Whether it may match a request for the resource.
    fn names(&self, resource: &str) -> bool {
        // As the API server matches (k8s.io/apiserver, pkg/audit/policy/checker.go): a rule that names URLs and no resource
        // matches no request for a resource, and one that names neither matches every request.
        let is_about_urls = self.resources.is_empty() && !self.non_resource_urls.is_empty();
        !is_about_urls && (self.resources.is_empty() || self.resources.iter().any(|listed| listed.names(resource)))
    }

    /// Whether it matches every request for the resource.
    fn is_for_all(&self, resource: &str) -> bool {
        let unconditional =
            [&self.users, &self.user_groups, &self.verbs, &self.namespaces].iter().all(|list| list.is_empty());
        let named = |listed: &GroupResources| listed.names(resource) && listed.resource_names.is_empty();
        unconditional && (self.resources.is_empty() || self.resources.iter().any(named))
    }
}

impl GroupResources {
    fn names(&self, resource: &str) -> bool {
        let group = if resource == "tokenreviews" { "authentication.k8s.io" } else { "" };
        let matches = |listed: &String| {
            listed == resource
                || listed == "*"
                || listed
                    .strip_suffix("/*")
                    .is_some_and(|of| resource.split('/').next() == Some(of) && resource.contains('/'))
                || listed.strip_prefix("*/").is_some_and(|of| resource.split('/').nth(1) == Some(of))
        };
        self.group == group && (self.resources.is_empty() || self.resources.iter().any(matches))
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    fn judged(rules: &str) -> Vec<(Outcome, String)> {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n{rules}");
        judge("policy.yaml", &text).into_iter().map(|finding| (finding.result, finding.detail)).collect()
    }

    #[test]
    fn a_catch_all_that_logs_bodies_logs_those_of_secrets_unless_a_rule_comes_before_it() {
        let found = judged("- level: RequestResponse\n");
        assert!(
            found.iter().any(|(outcome, detail)| *outcome == Outcome::Failed && detail.contains("rules[0]")),
            "{found:?}"
        );
        let first = "- {level: Metadata, resources: [{group: '', resources: [secrets, serviceaccounts/token]}, \
                     {group: authentication.k8s.io, resources: [tokenreviews]}]}\n- level: RequestResponse\n";
        assert_eq!(judged(first).iter().map(|one| one.0).collect::<Vec<_>>(), [Outcome::Ok]);
    }

    #[test]
    fn a_rule_with_conditions_leaves_the_rest_to_the_next() {
        let text = "- {level: Metadata, namespaces: [kube-system], resources: [{group: '', resources: [secrets]}]}\n\
                    - {level: Request, resources: [{group: '', resources: ['*']}]}\n";
        let found = judged(text);
        assert!(found[0].0 == Outcome::Failed && found[0].1.contains("rules[1]"), "{found:?}");
        let named = "- {level: Metadata, resources: [{group: '', resources: [secrets], resourceNames: [one]}]}\n\
                     - {level: RequestResponse, verbs: [create], resources: [{group: ''}]}\n";
        assert_eq!(judged(named)[0].0, Outcome::Failed);
    }

    #[test]
    fn not_logging_secrets_at_all_is_told_too() {
        for rules in [
            "- {level: None}\n",
            "- {level: Metadata, resources: [{group: apps}]}\n",
            "- {level: None, resources: [{group: ''}]}\n",
        ] {
            let found = judged(rules);
            assert!(
                found[0].0 == Outcome::Advice && found[0].1.contains("no request for Secrets"),
                "{rules}: {found:?}"
            );
        }
        let urls = "- {level: None, nonResourceURLs: [/healthz]}\n- level: Metadata\n";
        assert_eq!(judged(urls)[0].0, Outcome::Ok);
    }

    #[test]
    fn what_is_no_policy_is_refused_by_name() {
        let found = judge("policy.yaml", "rules: 3");
        assert!(found[0].result == Outcome::Failed && found[0].detail.contains("policy.yaml"), "{found:?}");
    }
}
