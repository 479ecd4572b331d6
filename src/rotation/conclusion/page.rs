//! A Statement as one page of Markdown, for people.

use crate::rotation::claim::Finding;
use crate::rotation::conclusion::statement::{StatedKey, Statement};

/// So many lines of a list are shown; the Statement has all.
const SHOWN: usize = 12;

/// The page. `signed` says what is known of the signature.
pub fn page(statement: &Statement, signed: &str) -> String {
    let stated = &statement.predicate;
    let mut page = Page(String::new());
    page.line("# Key rotation\n");
    page.line(&format!("**{}**\n", stated.verdict.sentence));
    page.line(&format!("| | |\n|---|---|\n| subject | {} |", cell(statement.about())));
    page.row("signature", signed);
    page.row("began", &stated.started.to_string());
    page.row("last search", &stated.verified_at.map(|at| at.to_string()).unwrap_or_default());
    page.row("old revisions gone", &stated.settled.map(|at| at.to_string()).unwrap_or_default());
    page.row("snapshot", &stated.snapshot.map(|at| at.to_string()).unwrap_or_default());
    page.row("former keys", &names(&stated.former_keys));
    page.row("target keys", &names(&stated.target_keys));
    page.row("evidence file", &format!("SHA-256 {}", stated.evidence_sha256));
    page.row("made by", &stated.tool);
    page.list("May be disabled", &stated.verdict.may_be_disabled);
    page.list("May be destroyed, as far as the backups go that are listed", &stated.verdict.may_be_destroyed);
    page.list("Must stay", &stated.verdict.must_stay);
    page.list("Missing", &stated.verdict.missing);
    page.line("\n## What is stored under what\n\n| resource | stored | values |\n|---|---|---|");
    for (resource, stored) in &stated.stored {
        for (how, count) in stored {
            page.line(&format!("| {} | {} | {count} |", cell(resource), cell(how)));
        }
    }
    let servers = stated.servers.iter().map(|server| format!("{} wrote {}", server.address, server.wrote.join(", ")));
    page.list("API servers that stored a write under the target", &servers.collect::<Vec<_>>());
    let done = stated.resources.iter().map(|done| format!("{}: {} of {}", done.resource, done.rewritten, done.objects));
    page.list("Objects that were stored again", &done.collect::<Vec<_>>());
    page.list("Refused", &stated.refused);
    let backups = stated.backups.iter().map(|backup| {
        format!(
            "{} (revision {}, SHA-256 {})",
            backup.file,
            backup.revision,
            backup.sha256.as_deref().unwrap_or("none")
        )
    });
    page.list("Backups that were read", &backups.collect::<Vec<_>>());
    // In the page the remedies are left out: the verdict's own list of what is missing has them.
    let claims = stated.claims.values().map(|claim| match &claim.finding {
        Finding::Shown => format!("{} ({})", claim.what, claim.at),
        Finding::NotYet { .. } => format!("not yet: {} ({})", claim.what, claim.at),
        Finding::NotShown { .. } => format!("not shown: {} ({})", claim.what, claim.at),
    });
    page.list("What was looked at", &claims.collect::<Vec<_>>());
    page.list("What was not looked at", &stated.verdict.not_looked_at);
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.extend([text, "\n"]);
    }

    fn row(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(&format!("| {name} | {} |", cell(value)));
        }
    }

    fn list(&mut self, title: &str, items: &[String]) {
        if items.is_empty() {
            return;
        }
        self.line(&format!("\n## {title}\n"));
        items.iter().take(SHOWN).for_each(|item| self.line(&format!("* {}", cell(item))));
        if items.len() > SHOWN {
            self.line(&format!("* and {} more", items.len() - SHOWN));
        }
    }
}

fn names(keys: &[StatedKey]) -> String {
    keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Names of objects and messages of servers must not become markup.
fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '*' | '_' | '`' | '[' | ']' | '<' | '>' | '#' | '\\' => safe.extend(['\\', c]),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_no_markup() {
        assert_eq!(cell("a|b\n<img> *x*"), "a\\|b \\<img\\> \\*x\\*");
    }
}
