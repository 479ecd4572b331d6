//! Runs a test once more in a network of its own, where the clouds' metadata addresses are this machine's.

use std::process::Command;

const INSIDE: &str = "KUBE_ENVELOPE_TEST_NAMESPACE";

/// The address that every cloud's metadata service has.
pub const METADATA: &str = "169.254.169.254:80";

/// Runs `test` in a network namespace where [`METADATA`] and the name `metadata.google.internal` lead nowhere but
/// to this process. `name` is the test's full name.
pub fn run<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("a runtime").block_on(test());
    }
    let home = tempfile::TempDir::new().expect("a folder");
    let hosts = home.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n169.254.169.254 metadata.google.internal\n").expect("written");
    let script = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo && mount --bind \"$1\" /etc/hosts \
                  && exec \"$2\" --exact \"$3\" --nocapture";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "sh", "-c", script, "sh"])
        .arg(&hosts)
        .arg(std::env::current_exe().expect("this program"))
        .arg(name)
        .env(INSIDE, "1")
        .env("HOME", home.path())
        .env_remove("GOOGLE_APPLICATION_CREDENTIALS")
        .env_remove("IDENTITY_ENDPOINT")
        .output()
        .expect("unshare and ip are installed (Debian: util-linux, iproute2)");
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && printed.contains("1 passed");
    assert!(passed, "{name} in its own network: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
}
