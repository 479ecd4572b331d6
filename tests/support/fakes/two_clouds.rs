//! Google's and Azure's key stores as the two KEKs of one plugin, each behind a proxy that fails on demand.

use tempfile::TempDir;

use super::azure::{self, AzureFake, CLIENT, TENANT};
use super::faults::Faults;
use super::gcp::{self, GcpFake};

/// The key at Google.
pub const GOOGLE_KEY: &str = "projects/project/locations/europe-west3/keyRings/ring/cryptoKeys/kek";

/// A key at each of them, and one KEK for each in the configuration.
pub struct Clouds {
    pub google: GcpFake,
    pub google_line: Faults,
    pub azure: AzureFake,
    pub azure_line: Faults,
    folder: TempDir,
}

impl Clouds {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let (google, azure) = (GcpFake::start().await, AzureFake::start().await);
        google.service().keys.insert(GOOGLE_KEY.into(), gcp::Key::new());
        azure.service().keys.insert("kek".into(), azure::Key::rsa());
        let lines = [folder.path().join("google"), folder.path().join("azure")];
        for line in &lines {
            std::fs::create_dir(line).unwrap();
        }
        std::fs::write(folder.path().join("account.json"), google.credentials()).unwrap();
        std::fs::write(folder.path().join("secret"), &azure.service().secret).unwrap();
        let google_line = Faults::tls(google.address, &lines[0]).await;
        let azure_line = Faults::tls_for(azure.address, &lines[1], &["kek.vault.azure.net", "localhost"]).await;
        Self { google, google_line, azure, azure_line, folder }
    }

    pub fn settings(&self) -> String {
        let (google, azure) = (self.google_item(), self.azure_item());
        format!(
            "cluster: clouds\nrefreshInterval: 1s\nproveInterval: 2s\nkeks:\n  - {{ name: google, {google} }}\n  - {{ name: azure, {azure} }}"
        )
    }

    /// The settings of the key at Google, under its kind.
    pub fn google_item(&self) -> String {
        let (folder, google) = (self.folder.path().display(), self.google_line.url());
        let ca = self.google_line.ca_file().display();
        format!(
            "gcpKms: {{ key: {GOOGLE_KEY}, endpoint: '{google}', insecureHttp: true, credentialsFile: {folder}/account.json, caFile: {ca} }}"
        )
    }

    /// The settings of the key in the vault, under its kind.
    pub fn azure_item(&self) -> String {
        let (folder, port) = (self.folder.path().display(), self.azure_line.port());
        let ca = self.azure_line.ca_file().display();
        let login = format!("clientSecret: {{ tenantId: {TENANT}, clientId: {CLIENT}, secretFile: {folder}/secret }}");
        format!(
            "azureKeyVault: {{ vault: 'https://kek.vault.azure.net:{port}', key: kek, address: 127.0.0.1, \
             authorityHost: 'https://localhost:{port}', caFile: {ca}, credential: {{ {login} }} }}"
        )
    }
}
