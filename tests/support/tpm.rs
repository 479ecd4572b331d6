//! A TPM 2.0 in software (swtpm) with a PKCS#11 token in it (tpm2-pkcs11), for one test. tpm2-abrmd stands for the kernel's
//! resource manager, `/dev/tpmrm0`, and needs a D-Bus of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Process, STARTS_WITHIN, wait_until};

/// A machine's TPM.
pub struct Tpm {
    folder: tempfile::TempDir,
    // In the order in which they end.
    manager: Process,
    chip: Process,
    bus: Process,
}

impl Tpm {
    /// One with an RSA key `node-kek` in the token `node`.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["state", "store"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("pin"), "1234").unwrap();
        std::fs::set_permissions(at("pin"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let program = |name: &str, arguments: Vec<String>| {
            let environment = environment(folder.path()).map(|(name, value)| (name.into(), OsString::from(value)));
            let arguments = arguments.into_iter().map(OsString::from).collect();
            Process::start(name, name.into(), arguments, environment.into(), at(&format!("{name}.log")))
        };
        let unix = |option: &str, name: &str| [option.into(), format!("type=unixio,path={}", at(name).display())];
        let (server, control) = (unix("--server", "tpm"), unix("--ctrl", "tpm.ctrl"));
        let state = format!("dir={}", at("state").display());
        let ready = ["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate", &state];
        let chip = program("swtpm", ready.map(str::to_owned).into_iter().chain(server).chain(control).collect());
        wait_until("the TPM is there", STARTS_WITHIN, async || at("tpm.ctrl").exists()).await;
        let address = format!("--address=unix:path={}", at("bus").display());
        let bus = program("dbus-daemon", ["--session", "--nofork", "--nopidfile", &address].map(str::to_owned).into());
        wait_until("the bus is there", STARTS_WITHIN, async || at("bus").exists()).await;
        let chip_address = format!("--tcti=swtpm:path={}", at("tpm").display());
        let manager = program("tpm2-abrmd", ["--session", "--allow-root", &chip_address].map(str::to_owned).into());
        let tpm = Self { folder, manager, chip, bus };
        tpm.wait_ready().await;
        tpm.tool(&["init"]);
        tpm.tool(&["addtoken", "--pid=1", "--label=node", "--sopin=4321", "--userpin=1234"]);
        let key =
            ["addkey", "--label=node", "--userpin=1234", "--algorithm=rsa2048", "--key-label=node-kek", "--id=01"];
        tpm.tool(&key);
        tpm
    }

    /// As when the machine starts again.
    pub async fn reboot(&mut self) {
        self.manager.stop();
        self.chip.stop();
        self.chip.restart();
        let socket = self.folder.path().join("tpm.ctrl");
        wait_until("the TPM is there", STARTS_WITHIN, async || socket.exists()).await;
        self.manager.restart();
        self.wait_ready().await;
    }

    /// The TPM of another machine, with the same files.
    pub async fn replace(&mut self) {
        self.manager.stop();
        self.chip.stop();
        std::fs::remove_file(self.folder.path().join("state/tpm2-00.permall")).unwrap();
        self.chip.restart();
        let socket = self.folder.path().join("tpm.ctrl");
        wait_until("the TPM is there", STARTS_WITHIN, async || socket.exists()).await;
        self.manager.restart();
        self.wait_ready().await;
    }

    async fn wait_ready(&self) {
        let answers = || {
            let mut ask = Command::new("tpm2_getrandom");
            ask.arg("1").args(["--hex"]).envs(environment(self.folder.path())).output().unwrap().status.success()
        };
        wait_until("the TPM answers", STARTS_WITHIN, async || answers()).await;
    }

    fn tool(&self, arguments: &[&str]) {
        let (command, rest) = arguments.split_first().unwrap();
        let mut tool = Command::new("tpm2_ptool");
        tool.arg(command).arg("--path").arg(self.folder.path().join("store")).args(rest);
        let ended = tool.envs(environment(self.folder.path())).output().unwrap();
        assert!(ended.status.success(), "{tool:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }

    /// What a program needs to find token and TPM.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        environment(self.folder.path())
    }

    /// The settings of a KEK in it.
    pub fn item(&self) -> String {
        format!(
            "{{ name: node, pkcs11: {{ module: {}, tokenLabel: node, keyLabel: node-kek, pinFile: {} }} }}",
            module().display(),
            self.folder.path().join("pin").display()
        )
    }
}

fn environment(folder: &Path) -> [(&'static str, String); 4] {
    let manager = "tabrmd:bus_type=session";
    [
        ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", folder.join("bus").display())),
        ("TPM2_PKCS11_STORE", folder.join("store").display().to_string()),
        ("TPM2_PKCS11_TCTI", manager.into()),
        ("TPM2TOOLS_TCTI", manager.into()),
    ]
}

/// What `scripts/servers` installs.
fn module() -> PathBuf {
    if let Some(module) = std::env::var_os("TPM2_PKCS11") {
        return module.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
    let output = String::from_utf8(Command::new(script).arg("tpm2-pkcs11").output().unwrap().stdout).unwrap();
    output.lines().find_map(|line| line.strip_prefix("TPM2_PKCS11=")).expect("a module").into()
}
