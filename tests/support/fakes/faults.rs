//! A proxy before a backend: passes requests on, one to a connection, or answers them with a fault.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::Acceptor;
use rustls::{NamedGroup, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer, without asking the backend.
    Answer(Answer),
    /// No answer at all, on an open connection.
    Silence,
    /// The head of an answer, then a byte now and then.
    Drip,
    /// The connection ends once the request is read.
    Cut,
    /// The connection ends within the body.
    CutWithinAnswer,
    /// The connection ends before anything is read.
    Refuse,
    /// An answer of so many bytes.
    Oversized(usize),
    /// The proxy shows a certificate for another name.
    CertificateOfAnotherName,
    /// The proxy shows a certificate of an issuer that nobody trusts.
    CertificateOfAnotherIssuer,
}

/// A canned answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// The proxy. With TLS its certificate is for localhost and 127.0.0.1, and [`Faults::ca_file`] trusts it.
pub struct Faults {
    address: SocketAddr,
    state: Arc<State>,
    ca_file: Option<PathBuf>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    upstream: SocketAddr,
    fault: Mutex<Option<Fault>>,
    date: Mutex<Option<String>>,
    requests: AtomicUsize,
    requests_under_fault: AtomicUsize,
    sent_under_fault: AtomicUsize,
    key_exchange: Mutex<Option<NamedGroup>>,
    tls: Option<Certificates>,
}

struct Certificates {
    good: Arc<ServerConfig>,
    another_name: Arc<ServerConfig>,
    another_issuer: Arc<ServerConfig>,
}

impl Faults {
    /// A proxy without TLS before `upstream`, for a client that cannot be told whom to trust.
    pub async fn plain(upstream: SocketAddr) -> Self {
        Self::start(upstream, None, None).await
    }

    /// A proxy that ends TLS before `upstream`, which speaks plain HTTP; the issuer's certificate is written into `folder`.
    pub async fn tls(upstream: SocketAddr, folder: &Path) -> Self {
        Self::tls_for(upstream, folder, &["localhost", "127.0.0.1"]).await
    }

    /// The same with a certificate for `names`.
    pub async fn tls_for(upstream: SocketAddr, folder: &Path, names: &[&str]) -> Self {
        let (issuer, stranger) = (TestIssuer::new(), TestIssuer::new());
        let ca_file = folder.join("ca.pem");
        std::fs::write(&ca_file, &issuer.pem).expect("the CA file is written");
        let certificates = Certificates {
            good: issuer.server(names),
            another_name: issuer.server(&["elsewhere.example"]),
            another_issuer: stranger.server(names),
        };
        Self::start(upstream, Some(certificates), Some(ca_file)).await
    }

    async fn start(upstream: SocketAddr, tls: Option<Certificates>, ca_file: Option<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::new(State {
            upstream,
            fault: Mutex::new(None),
            date: Mutex::new(None),
            requests: AtomicUsize::new(0),
            requests_under_fault: AtomicUsize::new(0),
            sent_under_fault: AtomicUsize::new(0),
            key_exchange: Mutex::new(None),
            tls,
        });
        let task = tokio::spawn(accept(listener, state.clone()));
        Self { address, state, ca_file, task }
    }

    /// `https://localhost:PORT`, or `http://127.0.0.1:PORT` without TLS.
    pub fn url(&self) -> String {
        match self.ca_file {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://{}", self.address),
        }
    }

    /// The port that the proxy listens on, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The certificate of the issuer that the proxy's own certificate comes from.
    pub fn ca_file(&self) -> &Path {
        self.ca_file.as_deref().expect("a proxy with TLS")
    }

    /// From now on every request meets `fault`.
    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().expect("not poisoned") = Some(fault);
    }

    /// From now on answers that are passed on bear this `Date`.
    pub fn set_date(&self, date: String) {
        *self.state.date.lock().expect("not poisoned") = Some(date);
    }

    /// From now on requests are passed on.
    pub fn clear(&self) {
        *self.state.fault.lock().expect("not poisoned") = None;
    }

    /// How many requests have been read, passed on or not.
    pub fn requests(&self) -> usize {
        self.state.requests.load(SeqCst)
    }

    /// Tells the same later, without this proxy at hand.
    pub fn counter(&self) -> Box<dyn Fn() -> usize + Send + Sync> {
        let state = self.state.clone();
        Box::new(move || state.requests.load(SeqCst))
    }

    /// How many requests have been read while a fault was set.
    pub fn requests_under_fault(&self) -> usize {
        self.state.requests_under_fault.load(SeqCst)
    }

    /// The key exchange that the client of the latest connection offered first.
    pub fn key_exchange_offered_first(&self) -> Option<NamedGroup> {
        *self.state.key_exchange.lock().expect("not poisoned")
    }

    /// How many bytes of answers were taken by clients while a fault was set.
    pub fn sent_under_fault(&self) -> usize {
        self.state.sent_under_fault.load(SeqCst)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((socket, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let fault = state.fault.lock().expect("not poisoned").clone();
            // A client that goes away ends its connection; the test does not care.
            let _ = serve(socket, &state, fault).await;
        });
    }
}

async fn serve(socket: TcpStream, state: &State, fault: Option<Fault>) -> std::io::Result<()> {
    if matches!(fault, Some(Fault::Refuse)) {
        return Ok(());
    }
    match &state.tls {
        None => answer(socket, state, fault).await,
        Some(tls) => {
            let config = match fault {
                Some(Fault::CertificateOfAnotherName) => &tls.another_name,
                Some(Fault::CertificateOfAnotherIssuer) => &tls.another_issuer,
                _ => &tls.good,
            };
            let handshake = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
            let offered = handshake.client_hello().named_groups().and_then(|groups| groups.first().copied());
            *state.key_exchange.lock().expect("not poisoned") = offered;
            answer(handshake.into_stream(config.clone()).await?, state, fault).await
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: S,
    state: &State,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let request = read_request(&mut client).await?;
    state.requests.fetch_add(1, SeqCst);
    let Some(fault) = fault else { return pass_on(client, state, &request).await };
    state.requests_under_fault.fetch_add(1, SeqCst);
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    match fault {
        Fault::Answer(answer) => client.write_all(answer.bytes().as_bytes()).await?,
        Fault::Silence => tokio::time::sleep(Duration::from_mins(1)).await,
        Fault::Drip => {
            client.write_all(head(10_000).as_bytes()).await?;
            loop {
                client.write_all(b" ").await?;
                client.flush().await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Fault::CutWithinAnswer => client.write_all(format!("{}{{\"data\":", head(500)).as_bytes()).await?,
        Fault::Oversized(length) => {
            client.write_all(head(length).as_bytes()).await?;
            let chunk = vec![b' '; 64 << 10];
            for _ in 0..length / chunk.len() {
                client.write_all(&chunk).await?;
                state.sent_under_fault.fetch_add(chunk.len(), SeqCst);
            }
        }
        Fault::Cut | Fault::Refuse | Fault::CertificateOfAnotherName | Fault::CertificateOfAnotherIssuer => {}
    }
    client.shutdown().await
}

/// Reads one request, head and body, of a client that gives the body's length.
async fn read_request(client: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if let Some(head) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = length.map_or(0, |length| length.trim().parse().expect("a length is a number"));
            if request.len() >= head + 4 + length {
                return Ok(request);
            }
        }
        if client.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends the request on with `connection: close`, and the answer back to its end.
async fn pass_on<S: AsyncWrite + Unpin>(mut client: S, state: &State, request: &[u8]) -> std::io::Result<()> {
    let line = request.windows(2).position(|two| two == b"\r\n").expect("a request has a first line") + 2;
    let mut server = TcpStream::connect(state.upstream).await?;
    server.write_all(&request[..line]).await?;
    server.write_all(b"connection: close\r\n").await?;
    server.write_all(&request[line..]).await?;
    let date = state.date.lock().expect("not poisoned").clone();
    match date {
        None => _ = tokio::io::copy(&mut server, &mut client).await?,
        Some(date) => {
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).await?;
            client.write_all(&with_date(&answer, &date)).await?;
        }
    }
    client.shutdown().await
}

/// The answer with another `Date`, or one where it had none.
fn with_date(answer: &[u8], date: &str) -> Vec<u8> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    let kept: Vec<_> = text.lines().filter(|line| !line.to_lowercase().starts_with("date:")).collect();
    let head_with_date = format!("{}\r\ndate: {date}", kept.join("\r\n"));
    [head_with_date.as_bytes(), &answer[head..]].concat()
}

impl Answer {
    fn bytes(&self) -> String {
        let Self { status, headers, body } = self;
        let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (headers, length) = (headers.concat(), body.len());
        format!("HTTP/1.1 {status} canned\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}")
    }
}

/// An address that nobody may come to.
pub struct Trap {
    address: SocketAddr,
    visits: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Trap {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let visits = Arc::new(AtomicUsize::new(0));
        let counted = visits.clone();
        let task = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, SeqCst);
            }
        });
        Self { address, visits, task }
    }

    /// Encrypted by its looks, so that no client shuns it for want of encryption; a connection alone counts.
    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    pub fn visits(&self) -> usize {
        self.visits.load(SeqCst)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A certificate authority of one test.
pub struct TestIssuer {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

impl TestIssuer {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a CA certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A client's certificate and its key.
    pub fn client_certificate(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    /// A certificate for `names` and its key.
    pub fn certificate(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let (certificate, key) = self.certificate(names);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a key that fits");
        // One request to a connection, so that each meets the fault of its time: HTTP/1.1 alone.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}
