//! The real `LocalStack`, one for all tests of a process, and an administrator's view of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use tempfile::TempDir;

use super::fakes::faults::Faults;

pub const REGION: &str = "eu-central-1";

/// Its address, and a client that may do everything.
pub async fn localstack() -> (SocketAddr, Client) {
    let server = tokio::task::spawn_blocking(server).await.expect("LocalStack starts");
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(format!("http://{server}"))
        .credentials_provider(Credentials::new("admin", "admin", None, None, "test"))
        .build();
    (server, Client::from_conf(config))
}

/// A new symmetric key's ARN.
pub async fn create_key(admin: &Client) -> String {
    let made = admin.create_key().send().await.expect("a key is made");
    made.key_metadata.and_then(|metadata| metadata.arn).expect("a key has an ARN")
}

/// A key in `LocalStack`, reached by the plugin through a proxy that fails on demand.
pub struct KeyStore {
    pub admin: Client,
    pub key: String,
    pub faults: Faults,
    folder: TempDir,
}

impl KeyStore {
    pub async fn start() -> Self {
        let (address, admin) = localstack().await;
        let (key, folder) = (create_key(&admin).await, TempDir::new().expect("a folder"));
        let credentials = "[default]\naws_access_key_id = plugin\naws_secret_access_key = plugin\n";
        std::fs::write(folder.path().join("credentials"), credentials).expect("written");
        Self { admin, key, faults: Faults::tls(address, folder.path()).await, folder }
    }

    /// Its item of `keks:`.
    pub fn item(&self) -> String {
        let (key, url, ca) = (&self.key, self.faults.url(), self.faults.ca_file().display());
        let credentials = self.folder.path().join("credentials");
        let settings = format!("key: '{key}', endpoint: '{url}', caFile: {ca}");
        format!("{{ name: aws, awsKms: {{ {settings}, credentialsFile: {} }} }}", credentials.display())
    }

    /// The id of the material that encrypts now.
    pub async fn current_material(&self) -> String {
        let described = self.admin.describe_key().key_id(&self.key).send().await.expect("described");
        described.key_metadata.and_then(|metadata| metadata.current_key_material_id).expect("a material id")
    }
}

/// The address of the `LocalStack` of this test process.
fn server() -> SocketAddr {
    static SERVER: OnceLock<(SocketAddr, Child)> = OnceLock::new();
    SERVER.get_or_init(start_server).0
}

/// A static value is never dropped: the shell ends `LocalStack` when this process is gone, which closes the
/// shell's input.
fn start_server() -> (SocketAddr, Child) {
    const LIVE_AS_LONG_AS_THE_TESTS: &str =
        r#""$0" >"$HOME/log" 2>&1 </dev/null & server=$!; cat >/dev/null; kill -9 $server; wait; rm -rf "$HOME""#;
    // Under the build's own folder: when a whole PID namespace ends at once, nobody is left to remove it.
    let home = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder").keep();
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let child = Command::new("sh")
        .args(["-c", LIVE_AS_LONG_AS_THE_TESTS, &path_of_localstack()])
        .env("HOME", &home)
        .env("GATEWAY_LISTEN", address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    let end = Instant::now() + Duration::from_secs(90);
    while !is_ready(address) {
        let log = || std::fs::read_to_string(home.join("log")).unwrap_or_default();
        assert!(Instant::now() < end, "LocalStack did not start: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    (address, child)
}

fn is_ready(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /_localstack/health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"kms\": \"available\"") || answer.contains("\"kms\": \"running\""))
}

fn path_of_localstack() -> String {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers"))
        .arg("localstack-kms")
        .stderr(Stdio::inherit())
        .output()
        .expect("scripts/servers runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = text.lines().find_map(|line| line.strip_prefix("LOCALSTACK_KMS="));
    path.unwrap_or_else(|| panic!("scripts/servers gave no LocalStack: {text}")).to_owned()
}
