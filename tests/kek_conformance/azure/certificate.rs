//! Signing in by a certificate: the fake checks each assertion as Entra does.

use kube_envelope::kek::KekCause;

use super::AzureBench;
use crate::bench::{Authenticates, Bench, config};
use crate::support::fakes::azure::{CLIENT, Certificate, TENANT};

impl AzureBench {
    fn certificate_file(&self) -> std::path::PathBuf {
        self.folder.path().join("client.pem")
    }

    fn client_certificate(&self) -> String {
        let file = self.certificate_file();
        let settings = format!("tenantId: {TENANT}, clientId: {CLIENT}, certificateFile: {}", file.display());
        self.item_of("kek", "vault.azure.net", "", &format!("{{ clientCertificate: {{ {settings} }} }}"))
    }
}

#[tokio::test]
async fn a_certificate_signs_in_and_a_renewed_one_takes_its_place() {
    let bench = AzureBench::start().await;
    let (first, second) = (Certificate::rsa(), Certificate::rsa());
    std::fs::write(bench.certificate_file(), &first.pem).expect("written");
    let kek = config(&bench.client_certificate()).open();
    let error = kek.version().await.expect_err("the application does not list it");
    assert_eq!(error.cause(), KekCause::Unauthenticated, "{}", error.chain());
    assert!(error.chain().contains("AADSTS700027"), "{}", error.chain());

    bench.fake.service().certificates.add(&first);
    // A refused content is not shown again until it changes.
    std::fs::write(bench.certificate_file(), format!("renewed\n{}", first.pem)).expect("written");
    kek.version().await.expect("version by the certificate");
    bench.expire_credentials().await;
    kek.version().await.expect("version by another assertion");

    bench.expire_credentials().await;
    bench.fake.service().certificates.clear();
    bench.fake.service().certificates.add(&second);
    assert_eq!(kek.version().await.expect_err("no longer listed").cause(), KekCause::Unauthenticated);
    std::fs::write(bench.certificate_file(), &second.pem).expect("written");
    kek.version().await.expect("version by the new certificate");

    let printed = format!("{kek:?} {:?}", config(&bench.client_certificate()));
    assert!(!printed.contains("PRIVATE") && !printed.contains("eyJ"), "{printed}");
}

#[tokio::test]
async fn a_signature_of_another_key_is_refused() {
    let bench = AzureBench::start().await;
    let (own, other) = (Certificate::rsa(), Certificate::rsa());
    bench.fake.service().certificates.add_with_key_of(&own, &other);
    std::fs::write(bench.certificate_file(), &own.pem).expect("written");
    let error = config(&bench.client_certificate()).open().version().await.expect_err("another key");
    assert!(error.chain().contains("AADSTS700027"), "{}", error.chain());
}

#[tokio::test]
async fn what_is_wrong_with_the_file_is_said_and_nobody_is_asked() {
    let bench = AzureBench::start().await;
    let (own, other, elliptic) = (Certificate::rsa(), Certificate::rsa(), Certificate::elliptic());
    bench.fake.service().certificates.add(&own);
    let certificate = own.pem.strip_prefix(&own.key).expect("the key first");
    let before = bench.fake.service().tokens_refused;
    for (content, words) in [
        (format!("{}{certificate}", other.key), "certificate of another key"),
        (own.key.clone(), "holds no certificate"),
        (certificate.to_owned(), "holds no private key"),
        (elliptic.pem.clone(), "not RSA"),
        ("nothing".into(), "holds no certificate"),
    ] {
        std::fs::write(bench.certificate_file(), content).expect("written");
        let error = config(&bench.client_certificate()).open().version().await.expect_err(words);
        assert_eq!(error.cause(), KekCause::Misconfigured, "{}", error.chain());
        let file = bench.certificate_file();
        assert!(error.chain().contains(words) && error.chain().contains(file.to_str().unwrap()), "{}", error.chain());
    }
    assert_eq!(bench.fake.service().tokens_refused, before);
    // In either order.
    std::fs::write(bench.certificate_file(), format!("{certificate}{}", own.key)).expect("written");
    config(&bench.client_certificate()).open().version().await.expect("version");
}
