//! A SoftHSM token of one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Plugin;

/// A SoftHSM token in a folder of its own.
pub struct Token {
    folder: tempfile::TempDir,
    module: PathBuf,
}

impl Token {
    pub fn new() -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let tokens = folder.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        let settings = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(folder.path().join("softhsm2.conf"), settings).unwrap();
        std::fs::write(folder.path().join("pin"), "1234").unwrap();
        let token = Self { folder, module: module() };
        let label = ["--init-token", "--free", "--label", "kek", "--so-pin", "4321", "--pin", "1234"];
        token.run(Command::new("softhsm2-util").args(label));
        token
    }

    /// SoftHSM's settings for this token, for the variable `SOFTHSM2_CONF`.
    pub fn settings(&self) -> String {
        self.folder.path().join("softhsm2.conf").display().to_string()
    }

    /// A plugin whose KEK is the key `kube-envelope` in this token.
    pub fn plugin(&self, mechanism: &str, intervals: &str) -> Plugin {
        let pin = self.folder.path().join("pin").display().to_string();
        let labels = format!("tokenLabel: kek, keyLabel: kube-envelope, mechanism: {mechanism}");
        let item = format!("pkcs11: {{ module: {}, {labels}, pinFile: {pin} }}", self.module.display());
        let settings = format!("cluster: test\n{intervals}\nkeks: [{{ name: hsm, {item} }}]");
        Plugin::spawn_with(&settings, &[("SOFTHSM2_CONF", &self.settings())])
    }

    /// Runs `pkcs11-tool` on the token, logged in, and gives what it says.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let login = ["--token-label", "kek", "--login", "--pin", "1234"];
        self.run(Command::new("pkcs11-tool").arg("--module").arg(&self.module).args(login).args(arguments))
    }

    fn run(&self, command: &mut Command) -> String {
        let ended = command.env("SOFTHSM2_CONF", self.folder.path().join("softhsm2.conf")).output().unwrap();
        assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    }
}

/// What `scripts/servers` finds or installs.
fn module() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
    let output = String::from_utf8(Command::new(script).arg("softhsm").output().unwrap().stdout).unwrap();
    output.lines().find_map(|line| line.strip_prefix("SOFTHSM=")).expect("a module").into()
}
