//! What a plugin that nobody asks anything asks of its KEK: requests counted on the wire, for each kind. The intervals
//! are the sixtieth of the defaults, so a second stands for a minute. `scripts/bench idle` runs it for longer.

use std::any::Any;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::fakes::azure::{self, AzureFake, CLIENT, TENANT};
use crate::support::fakes::faults::Faults;
use crate::support::fakes::gcp::{self, GcpFake};
use crate::support::key_store::KeyStore;
use crate::support::localstack;
use crate::support::token::Token;
use crate::support::{KeyringFile, Plugin};

/// The defaults by sixty.
const INTERVALS: &str = "refreshInterval: 1s\nproveInterval: 10s";
const SECONDS_OF_A_DAY: f64 = 86_400.0 / 60.0;
const GOOGLE_KEY: &str = "projects/project/locations/europe-west3/keyRings/ring/cryptoKeys/kek";

/// A plugin with one KEK, and what counts requests before the KEK's server, where there is one.
struct Idle {
    kind: &'static str,
    plugin: Plugin,
    line: Option<Box<dyn Fn() -> usize + Send + Sync>>,
    /// Dollars for 10,000 reads of the version, and for 10,000 unwraps, by the lists that `docs/keks` names.
    prices: Option<(f64, f64)>,
    _servers: Box<dyn Any + Send + Sync>,
}

/// Requests so far: versions read, unwraps, and all on the wire.
#[derive(Clone, Copy)]
struct Count {
    versions: u64,
    unwraps: u64,
    wraps: u64,
    wire: Option<usize>,
}

impl Idle {
    fn count(&self) -> Count {
        let asked = |operation| self.plugin.kek_requests(operation);
        let wire = self.line.as_ref().map(|line| line());
        Count { versions: asked("version"), unwraps: asked("unwrap"), wraps: asked("wrap"), wire }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_plugin_asks_once_for_each_interval_and_nothing_else() {
    let seconds: u32 = std::env::var("BENCH_SECONDS").map_or(10, |text| text.parse().unwrap());
    let all = [keyring().await, pkcs11(), transit().await, aws().await, google().await, azure().await];
    for idle in &all {
        idle.plugin.wait_healthy().await;
    }
    // Past the adoption and the first proof.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before: Vec<_> = all.iter().map(Idle::count).collect();
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    println!(
        "| kind | version reads per day | unwraps per day | requests on the wire per day | US dollars per day |\n|---|---|---|---|---|"
    );
    for (idle, before) in all.iter().zip(before) {
        let after = idle.count();
        let (versions, unwraps) = (after.versions - before.versions, after.unwraps - before.unwraps);
        print_row(idle, f64::from(seconds), &before, &after);
        let (kind, most) = (idle.kind, u64::from(seconds) * 10 / 9 + 2);
        assert!((u64::from(seconds) / 2..=most).contains(&versions), "{kind}: {versions} versions in {seconds} s");
        assert!(unwraps <= u64::from(seconds) / 10 + 1, "{kind}: {unwraps} unwraps in {seconds} s");
        assert_eq!(after.wraps, before.wraps, "{kind}");
        if let (Some(before), Some(after)) = (before.wire, after.wire) {
            // One may be under way at either end.
            let (wire, counted) = (after - before, usize::try_from(versions + unwraps).unwrap());
            assert!(wire.abs_diff(counted) <= 1, "{kind}: {wire} on the wire, {counted} counted");
        }
    }
}

fn print_row(idle: &Idle, seconds: f64, before: &Count, after: &Count) {
    let a_day = |count: u64| f64::from(u32::try_from(count).unwrap()) / seconds * SECONDS_OF_A_DAY;
    let (versions, unwraps) = (a_day(after.versions - before.versions), a_day(after.unwraps - before.unwraps));
    let wire = before.wire.zip(after.wire).map(|(before, after)| a_day((after - before).try_into().unwrap()));
    let wire = wire.map_or("-".into(), |wire| format!("{wire:.0}"));
    let price = idle
        .prices
        .map_or("-".into(), |(version, unwrap)| format!("{:.4}", (versions * version + unwraps * unwrap) / 10_000.0));
    println!("| `{}` | {versions:.0} | {unwraps:.0} | {wire} | {price} |", idle.kind);
}

async fn start(item: &str) -> Plugin {
    Plugin::start(&format!("cluster: idle\n{INTERVALS}\nkeks: [{item}]")).await
}

async fn keyring() -> Idle {
    let keyring = KeyringFile::create();
    let plugin = start(&format!("{{ name: it, keyring: {{ file: {} }} }}", keyring.path().display())).await;
    Idle { kind: "keyring", plugin, line: None, prices: None, _servers: Box::new(keyring) }
}

fn pkcs11() -> Idle {
    let token = Token::new();
    token.tool(&["--keygen", "--key-type", "AES:32", "--label", "kube-envelope", "--id", "01", "--sensitive"]);
    let plugin = token.plugin("aesGcm", INTERVALS);
    Idle { kind: "pkcs11", plugin, line: None, prices: None, _servers: Box::new(token) }
}

async fn transit() -> Idle {
    let store = KeyStore::start("transit").await;
    let plugin = start(&store.item()).await;
    let line = store.faults.counter();
    Idle { kind: "transit", plugin, line: Some(line), prices: None, _servers: Box::new(store) }
}

async fn aws() -> Idle {
    let store = localstack::KeyStore::start().await;
    let plugin = start(&store.item()).await;
    let line = store.faults.counter();
    Idle { kind: "awsKms", plugin, line: Some(line), prices: Some((0.03, 0.03)), _servers: Box::new(store) }
}

async fn google() -> Idle {
    let (google, folder) = (GcpFake::start().await, TempDir::new().unwrap());
    google.service().keys.insert(GOOGLE_KEY.into(), gcp::Key::new());
    std::fs::write(folder.path().join("account.json"), google.credentials()).unwrap();
    let line = Faults::tls(google.address, folder.path()).await;
    let (url, ca, at) = (line.url(), line.ca_file().display(), folder.path().display());
    let settings = format!(
        "key: {GOOGLE_KEY}, endpoint: '{url}', insecureHttp: true, credentialsFile: {at}/account.json, caFile: {ca}"
    );
    let plugin = start(&format!("{{ name: it, gcpKms: {{ {settings} }} }}")).await;
    let counted = line.counter();
    let servers = Box::new((google, line, folder));
    Idle { kind: "gcpKms", plugin, line: Some(counted), prices: Some((0.0, 0.03)), _servers: servers }
}

async fn azure() -> Idle {
    let (azure, folder) = (AzureFake::start().await, TempDir::new().unwrap());
    azure.service().keys.insert("kek".into(), azure::Key::rsa());
    std::fs::write(folder.path().join("secret"), &azure.service().secret).unwrap();
    let line = Faults::tls_for(azure.address, folder.path(), &["kek.vault.azure.net", "localhost"]).await;
    let (port, ca, at) = (line.port(), line.ca_file().display(), folder.path().display());
    let secret = format!("{{ tenantId: {TENANT}, clientId: {CLIENT}, secretFile: {at}/secret }}");
    let settings = format!(
        "vault: 'https://kek.vault.azure.net:{port}', key: kek, address: 127.0.0.1, \
         authorityHost: 'https://localhost:{port}', caFile: {ca}, credential: {{ clientSecret: {secret} }}"
    );
    let plugin = start(&format!("{{ name: it, azureKeyVault: {{ {settings} }} }}")).await;
    let counted = line.counter();
    let servers = Box::new((azure, line, folder));
    Idle { kind: "azureKeyVault", plugin, line: Some(counted), prices: Some((0.03, 0.03)), _servers: servers }
}
