//! What the process gives up after its start, tried from outside: each act is tried where it must fail, and once where
//! it must work.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kube_envelope::commands::serve::hardening;
use kube_envelope::commands::serve::sandbox::Sandbox;
use kube_envelope::config::Config;

use crate::path;
use crate::support::plugin::SANDBOX;
use crate::support::{KeyringFile, Plugin, free_port, wait_until};

const CONFIG: &str = "KUBE_ENVELOPE_TEST_CONFIG";
const OUTSIDE: &str = "KUBE_ENVELOPE_TEST_OUTSIDE";

/// A plugin in its sandbox as an operator has it.
async fn plugin(keyring: &KeyringFile) -> Plugin {
    let mut plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("boxed"))).await;
    plugin.kill();
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), text.replace(SANDBOX, "")).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    plugin
}

#[tokio::test]
async fn every_thread_has_no_capabilities_no_new_privileges_and_a_filter() {
    let keyring = KeyringFile::create();
    let plugin = plugin(&keyring).await;
    // What locked memory needs, where its limit cannot be lifted: CAP_IPC_LOCK.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", plugin.process.id())).unwrap();
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let allowed = if locked.contains("unlimited") { 0 } else { 1 << 14 };
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", plugin.process.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"), "{status}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let held = u64::from_str_radix(&field(set), 16).unwrap();
            assert_eq!(held & !allowed, 0, "{set}: {status}");
        }
        threads += 1;
    }
    assert!(threads >= 3, "{threads} threads");
    let log = plugin.process.log();
    assert!(!log.contains("not restricted") && !log.contains("not given up"), "{log}");
}

/// A file of the plugin's that becomes a link out of its places.
#[tokio::test]
async fn a_running_plugin_reads_no_file_outside_its_places() {
    let (keyring, outside) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let plugin = plugin(&keyring).await;
    let copy = outside.path().join("copy.json");
    std::fs::copy(keyring.path(), &copy).unwrap();
    std::fs::remove_file(keyring.path()).unwrap();
    std::os::unix::fs::symlink(&copy, keyring.path()).unwrap();
    wait_until("the refusal", Duration::from_secs(15), async || plugin.get("/status").contains("Permission denied"))
        .await;
    std::fs::remove_file(keyring.path()).unwrap();
    std::fs::copy(&copy, keyring.path()).unwrap();
    wait_until("it is ready", Duration::from_secs(15), async || !plugin.get("/status").contains("Permission denied"))
        .await;
}

#[tokio::test]
async fn a_reload_that_needs_other_files_is_refused_and_a_restart_takes_it() {
    let (keyring, other) = (KeyringFile::create(), KeyringFile::create());
    let mut plugin = plugin(&keyring).await;
    let before = plugin.wait_healthy().await;
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    let added = format!("keks: [{{name: second, keyring: {{file: {}}}}}, ", other.path().display());
    std::fs::write(plugin.config_file(), text.replace("keks: [", &added)).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    let refused = async || plugin.process.log().contains("restart the plugin to use it");
    wait_until("the refusal", Duration::from_secs(15), refused).await;
    assert!(plugin.process.says(path(other.path().parent().unwrap())), "{}", plugin.process.log_tail());
    assert_eq!(plugin.wait_healthy().await, before);
    plugin.stop();
    plugin.restart().await;
    assert_ne!(plugin.wait_healthy().await, before);
}

#[cfg(feature = "aws")]
#[tokio::test]
async fn a_reload_that_starts_another_program_is_refused() {
    let keyring = KeyringFile::create();
    let plugin = plugin(&keyring).await;
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    let added =
        "retired: [{name: aws, awsKms: {key: alias/x, region: eu-central-1, credentialProcess: [/usr/bin/env]}}]";
    std::fs::write(plugin.config_file(), format!("{text}\n{added}\n")).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    let refused = async || plugin.process.log().contains("the program /usr/bin/env, which the running plugin may not");
    wait_until("the refusal", Duration::from_secs(15), refused).await;
}

#[tokio::test]
async fn a_sandbox_that_is_switched_off_is_a_warning() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    plugin.stop();
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), format!("{text}\nsandbox: {{ enabled: false }}\n")).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", plugin.process.id())).unwrap();
    assert!(status.contains("Seccomp:\t0"), "{status}");
    assert!(plugin.process.says("sandbox.enabled is false"), "{}", plugin.process.log_tail());
}

/// What the probe tried, and whether it could.
fn probe(config: Option<&Path>, outside: &Path) -> Vec<(String, bool)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sandbox::the_acts_of_an_intruder", "--ignored", "--nocapture"]).env(OUTSIDE, outside);
    if let Some(config) = config {
        command.env(CONFIG, config);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acts = text.lines().filter_map(|line| line.split_once("could ").map(|(_, act)| act));
    acts.map(|act| act.rsplit_once(": ").map(|(act, result)| (act.to_owned(), result == "true")).unwrap()).collect()
}

#[test]
fn an_intruder_can_neither_read_nor_write_nor_start_nor_listen_elsewhere() {
    let keyring = KeyringFile::create();
    let (own, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("file"), "secret").unwrap();
    std::fs::create_dir(own.path().join("state")).unwrap();
    let config = |kek: &str, name: &str| {
        let at = own.path().display();
        let text = format!(
            "cluster: c\nsocket: {at}/run/kms.sock\nstateDir: {at}/state\nhealth: {{ listen: off }}\nkeks: [{{name: k, {kek}}}]\n"
        );
        let file = own.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let may = probe(None, outside.path());
    assert!(may.len() >= 9 && may.iter().all(|(_, could)| *could), "without a sandbox all of it works: {may:?}");

    let boxed = config(&format!("keyring: {{file: {}}}", keyring.path().display()), "boxed.yaml");
    for (act, could) in probe(Some(&boxed), outside.path()) {
        assert_eq!(could, act.starts_with("own: "), "{act}");
    }
    // For a program that prints credentials the system's programs can be run, and all else is as before: in them, too.
    #[cfg(feature = "aws")]
    {
        let key = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        let kek = format!("awsKms: {{key: '{key}', credentialProcess: [/usr/bin/env, helper]}}");
        let tried = probe(Some(&config(&kek, "program.yaml")), outside.path());
        assert!(tried.len() > may.len() - 1, "{tried:?}");
        for (act, could) in tried {
            assert_eq!(could, act.starts_with("own: ") || act == "start a program", "{act}");
        }
    }
    // With a vendor's library the files are free, and the system calls are not.
    #[cfg(feature = "pkcs11")]
    {
        let pin = own.path().join("pin");
        let kek = format!("pkcs11: {{module: /m.so, tokenLabel: t, keyLabel: k, pinFile: {}}}", pin.display());
        for (act, could) in probe(Some(&config(&kek, "library.yaml")), outside.path()) {
            assert_eq!(could, !act.starts_with("call: "), "{act}");
        }
    }
}

/// Runs in a process of its own, started by the test above.
#[test]
#[ignore = "not a test: the process that enters the sandbox and tries what is forbidden"]
fn the_acts_of_an_intruder() {
    let outside = std::path::PathBuf::from(std::env::var_os(OUTSIDE).unwrap());
    let free = free_port();
    let mut own = None;
    if let Some(file) = std::env::var_os(CONFIG) {
        let config = Config::load(Path::new(&file)).unwrap();
        hardening::apply();
        let _sandbox = Sandbox::enter(&config);
        own = Some(config);
    }
    let state = own.as_ref().map_or_else(|| outside.clone(), |config| config.state_dir.clone());
    let runs = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let parent = rustix::process::getppid().unwrap();
    let tried = [
        ("own: write to stateDir", std::fs::write(state.join("file"), "").is_ok()),
        ("own: read the system's files", std::fs::read("/etc/hosts").is_ok()),
        ("read a file elsewhere", std::fs::read(outside.join("file")).is_ok()),
        ("list a folder elsewhere", std::fs::read_dir(&outside).is_ok()),
        ("write a file elsewhere", std::fs::write(outside.join("file"), "changed").is_ok()),
        ("make a file elsewhere", std::fs::write(outside.join("made"), "").is_ok()),
        ("write to the configuration", own.is_none() || std::fs::write(std::env::var_os(CONFIG).unwrap(), "").is_ok()),
        ("listen on another port", TcpListener::bind(("127.0.0.1", free)).is_ok()),
        ("signal another process", rustix::process::test_kill_process(parent).is_ok()),
        ("start a program", runs("/usr/bin/env", &["true"])),
    ];
    for (act, could) in tried {
        println!("could {act}: {could}");
    }
    // Only where a program can be started: as a child of the sandbox it is in it, too.
    if runs("/usr/bin/env", &["true"]) {
        println!("could call: change the personality: {}", runs("/usr/bin/env", &["setarch", "-R", "true"]));
        println!("could call: make a namespace: {}", runs("/usr/bin/env", &["unshare", "-U", "true"]));
    }
}
