//! Many Decrypts at once of DEKs that are not in memory, while the key store does not answer.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kube_envelope::kek::guard::DEADLINE;
use tonic::Code;

use crate::support::Plugin;
use crate::support::fakes::faults::Fault;
use crate::support::key_store::KeyStore;
use crate::support::plugin::connect_with;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};

const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_different_deks_that_are_missing_at_once_cost_one_call_to_a_kek_that_is_away() {
    for fault in [Fault::Silence, Fault::Cut] {
        let store = KeyStore::start("primary").await;
        let intervals = "refreshInterval: 1h\nproveInterval: 1h";
        let plugin = Plugin::start(&format!("cluster: test\n{intervals}\nkeks: [{}]", store.item())).await;
        plugin.wait_healthy().await;
        let sealed = encrypt(&plugin).await;
        let client = connect_with(&plugin.socket(), Duration::from_mins(2)).await.unwrap();
        // Longer than an answer is taken for a sign of life.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let before = (plugin.kek_requests("unwrap"), plugin.kek_requests(""));
        store.faults.set(fault);
        let started = Instant::now();
        let missing = futures::future::join_all((0..100).map(|number: u8| {
            let (mut client, request) = (client.clone(), of_another_dek(&sealed, u16::from(number)));
            async move { client.decrypt(request).await.map(drop).unwrap_err().code() }
        }));
        assert_eq!(missing.await, vec![Code::Unavailable; 100]);
        // Whoever comes after the breaker's pause, on a machine that is slow, makes one call more.
        let late = started.elapsed().saturating_sub(DEADLINE).as_millis() / 200;
        let most = 3 * (1 + u64::try_from(late).unwrap());
        let asked = plugin.kek_requests("unwrap") - before.0;
        assert!((1..=most).contains(&asked), "{asked} requests: one call and its two retries, {late} late ones");
        assert!(asked < 100, "{asked} requests");
        assert_eq!(u64::try_from(store.faults.requests_under_fault()).unwrap(), asked, "on the wire");
        let all = plugin.kek_requests("") - before.1;
        assert_eq!(all, asked, "nothing else was asked");
        store.faults.clear();
    }
}

/// Status and Encrypt ask nobody. A machine that was too slow to see it gets another chance; a plugin that has them wait
/// for the Decrypts fails each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_encrypt_are_answered_while_four_hundred_decrypts_wait_for_a_kek() {
    let store = KeyStore::start("primary").await;
    let intervals = "refreshInterval: 1h\nproveInterval: 1h\nmaxOfflineAge: 24h";
    let plugin = Plugin::start(&format!("cluster: test\n{intervals}\nkeks: [{}]", store.item())).await;
    plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    let (decrypts, mut client) =
        (connect_with(&plugin.socket(), PATIENCE).await.unwrap(), plugin.client().await.unwrap());
    let mut answered_before = Vec::new();
    for round in 0..5_u16 {
        // The breaker has closed by now, and an answer is a sign of life no more.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        store.faults.set(Fault::Silence);
        let answered = AtomicUsize::new(0);
        let waiting = futures::future::join_all((0..400).map(|number| {
            let (mut client, request) = (decrypts.clone(), of_another_dek(&sealed, round * 400 + number));
            let answered = &answered;
            async move {
                let refused = client.decrypt(request).await.map(drop).unwrap_err();
                answered.fetch_add(1, SeqCst);
                refused.code()
            }
        }));
        let asked = async {
            // Until the Decrypts are with the plugin.
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.status(StatusRequest {}).await.unwrap();
            client.encrypt(EncryptRequest { plaintext: vec![7; 32], uid: "u".into() }).await.unwrap();
            answered.load(SeqCst)
        };
        let (codes, before) = tokio::join!(waiting, asked);
        let expected = [Code::Unavailable, Code::ResourceExhausted];
        assert!(codes.iter().all(|code| expected.contains(code)), "{codes:?}");
        answered_before.push(before);
        store.faults.clear();
        if before == 0 {
            return;
        }
        // Some KEK request has to be answered again, so that the next round finds the breaker closed.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = client.decrypt(of_another_dek(&sealed, u16::MAX - round)).await.map(drop);
    }
    panic!("Status and Encrypt were answered after so many of 400 Decrypts: {answered_before:?}");
}

async fn encrypt(plugin: &Plugin) -> EncryptResponse {
    let request = EncryptRequest { plaintext: vec![7; 32], uid: "u".into() };
    plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner()
}

/// With another DEK's id: whether it is its id, the unwrapped DEK would tell.
fn of_another_dek(sealed: &EncryptResponse, number: u16) -> DecryptRequest {
    let EncryptResponse { mut ciphertext, key_id, annotations } = sealed.clone();
    ciphertext[3..5].copy_from_slice(&number.to_be_bytes());
    DecryptRequest { ciphertext, uid: "u".into(), key_id, annotations }
}
