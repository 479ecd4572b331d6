//! The settings of a `transit` KEK, and what can be seen to be wrong with them without asking the server.

use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

/// Settings of a `transit` KEK.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TransitConfig {
    /// The servers of one cluster, `https://HOST:PORT`; the next one is asked when one does not answer.
    pub addresses: Vec<String>,
    /// The namespace that the mount lies in; none by default.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Where the transit engine is mounted.
    #[serde(default = "default_mount")]
    pub mount: String,
    /// The name of the key. It is never created.
    pub key: String,
    /// How the plugin logs in.
    pub auth: Auth,
    /// Certificates of the issuers to trust, PEM, in place of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A client certificate, for the `cert` login and for servers that demand one of every client.
    #[serde(default)]
    pub client_certificate: Option<ClientCertificate>,
    /// Allows plain http to other machines. Everyone on the way then sees tokens and DEKs.
    #[serde(default)]
    pub insecure_http: bool,
}

fn default_mount() -> String {
    "transit".into()
}

/// A client certificate and its key, PEM. Read again at each login.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClientCertificate {
    /// The certificate, its issuers after it.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// How the plugin gets its token. Files are read again at each login.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Auth {
    /// A file with a token in it, kept fresh by somebody else (Vault Agent) or renewed here.
    TokenFile(PathBuf),
    /// AppRole.
    #[serde(rename = "approle")]
    AppRole(AppRole),
    /// JWT, with keys that the server knows by itself: works before the API server is up.
    Jwt(Role),
    /// Kubernetes: the server asks the very API server that waits for the plugin; for use after boot only.
    Kubernetes(Role),
    /// The client certificate.
    Cert(CertRole),
}

/// Settings of the AppRole login.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AppRole {
    /// The role's id.
    pub role_id: String,
    /// A file with the secret id.
    pub secret_id_file: PathBuf,
    /// Where the login is mounted; `approle` by default.
    #[serde(default)]
    pub mount: Option<String>,
}

/// Settings of the JWT and the Kubernetes login.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(clippy::struct_field_names, reason = "the servers call it a role, and so does the configuration")]
pub struct Role {
    /// The role's name.
    pub role: String,
    /// A file with the JWT, such as a projected service account token.
    pub jwt_file: PathBuf,
    /// Where the login is mounted; `jwt` or `kubernetes` by default.
    #[serde(default)]
    pub mount: Option<String>,
}

/// Settings of the login by client certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CertRole {
    /// The role's name; without it the server tries all.
    #[serde(default)]
    pub role: Option<String>,
    /// Where the login is mounted; `cert` by default.
    #[serde(default)]
    pub mount: Option<String>,
}

impl TransitConfig {
    /// The namespace without slashes around it; empty for the root namespace.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default().trim_matches('/')
    }

    /// The mount without slashes around it.
    pub(super) fn mount(&self) -> &str {
        self.mount.trim_matches('/')
    }

    pub(super) fn find_problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.addresses.is_empty() {
            problems.push(("addresses", "lists no server; write for example https://vault.example:8200".into()));
        }
        problems
            .extend(self.addresses.iter().filter_map(|address| Some(("addresses", self.address_problem(address)?))));
        for (field, name) in [("key", self.key.as_str()), ("mount", self.mount())] {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (field == "mount" && c == '/');
            if name.is_empty() || !name.chars().all(plain) {
                problems.push((field, format!("{name:?} is not a name of letters, digits, '-', '_' and '.'")));
            }
        }
        if let (Auth::Cert(_), None) = (&self.auth, &self.client_certificate) {
            problems.push(("auth", "cert needs clientCertificate; add certFile and keyFile there".into()));
        }
        problems.extend(self.files().into_iter().filter_map(|(field, file)| {
            let error = std::fs::File::open(file).err()?;
            Some((field, format!("cannot open {}: {error}", file.display())))
        }));
        problems
    }

    fn address_problem(&self, address: &str) -> Option<String> {
        let Ok(url) = Url::parse(address) else {
            return Some(format!("{address:?} is not a URL; write for example https://vault.example:8200"));
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
            return Some(format!("{address:?} has more than host and port; leave the rest out"));
        }
        match url.scheme() {
            "https" => None,
            "http" if self.insecure_http || is_loopback(&url) => None,
            "http" => Some(format!("{address:?} is not encrypted; use https (or set insecureHttp: true)")),
            other => Some(format!("{address:?} has the scheme {other}; use https")),
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = Vec::new();
        files.extend(self.ca_file.as_deref().map(|file| ("caFile", file)));
        if let Some(certificate) = &self.client_certificate {
            files.push(("clientCertificate.certFile", certificate.cert_file.as_path()));
            files.push(("clientCertificate.keyFile", certificate.key_file.as_path()));
        }
        match &self.auth {
            Auth::TokenFile(file) => files.push(("auth.tokenFile", file)),
            Auth::AppRole(login) => files.push(("auth.approle.secretIdFile", &login.secret_id_file)),
            Auth::Jwt(login) => files.push(("auth.jwt.jwtFile", &login.jwt_file)),
            Auth::Kubernetes(login) => files.push(("auth.kubernetes.jwtFile", &login.jwt_file)),
            Auth::Cert(_) => {}
        }
        files
    }
}

/// Whether nothing sent there leaves the machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(yaml: &str) -> Vec<String> {
        let config: TransitConfig = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}"));
        config.find_problems().into_iter().map(|(field, problem)| format!("{field}: {problem}")).collect()
    }

    #[test]
    fn plain_http_is_refused_unless_it_stays_on_the_machine_or_is_allowed_by_name() {
        let with = |address: &str, more: &str| {
            problems(&format!("{{addresses: ['{address}'], key: k, auth: {{tokenFile: /dev/null}}{more}}}"))
        };
        assert_eq!(with("https://vault.example:8200", ""), Vec::<String>::new());
        assert_eq!(with("http://127.0.0.1:8200", ""), Vec::<String>::new());
        assert_eq!(with("http://[::1]:8200", ""), Vec::<String>::new());
        assert_eq!(with("http://vault.example:8200", ", insecureHttp: true"), Vec::<String>::new());
        for bad in ["http://vault.example:8200", "http://127.0.0.1.example", "ftp://127.0.0.1", "vault", "https://a/v1"]
        {
            assert_eq!(with(bad, "").len(), 1, "{bad}");
        }
    }

    #[test]
    fn every_problem_is_named_at_once_with_its_field() {
        let found = problems("{addresses: [], key: 'a/b', mount: '/', auth: {cert: {}}, caFile: /no/such/file}");
        let fields: Vec<_> = found.iter().map(|problem| problem.split(':').next().unwrap_or_default()).collect();
        assert_eq!(fields, ["addresses", "key", "mount", "auth", "caFile"], "{found:#?}");
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let refused = |yaml: &str| serde_saphyr::from_str::<TransitConfig>(yaml).is_err();
        assert!(refused("{addresses: [], key: k, auth: {tokenFile: /t}, adress: x}"));
        assert!(refused("{addresses: [], key: k, auth: {approle: {roleId: r, secretId: s}}}"));
        assert!(refused("{addresses: [], key: k, auth: {password: p}}"));
    }
}
