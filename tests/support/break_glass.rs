//! The private half of a break-glass KEK, made and tried with the `break-glass` command of the binary under test.

use std::path::PathBuf;
use std::process::{Command, Output};

/// An identity file in a folder of its own.
pub struct BreakGlass {
    folder: tempfile::TempDir,
    /// The public half.
    pub recipient: String,
}

impl BreakGlass {
    /// A new pair of keys.
    pub fn create() -> Self {
        let folder = tempfile::Builder::new().prefix("break-glass-").tempdir().unwrap();
        let made = command(&["create", folder.path().join("identity").to_str().unwrap()]);
        assert!(made.status.success(), "{made:?}");
        let recipient = String::from_utf8(made.stdout).unwrap().lines().next().unwrap().to_owned();
        Self { folder, recipient }
    }

    /// The file of the private half.
    pub fn identity(&self) -> PathBuf {
        self.folder.path().join("identity")
    }

    /// The item of a configuration, called `escrow`.
    pub fn item(&self) -> String {
        format!("{{name: escrow, breakGlass: {{recipient: {}}}}}", self.recipient)
    }

    /// The same with this proof.
    pub fn proven_item(&self, proof: &str) -> String {
        format!("{{name: escrow, breakGlass: {{recipient: {}, proven: \"{proof}\"}}}}", self.recipient)
    }

    /// `break-glass prove` for a configuration.
    pub fn prove(&self, config: &std::path::Path) -> Output {
        let identity = self.identity();
        command(&["prove", "--config", config.to_str().unwrap(), "--identity", identity.to_str().unwrap()])
    }

    /// The proof that such a run printed.
    pub fn proof(proven: &Output) -> String {
        assert!(proven.status.success(), "{proven:?}");
        let out = String::from_utf8(proven.stdout.clone()).unwrap();
        let line = out.lines().find_map(|line| line.trim().strip_prefix("proven: ")).expect("a proof").to_owned();
        line.trim_matches('"').to_owned()
    }
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kube-envelope")).arg("break-glass").args(arguments).output().unwrap()
}
