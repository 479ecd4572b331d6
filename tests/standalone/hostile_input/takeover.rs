//! Requests to a plugin that takes over from other plugins: their key stores are asked for nothing but what has one
//! plugin's form, and never about what kube-envelope itself made. Nobody listens where the entries point to, so that
//! whatever is asked for is *unavailable*, and counted.

use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

const AWS_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const GOOGLE_KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k";
const AZURE_VERSION: &str = "0123456789abcdef0123456789abcdef";

async fn taking_over(keyring: &KeyringFile) -> (Plugin, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let credentials = at("credentials", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n");
    let (token, secret) = (at("token", "hvs.token"), at("secret", "secret"));
    let user = r#"{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}"#;
    let account = at("account.json", user);
    let settings = format!(
        "{}
refreshInterval: 1h
proveInterval: 1day
takeover:
- name: aws
  awsEncryptionProvider: {{ awsKms: {{ key: '{AWS_KEY}', endpoint: 'http://127.0.0.1:1', credentialsFile: {credentials} }} }}
- name: vault
  vaultKubernetesKms: {{ transit: {{ addresses: ['http://127.0.0.1:1'], key: kms, auth: {{ tokenFile: {token} }} }} }}
- name: google
  k8sCloudkmsPlugin: {{ gcpKms: {{ key: {GOOGLE_KEY}, endpoint: 'http://127.0.0.1:1', credentialsFile: {account} }} }}
- name: azure
  kubernetesKms:
    keyVersions: ['{AZURE_VERSION}']
    azureKeyVault:
      vault: https://kek.vault.azure.net:1
      key: k8s
      address: 127.0.0.1
      authorityHost: https://localhost:1
      credential: {{ clientSecret: {{ tenantId: t, clientId: c, secretFile: {secret} }} }}",
        keyring.settings(CLUSTER)
    );
    let plugin = Plugin::start(&settings).await;
    plugin.wait_healthy().await;
    (plugin, folder)
}

fn request(ciphertext: &[u8], key_id: &str) -> DecryptRequest {
    DecryptRequest {
        ciphertext: ciphertext.to_vec(),
        uid: "u".into(),
        key_id: key_id.into(),
        annotations: HashMap::new(),
    }
}

/// One of each plugin, in its form.
fn in_form() -> [(&'static str, DecryptRequest); 4] {
    let vault = format!("vault:v1:{}", BASE64_STANDARD.encode([9; 60]));
    let url = format!("https://kek.vault.azure.net/keys/k8s/{AZURE_VERSION}");
    let annotations = [("algorithm.azure.akv.io", "RSA-OAEP-256"), ("version.azure.akv.io", "1")];
    // It begins as kube-envelope's own do, by chance.
    let text = format!("KE{}", &BASE64_URL_SAFE_NO_PAD.encode([0xa5; 256])[2..]);
    let azure = DecryptRequest {
        annotations: annotations.map(|(name, value)| (name.into(), value.into())).into(),
        ..request(text.as_bytes(), &hex::encode(Sha256::digest(url)))
    };
    [
        ("aws", request(&[&b"1"[..], &[9; 160]].concat(), AWS_KEY)),
        ("vault", request(vault.as_bytes(), "1")),
        ("google", request(&[10; 113], &format!("{GOOGLE_KEY}/cryptoKeyVersions/1"))),
        ("azure", azure),
    ]
}

/// What is one thing away from the form of each.
fn off_form() -> Vec<DecryptRequest> {
    let change = |(_, good): (&str, DecryptRequest)| {
        let with = |change: &dyn Fn(&mut DecryptRequest)| {
            let mut request = good.clone();
            change(&mut request);
            request
        };
        vec![
            with(&|request| request.ciphertext.clear()),
            with(&|request| request.ciphertext.truncate(20)),
            with(&|request| request.ciphertext.resize(1025, b'A')),
            with(&|request| request.ciphertext.resize(60_000, b'A')),
            with(&|request| request.key_id.clear()),
            with(&|request| request.key_id.push('/')),
            with(&|request| request.key_id.insert(0, ' ')),
            with(&|request| request.key_id = "x".repeat(2000)),
            with(&|request| request.key_id = "\u{0}\n".into()),
            with(&|request| drop(request.annotations.insert("other.example".into(), vec![1]))),
            with(&|request| drop(request.annotations.insert("version.azure.akv.io".into(), vec![b'1'; 300]))),
            with(&|request| request.annotations.extend((0..9).map(|n| (format!("n{n}.example"), vec![1])))),
        ]
    };
    // Google's ciphertexts have no form of their own: what names its key is for it to refuse.
    let pairs = in_form().into_iter().flat_map(|one| in_form().map(|other| (one.clone(), other)));
    let crossed = pairs.filter(|(one, other)| one.0 != other.0 && other.0 != "google");
    let crossed = crossed.map(|((_, one), (_, other))| DecryptRequest { key_id: other.key_id, ..one });
    in_form().into_iter().flat_map(change).chain(crossed).collect()
}

#[tokio::test]
async fn what_has_not_the_form_of_a_former_plugin_is_refused_and_asks_no_key_store() {
    let keyring = KeyringFile::create();
    let (mut plugin, _folder) = taking_over(&keyring).await;
    let (mut client, good) = (plugin.client().await.unwrap(), stored(&plugin).await);
    for request in off_form() {
        let shown = format!("{} bytes, key_id {:?}", request.ciphertext.len(), request.key_id);
        let refused = refusal(&mut client, request).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{shown}: {}", refused.message());
        assert!(refused.message().len() < 3000, "{shown}");
    }
    assert_eq!(plugin.kek_requests("takeover"), 0);
    assert_unharmed(&mut plugin, &good).await;
}

#[tokio::test]
async fn what_has_the_form_of_one_asks_its_key_store_alone_which_may_be_away() {
    let keyring = KeyringFile::create();
    let (mut plugin, _folder) = taking_over(&keyring).await;
    let (mut client, good) = (plugin.client().await.unwrap(), stored(&plugin).await);
    let calls = |plugin: &Plugin| {
        ["aws", "vault", "google", "azure"].map(|entry| {
            let labels = [&format!("kek=\"{entry}\""), "operation=\"takeover\""];
            format!("{:.0}", plugin.metric("kube_envelope_kek_calls_total", &labels)).parse::<u64>().unwrap()
        })
    };
    for (at, (entry, request)) in in_form().into_iter().enumerate() {
        let before = calls(&plugin);
        let refused = refusal(&mut client, request).await;
        assert_eq!(refused.code(), Code::Unavailable, "{entry}: {}", refused.message());
        assert!(refused.message().starts_with(&format!("{entry}, under takeover: ")), "{}", refused.message());
        let mut expected = before;
        expected[at] += 1;
        assert_eq!(calls(&plugin), expected, "{entry}");
    }
    assert_unharmed(&mut plugin, &good).await;
}

/// Whatever was done to it.
#[tokio::test]
async fn no_key_of_a_former_plugin_is_shown_what_kube_envelope_made() {
    let keyring = KeyringFile::create();
    let (mut plugin, _folder) = taking_over(&keyring).await;
    let (mut client, good) = (plugin.client().await.unwrap(), stored(&plugin).await);
    let key_ids = in_form().map(|(_, request)| request.key_id);
    let damaged = flipped(&good.ciphertext[..3]).map(|(_, head)| [&head, &good.ciphertext[3..]].concat());
    let cut = (0..good.ciphertext.len()).map(|length| good.ciphertext[..length].to_vec());
    for ciphertext in damaged.chain(cut).chain([vec![b'1'; 161]]) {
        for key_id in &key_ids {
            let request = DecryptRequest { key_id: key_id.clone(), ..with_ciphertext(&good, &ciphertext) };
            let refused = refusal(&mut client, request).await;
            assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
        }
    }
    for later_format in (0..b' ').chain(0x7f..=0xff) {
        let request = request(&[&[b'K', b'E', later_format][..], &[9; 110]].concat(), &key_ids[2]);
        assert_eq!(refusal(&mut client, request).await.code(), Code::InvalidArgument);
    }
    assert_eq!(plugin.kek_requests("takeover"), 0);
    assert_unharmed(&mut plugin, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_are_refused_and_ask_no_key_store_of_a_former_plugin() {
    let keyring = KeyringFile::create();
    let (mut plugin, _folder) = taking_over(&keyring).await;
    let (client, good) = (plugin.client().await.unwrap(), stored(&plugin).await);
    let key_ids: Vec<String> = in_form().map(|(_, request)| request.key_id).into_iter().take(2).collect();
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..1100),
        "vault:v[0-9]{1,3}:[A-Za-z0-9+/=]{0,39}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|blob| [&b"1"[..], &blob].concat()),
    ];
    let annotations = prop::collection::hash_map("[a-z.]{0,30}", prop::collection::vec(any::<u8>(), 0..300), 0..4);
    let strategy = (bytes, prop_oneof![prop::sample::select(key_ids), any::<String>()], annotations);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |((ciphertext, key_id, annotations) in strategy)| {
            // The one form that random bytes may have.
            prop_assume!(!(ciphertext.first() == Some(&b'1') && ciphertext.len() > 64 && key_id == AWS_KEY));
            let request = DecryptRequest { ciphertext, uid: "u".into(), key_id, annotations };
            let refused = runtime.block_on(refusal(&mut client.clone(), request));
            prop_assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
        });
    });
    assert_eq!(plugin.kek_requests("takeover"), 0);
    assert_unharmed(&mut plugin, &good).await;
}
