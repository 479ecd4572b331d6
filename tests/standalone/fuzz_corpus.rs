//! The corpus of every fuzz target, `fuzz/corpus/TARGET/*`: each file as it is, and cut off after any byte.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// Gives each file to the target. A fault shows as a panic in it.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 4, "{} files in {}", files.len(), folder.display());
    for file in files {
        println!("{}", file.display());
        let bytes = std::fs::read(&file).unwrap();
        run(&bytes);
        for length in 0..bytes.len().min(300) {
            run(&bytes[..length]);
        }
    }
}

#[test]
fn no_ciphertext_of_the_corpus_panics_or_opens_under_a_foreign_dek() {
    replay("ciphertext", targets::ciphertext);
}

#[test]
fn an_annotation_of_the_corpus_is_refused_or_written_back_as_it_was() {
    replay("annotation", targets::annotation);
}

#[test]
fn no_configuration_of_the_corpus_panics() {
    replay("config", targets::config);
}

#[test]
fn a_keyring_file_of_the_corpus_is_refused_or_written_back_as_it_was() {
    replay("keyring", targets::keyring);
}

#[test]
fn no_state_file_of_the_corpus_is_fatal() {
    replay("stored_dek", targets::stored_dek);
}

#[test]
fn a_sealed_state_of_the_corpus_is_refused_or_written_back_as_it_was() {
    replay("sealed_state", targets::sealed_state);
}

#[test]
fn an_etcd_value_of_the_corpus_is_taken_for_what_its_prefix_says() {
    replay("etcd_value", targets::etcd_value);
}

#[test]
fn no_metrics_of_the_corpus_panic() {
    replay("metrics", targets::metrics);
}

#[test]
fn an_error_answer_of_the_corpus_is_a_denial_only_in_the_words_of_the_vendor() {
    replay("error_answer", targets::error_answer);
}
