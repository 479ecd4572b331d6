//! What people expect of any command: completions, manual pages, a kubectl plugin, quiet ends of pipes, no colour where none
//! is wanted, examples that work.

use std::process::{Command, Stdio};

use clap::{CommandFactory, Parser};
use kube_envelope::cli::Cli;

use crate::{path, run};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-envelope");

#[test]
fn completions_name_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}: {}", ran.error);
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(ran.out.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
    }
}

#[test]
fn bash_completes_a_command_by_the_script() {
    let script = run(&["completions", "bash"]).out;
    let ask = "COMP_WORDS=(kube-envelope ver); COMP_CWORD=1; _kube__envelope kube-envelope ver kube-envelope; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", &format!("{script}\n{ask}")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "verify");
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", path(folder.path())]).code, Some(0));
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let page = folder.path().join(format!("kube-envelope-{}.1", command.get_name()));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
    }
    let missing = run(&["man", "/nowhere"]);
    assert!(missing.code == Some(1) && missing.error.contains("existing folder"), "{}", missing.error);
}

#[test]
fn under_kubectls_name_the_help_speaks_of_kubectl() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-envelope");
    std::os::unix::fs::symlink(BINARY, &plugin).unwrap();
    let output = Command::new(&plugin).args(["verify", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("Usage: kubectl envelope verify"), "{help}");
}

/// Not by SIGPIPE, which a server that closes a connection would raise as well.
#[test]
fn a_reader_that_goes_away_ends_a_printing_command_without_a_panic() {
    for arguments in [&["completions", "zsh"][..], &["policy", "--config", "manifests/config.yaml"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(BINARY).args(arguments).stdout(writer).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*error), (Some(141), ""), "{arguments:?}");
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let journal = format!("--journal={}", folder.path().join("journal.json").display());
    for arguments in [
        &["completions", "zsh"][..],
        &["policy", "--config", "manifests/config.yaml"],
        &["doctor", "--config", "manifests/config.yaml"],
        &["evidence", "history", &journal],
        &["snapshot", "keys", "Cargo.toml"],
    ] {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        for error in [Stdio::piped(), full().into()] {
            let output = Command::new(BINARY).args(arguments).stdout(full()).stderr(error).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code().is_some_and(|code| (1..10).contains(&code)), "{arguments:?}: {output:?}");
            assert!(!error.contains("panicked"), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn no_color_is_honoured_at_a_terminal() {
    let shown = |environment: &str| {
        let command = format!("{environment} {BINARY} --help");
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::null())
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(shown("").contains("\u{1b}["), "a terminal gets some: else this test shows nothing");
    assert!(!shown("NO_COLOR=1").contains("\u{1b}["));
}

#[test]
fn every_example_of_the_help_is_understood() {
    let mut seen = 0;
    for command in Cli::command().get_subcommands() {
        let Some(help) = command.get_after_help() else { continue };
        for example in help.to_string().replace("\\\n", " ").lines().map(str::trim) {
            if example.starts_with("kube-envelope ") {
                seen += 1;
                Cli::try_parse_from(example.split_whitespace()).unwrap_or_else(|error| panic!("{example}: {error}"));
            }
        }
    }
    assert!(seen >= 14, "{seen}");
}
