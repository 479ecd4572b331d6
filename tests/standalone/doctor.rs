//! `doctor`, run as a command: what it says and how it ends, on a keyring and on what can be wrong with a machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use kube_envelope::key_stores::keyring::Keyring;
use tempfile::TempDir;

/// A folder with a keyring and a configuration that names it.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    Keyring::create(&mut rand::rng()).write_new(&folder.path().join("keyring.json")).expect("written");
    write_config(folder.path(), "");
    folder
}

fn write_config(folder: &Path, more: &str) {
    let at = folder.display();
    let text = format!(
        "cluster: it\nsocket: {at}/run/kms.sock\nstateDir: {at}/state\nhealth: {{ listen: '127.0.0.1:0' }}\n\
         keks:\n  - {{ name: local, keyring: {{ file: {at}/keyring.json }} }}\n{more}"
    );
    fs::write(folder.join("config.yaml"), text).expect("written");
}

/// Exit code, standard output, standard error.
fn doctor(folder: &Path, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .args(["doctor", "--config"])
        .arg(folder.join("config.yaml"))
        .args(more)
        .output()
        .expect("the command runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

#[test]
fn all_well_is_exit_code_0_with_every_step_proven_and_nothing_left_behind() {
    let folder = folder();
    let (code, out, err) = doctor(folder.path(), &[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for check in ["socket", "stateDir", "health.listen", "KEK local: version", "KEK local: wrap", "KEK local: unwrap"] {
        let line = out.lines().rfind(|line| line.trim().starts_with(check)).unwrap_or_else(|| panic!("{check}: {out}"));
        assert!(line.contains(" ok "), "{line}");
    }
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_kek_that_is_asked_without_a_network_has_no_clock_to_agree_with() {
    let (code, out, _) = doctor(folder().path(), &[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("KEK local: clock") && out.contains("local KEK, no server clock to compare"), "{out}");
}

#[test]
fn the_settings_in_force_are_shown_with_their_defaults() {
    let (_, out, _) = doctor(folder().path(), &[]);
    for (name, value) in
        [("epoch", "1"), ("maxOfflineAge", "1day"), ("refreshInterval", "1m"), ("proveInterval", "10m")]
    {
        assert!(out.lines().any(|line| line.split_whitespace().eq([name, value])), "{name}: {out}");
    }
}

#[test]
fn json_holds_every_check_with_its_result() {
    let (code, out, _) = doctor(folder().path(), &["--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    assert_eq!(code, 0);
    let skipped: Vec<_> = checks.iter().filter(|check| check["result"] != "ok").map(|check| &check["check"]).collect();
    assert_eq!(skipped, ["cluster", "etcd"], "what was not given is not passed over: {checks:?}");
    assert!(checks.iter().any(|check| check["check"] == "KEK local: unwrap" && check["milliseconds"].is_u64()));
    assert_eq!(report["settings"]["cluster"], "it");
}

#[test]
fn a_configuration_that_cannot_work_is_a_usage_error_with_its_place() {
    let folder = folder();
    write_config(folder.path(), "epoch: 0\n");
    let (code, _, err) = doctor(folder.path(), &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("config.yaml:7:8: epoch"), "{err}");
}

#[test]
fn one_key_listed_twice_fails() {
    let folder = folder();
    let again =
        format!("retired:\n  - {{ name: again, keyring: {{ file: {}/keyring.json }} }}\n", folder.path().display());
    write_config(folder.path(), &again);
    let (code, out, _) = doctor(folder.path(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains("is the same KEK as local"), "{out}");
}

#[test]
fn a_folder_in_which_others_could_put_their_socket_fails_with_the_command_to_run() {
    let folder = folder();
    let run = folder.path().join("run");
    fs::create_dir(&run).expect("made");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).expect("set");
    let (code, out, _) = doctor(folder.path(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains(&format!("socket: chmod go-w {}", run.display())), "{out}");
}

/// The outcome of a check, and its fix.
fn found(folder: &Path, check: &str) -> (String, String) {
    let (_, out, _) = doctor(folder, &["--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let one = checks.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("{check}: {out}"));
    (one["result"].as_str().expect("text").into(), one["fix"].as_str().unwrap_or_default().into())
}

#[test]
fn a_configuration_and_files_of_keks_that_somebody_else_can_change_fail_with_the_command_to_run() {
    let folder = folder();
    let (at, keys) = (folder.path(), folder.path().join("keys"));
    fs::create_dir(&keys).expect("made");
    let token = keys.join("token");
    fs::write(&token, "").expect("written");
    let vault = format!(
        "retired:\n  - {{ name: v, transit: {{ addresses: ['https://127.0.0.1:1'], key: k, auth: {{ tokenFile: {} }} }} }}\n",
        token.display()
    );
    write_config(at, &vault);
    let set = |place: &Path, mode| fs::set_permissions(place, fs::Permissions::from_mode(mode)).expect("set");
    let file = at.join("config.yaml");
    assert_eq!(found(at, "configuration").0, "ok");
    assert_eq!(found(at, "files").0, "ok");
    for (place, check, usual) in [
        (file.as_path(), "configuration", 0o644),
        (token.as_path(), "files", 0o600),
        (keys.as_path(), "files", 0o700),
        (&at.join("keyring.json"), "files", 0o600),
    ] {
        let fix = format!("chmod go-w {}", place.canonicalize().expect("there").display());
        set(place, 0o666 | (usual & 0o100));
        assert_eq!(found(at, check), ("failed".into(), fix.clone()));
        set(place, 0o660 | (usual & 0o100));
        assert_eq!(found(at, check), ("advice".into(), fix), "members of a group");
        set(place, usual);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(place, Some(65534), None).expect("given away");
            let (result, fix) = found(at, check);
            assert!(result == "failed" && fix.starts_with("chown -h 0 "), "{place:?}: {result} {fix}");
            std::os::unix::fs::chown(place, Some(0), None).expect("taken back");
        }
        assert_eq!(found(at, check).0, "ok", "{place:?}");
    }
    // Whatever is above both.
    set(at, 0o777);
    assert_eq!(found(at, "configuration").0, "failed");
    let (code, out, _) = doctor(at, &[]);
    assert_eq!(code, 1, "{out}");
}

#[test]
fn a_file_in_the_place_of_the_socket_fails_and_stays() {
    let folder = folder();
    let socket = folder.path().join("run/kms.sock");
    fs::create_dir(folder.path().join("run")).expect("made");
    fs::write(&socket, "precious").expect("written");
    let (code, out, _) = doctor(folder.path(), &[]);
    assert_eq!(code, 1, "{out}");
    assert_eq!(fs::read(&socket).expect("still there"), b"precious");
}

#[test]
fn a_running_plugin_is_no_fault() {
    let folder = folder();
    fs::create_dir(folder.path().join("run")).expect("made");
    let _plugin = UnixListener::bind(folder.path().join("run/kms.sock")).expect("bound");
    let (code, out, _) = doctor(folder.path(), &[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("is being served"), "{out}");
}

#[test]
fn a_state_folder_that_is_a_file_fails() {
    let folder = folder();
    fs::write(folder.path().join("state"), "").expect("written");
    let (code, out, _) = doctor(folder.path(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains("is not a folder"), "{out}");
}

/// Field case N14.
#[test]
fn folders_that_cannot_be_made_or_belong_to_everybody_and_an_address_for_everybody_are_found() {
    let folder = folder();
    let at = folder.path().display().to_string();
    let text = fs::read_to_string(folder.path().join("config.yaml")).expect("read");
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}: {text}");
        fs::write(folder.path().join("config.yaml"), text.replace(from, to)).expect("written");
        doctor(folder.path(), &[])
    };
    let (code, out, _) = with(&format!("stateDir: {at}/state"), "stateDir: /proc/kube-envelope");
    assert!(code == 1 && out.contains("/proc/kube-envelope cannot be created: /proc is the kernel's"), "{out}");
    let open = folder.path().join("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("set");
    let (code, out, _) = with(&format!("stateDir: {at}/state"), &format!("stateDir: {at}/open/state"));
    assert!(code == 0 && out.contains(&format!("everybody may create {at}/open/state")), "{out}");
    let (_, out, _) = with(&format!("socket: {at}/run/kms.sock"), &format!("socket: {at}/open/kms.sock"));
    let line = out.lines().find(|line| line.trim().starts_with("socket ")).expect(&out);
    assert!(!line.contains(" ok ") && out.contains(&format!("{at}/open")), "{out}");
    let (code, out, _) = with("127.0.0.1:0", "0.0.0.0:0");
    assert!(code == 0 && out.contains("0.0.0.0:0 is every address of this machine"), "{out}");
    let (code, _, err) = with(&format!("file: {at}/keyring.json"), "file: keyring.json");
    assert!(code == 2 && err.contains("is relative to wherever the plugin is started"), "{err}");
}

/// An `EncryptionConfiguration` beside the configuration, of one item with these providers.
fn write_encryption(folder: &Path, providers: &str) -> String {
    let file = folder.join("encryption.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - {{ resources: [secrets], providers: [{providers}] }}\n"
    );
    fs::write(&file, text).expect("written");
    file.display().to_string()
}

fn provider(folder: &Path, more: &str) -> String {
    format!("{{ kms: {{ name: it, endpoint: 'unix://{}/run/kms.sock'{more} }} }}", folder.display())
}

#[test]
fn an_encryption_configuration_that_leads_to_the_plugin_passes() {
    let folder = folder();
    let providers = provider(folder.path(), ", apiVersion: v2, timeout: 3s") + ", { identity: {} }";
    let file = write_encryption(folder.path(), &providers);
    let (code, out, _) = doctor(folder.path(), &["--encryption-config", &file]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("Secrets are written through the plugin"), "{out}");
}

#[test]
fn what_is_wrong_with_an_encryption_configuration_is_said_with_the_fix() {
    let folder = folder();
    let ours = |more: &str| provider(folder.path(), more);
    for (providers, expected, fix) in [
        (ours(""), 1, "set apiVersion: v2"),
        (
            ours(", apiVersion: v2, cachesize: 1000"),
            1,
            "kms.cachesize: the API server refuses it for KMS v2; remove it",
        ),
        (ours(", apiVersion: v2, timeout: 1s"), 0, "set timeout: 3s"),
        (
            String::from("{ identity: {} }, ") + &ours(", apiVersion: v2"),
            0,
            "once every API server reads by the plugin, put its provider first",
        ),
        (
            "{ kms: { name: it, apiVersion: v2, endpoint: 'unix:///elsewhere.sock' } }".into(),
            1,
            "give both the same path",
        ),
    ] {
        let file = write_encryption(folder.path(), &providers);
        let (code, out, _) = doctor(folder.path(), &["--encryption-config", &file]);
        assert_eq!(code, expected, "{out}");
        assert!(out.contains(fix), "{fix}: {out}");
    }
}

#[test]
fn a_static_pod_is_followed_to_the_file_and_the_socket_that_it_mounts() {
    let folder = folder();
    let at = folder.path().display().to_string();
    let inside = "{ kms: { name: it, apiVersion: v2, endpoint: 'unix:///plugin/kms.sock' } }";
    write_encryption(folder.path(), inside);
    let manifest = folder.path().join("kube-apiserver.yaml");
    let write_pod = |flag: &str, socket_folder: &str| {
        let text = format!(
            "spec:\n  containers:\n  - name: kube-apiserver\n    command: [kube-apiserver, {flag}]\n    volumeMounts:\n\
             \x20   - {{ name: files, mountPath: /files }}\n    - {{ name: socket, mountPath: /plugin }}\n  volumes:\n\
             \x20 - {{ name: files, hostPath: {{ path: '{at}' }} }}\n  - {{ name: socket, hostPath: {{ path: '{socket_folder}' }} }}\n"
        );
        fs::write(&manifest, text).expect("written");
    };
    let manifest = manifest.display().to_string();
    let run = || doctor(folder.path(), &["--apiserver-manifest", &manifest]);
    let flag = "--encryption-provider-config=/files/encryption.yaml";
    write_pod(flag, &format!("{at}/run"));
    let (code, out, _) = run();
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("Secrets are written through the plugin"), "{out}");
    write_pod(flag, &format!("{at}/another"));
    assert!(matches!(run(), (1, out, _) if out.contains("no KMS provider has the endpoint")));
    write_pod("--v=2", &format!("{at}/run"));
    assert!(matches!(run(), (1, out, _) if out.contains("--encryption-provider-config is not set")));
    write_pod("--encryption-provider-config=/nowhere/encryption.yaml", &format!("{at}/run"));
    assert!(matches!(run(), (1, out, _) if out.contains("no folder of the host is mounted there")));
}

/// F14, F15 and N14: what a pod sees of the plugin's socket.
#[test]
fn a_socket_that_the_pod_cannot_see_or_would_lose_is_said_to_be_so() {
    let folder = folder();
    let at = folder.path().display().to_string();
    let file = write_encryption(folder.path(), &provider(folder.path(), ", apiVersion: v2, timeout: 3s"));
    let manifest = folder.path().join("kube-apiserver.yaml");
    let run = |image: &str, mount: &str, host: &str| {
        let text = format!(
            "spec:\n  containers:\n  - name: kube-apiserver\n    image: {image}\n    command: [kube-apiserver, \
             --encryption-provider-config, '{file}', --encryption-provider-config-automatic-reload]\n    volumeMounts:\n\
             \x20   - {{ name: files, mountPath: '{at}' }}\n    - {{ name: socket, mountPath: '{mount}' }}\n  volumes:\n\
             \x20 - {{ name: files, hostPath: {{ path: '{at}' }} }}\n  - {{ name: socket, hostPath: {{ path: '{host}' }} }}\n"
        );
        fs::write(&manifest, text).expect("written");
        doctor(folder.path(), &["--apiserver-manifest", &manifest.display().to_string()])
    };
    let (code, out, _) = run("r/kube-apiserver:v1.37.2", &format!("{at}/run"), &format!("{at}/run"));
    assert_eq!(code, 0, "{out}");
    let (code, out, _) = run("r/kube-apiserver:v1.37.2", &format!("{at}/run/kms.sock"), &format!("{at}/run/kms.sock"));
    assert!(code == 1 && out.contains("itself is mounted"), "{out}");
    let (code, out, _) = run("r/kube-apiserver:v1.30.1", &format!("{at}/run"), &format!("{at}/run"));
    assert!(code == 1 && out.contains("use 1.32 or later"), "{out}");
}

#[test]
fn flags_in_a_file_that_is_not_understood_are_not_taken_for_none() {
    let folder = folder();
    let unit = folder.path().join("kube-apiserver.service");
    fs::write(&unit, "[Service]\nExecStart=/usr/bin/kube-apiserver $ARGS\n").expect("written");
    let (code, out, _) = doctor(folder.path(), &["--apiserver-manifest", &unit.display().to_string()]);
    assert!(code == 1 && out.contains("is not understood") && out.contains("$ARGS"), "{out}");
    assert!(!out.contains("nothing is encrypted"), "{out}");
}
