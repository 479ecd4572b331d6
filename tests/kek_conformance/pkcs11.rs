//! `pkcs11`: a SoftHSM token. Its module keeps one configuration for the whole process, so each test runs in a
//! process of its own with a folder of its own.

mod beyond;
mod key_wrap;
mod module_faults;
mod rsa;

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use async_trait::async_trait;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::Attribute;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use tempfile::TempDir;

use crate::bench::{Authenticates, Bench, Disables, Recreates};

const PIN: &str = "1234";
const FOLDER: &str = "KEK_CONFORMANCE_FOLDER";
const MODULE: &str = "KEK_CONFORMANCE_MODULE";

/// Runs `test` in a process of its own with a new token; false in that process. The token lacks these mechanisms.
fn run_elsewhere(test: &str, lacks: &[&str]) -> bool {
    if std::env::var_os(FOLDER).is_some() {
        return false;
    }
    let folder = TempDir::new().expect("a folder");
    let path = folder.path();
    std::fs::create_dir(path.join("tokens")).expect("a folder");
    let tokens = path.join("tokens").display().to_string();
    // SoftHSM takes no notice of the first name behind the minus; nobody needs DES.
    let mechanisms = if lacks.is_empty() { "ALL".into() } else { format!("-CKM_DES_CBC,{}", lacks.join(",")) };
    let settings = format!(
        "directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\nslots.mechanisms = {mechanisms}\n"
    );
    std::fs::write(path.join("softhsm2.conf"), settings).expect("written");
    std::fs::write(path.join("pin"), format!("{PIN}\n")).expect("written");
    let (_crate_name, name) = test.split_once("::").expect("a path");
    let ended = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture"])
        .env(FOLDER, path)
        .env(MODULE, module())
        .env("KUBE_ENVELOPE_HOST_PROGRAM", env!("CARGO_BIN_EXE_kube-envelope"))
        // For `faulty_module.c`.
        .env("MODULE_FAULT_FILE", path.join("fault"))
        .env("MODULE_FAULT_REAL", module())
        .env("SOFTHSM2_CONF", path.join("softhsm2.conf"))
        .output()
        .expect("this program starts");
    let output = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && output.contains("1 passed"), "{output}");
    true
}

/// What `scripts/servers` finds or installs.
fn module() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
        let output = Command::new(script).arg("softhsm").stderr(Stdio::inherit()).output().expect("bash runs");
        let text = String::from_utf8(output.stdout).expect("paths are text");
        let path = text.lines().find_map(|line| line.strip_prefix("SOFTHSM="));
        path.unwrap_or_else(|| panic!("scripts/servers has no softhsm: {text}")).into()
    })
}

/// By what a key wraps, and so what it is.
trait Way: Send + Sync + 'static {
    /// The setting, with its value and a comma; empty for the mechanism that is chosen by itself.
    const SETTING: &str;
    /// What the token is made not to offer.
    const LACKS: &[&str] = &[];
    /// What `pkcs11-tool` is told to make, and the kinds of the objects that it makes.
    const MADE_BY: [&str; 3];
    const OBJECTS: &[&str];
    /// A version's text of this kind of key.
    const VERSION_THAT_NEVER_WAS: &str = "63-a1b2c3";

    /// The rights that the key's objects need, not given.
    fn rights_off() -> Vec<Attribute> {
        vec![Attribute::Encrypt(false), Attribute::Decrypt(false)]
    }
}

/// What is chosen by itself where a token offers everything: AES-GCM.
struct Automatic;

impl Way for Automatic {
    const SETTING: &str = "";
    const MADE_BY: [&str; 3] = ["--keygen", "--key-type", "AES:32"];
    const OBJECTS: &[&str] = &["secrkey"];
}

/// A token `kek` with the key `kube-envelope`, in the folder of this process.
struct TokenBench<W> {
    folder: PathBuf,
    module: PathBuf,
    way: PhantomData<W>,
}

type Pkcs11Bench = TokenBench<Automatic>;

impl<W: Way> TokenBench<W> {
    fn item_with(&self, token: &str, key: &str) -> String {
        self.item_by(W::SETTING, token, key)
    }

    fn item_by(&self, setting: &str, token: &str, key: &str) -> String {
        let (module, pin) = (self.module.display(), self.folder.join("pin").display().to_string());
        let labels = format!("tokenLabel: {token}, keyLabel: {key}");
        format!("{{ name: it, pkcs11: {{ module: {module}, {setting} {labels}, pinFile: {pin} }} }}")
    }

    fn tool(&self, arguments: &[&str]) {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&self.module).args(["--token-label", "kek", "--login", "--pin", PIN]);
        run(command.args(arguments));
    }

    fn make_key(&self, label: &str, id: &str) {
        self.tool(&[&W::MADE_BY[..], &["--label", label, "--id", id, "--sensitive"]].concat());
    }

    fn delete_key(&self, id: &str) {
        for kind in W::OBJECTS {
            self.tool(&["--delete-object", "--type", kind, "--id", id]);
        }
    }

    /// Does something in a session of this process; the KEK's are in the module's own.
    fn in_session<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        let module = Pkcs11::new(&self.module).expect("the module");
        // An earlier call has initialised it already.
        let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let slots = module.get_slots_with_initialized_token().expect("slots");
        let is_it = |slot: &&_| module.get_token_info(**slot).is_ok_and(|token| token.label().trim_end() == "kek");
        let session = module.open_rw_session(*slots.iter().find(is_it).expect("the token")).expect("a session");
        let _ = session.login(UserType::User, Some(&AuthPin::new(PIN.into())));
        work(&session)
    }
}

/// Ends the processes that host modules for this one, as a crash does; says how many there were.
fn end_module_processes() -> usize {
    let own = std::process::id().to_string();
    let found =
        Command::new("pgrep").args(["--parent", &own, "--full", "key-store-host"]).output().expect("pgrep runs");
    let found = String::from_utf8(found.stdout).expect("numbers");
    for process in found.lines() {
        run(Command::new("kill").args(["-KILL", process]));
    }
    found.lines().count()
}

fn run(command: &mut Command) {
    let ended = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

fn init_token(label: &str) {
    run(Command::new("softhsm2-util").args([
        "--init-token",
        "--free",
        "--label",
        label,
        "--so-pin",
        "4321",
        "--pin",
        PIN,
    ]));
}

#[async_trait]
impl<W: Way> Bench for TokenBench<W> {
    fn run_elsewhere(test: &str) -> bool {
        run_elsewhere(test, W::LACKS)
    }

    async fn start() -> Self {
        let variable = |name| PathBuf::from(std::env::var_os(name).expect("set by the parent"));
        let bench = Self { folder: variable(FOLDER), module: variable(MODULE), way: PhantomData };
        init_token("kek");
        bench.make_key("kube-envelope", "01");
        bench
    }

    fn item(&self) -> String {
        self.item_with("kek", "kube-envelope")
    }

    async fn other_item(&self) -> String {
        self.make_key("other", "01");
        self.item_with("kek", "other")
    }

    fn version_that_never_was(&self) -> String {
        W::VERSION_THAT_NEVER_WAS.into()
    }

    async fn rotate(&self) {
        let keys = self.in_session(|session| session.find_objects(&[Attribute::Label("kube-envelope".into())]));
        self.make_key("kube-envelope", &format!("{:02x}", keys.expect("keys").len() / W::OBJECTS.len() + 1));
    }

    async fn destroy(&self) {
        self.delete_key("01");
    }

    /// Nobody is asked over a network, so nothing can count.
    fn requests(&self) -> usize {
        0
    }
}

#[async_trait]
impl<W: Way> Recreates for TokenBench<W> {
    async fn recreate(&self) {
        self.delete_key("01");
        self.make_key("kube-envelope", "01");
    }
}

#[async_trait]
impl<W: Way> Disables for TokenBench<W> {
    async fn disable(&self) {
        self.in_session(|session| {
            let keys = session.find_objects(&[Attribute::Label("kube-envelope".into())]).expect("keys");
            for key in keys {
                // One half of a pair has one of the rights.
                let changed = W::rights_off()
                    .into_iter()
                    .filter(|off| session.update_attributes(key, std::slice::from_ref(off)).is_ok());
                assert!(changed.count() > 0, "no attribute changes");
            }
        });
    }
}

#[async_trait]
impl<W: Way> Authenticates for TokenBench<W> {
    /// A login lives as long as the process that has made it.
    async fn expire_credentials(&self) {
        assert!(end_module_processes() > 0, "no process hosts the module");
    }

    async fn revoke_credentials(&self) {
        let pin = |text: &str| AuthPin::new(text.into());
        self.in_session(|session| session.set_pin(&pin(PIN), &pin("5678")).expect("another PIN"));
        self.expire_credentials().await;
    }
}

crate::conformance! {
    Pkcs11Bench;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected,
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages,
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen,
    the_rotating_part_rotates,
    old_versions_still_open,
    a_recreated_key_is_another_version,
    a_disabled_key_is_denied,
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied: "a PIN opens the whole token; PKCS#11 has no permissions for one key",
    expired_credentials_are_renewed,
    revoked_credentials_are_unauthenticated,
    the_end_of_the_credentials_is_known: "a token does not tell when a PIN expires",
    a_clock_that_is_off_is_known: "a module is called, not asked over HTTP: there is no server with a clock",
    a_throttled_call_is_throttled: "PKCS#11 has no return value for too many calls",
    a_server_error_is_unavailable: "a module is called, not asked over HTTP; its errors are mapped in error.rs",
    a_slow_server_meets_the_deadline: "SoftHSM is never slow; see module_faults.rs",
    a_cut_connection_is_unavailable: "a module is called, not asked over a connection",
    an_unreachable_server_is_unavailable: "a module is called, not asked over a connection; see beyond.rs",
    a_wrong_certificate_is_refused: "a module is called, not asked over TLS",
    the_key_exchange_offered_first_is_post_quantum: "a module is called, not asked over TLS",
    a_redirect_is_not_followed: "a module is called, not asked over HTTP",
    a_proxy_is_used_where_it_is_named: "a module is called, not asked over HTTP",
    an_oversized_answer_is_not_read: "a module is called, not asked over HTTP",
    garbage_in_an_answer_is_unavailable: "a module is called, not asked over HTTP",
    the_kek_works_again_after_faults: "a module is called, not asked over a connection",
}
