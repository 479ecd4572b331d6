//! Looks for secrets in the memory of a running process, as whoever reads it would.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

/// How often each form of `secret` stands in the memory of process `pid`: raw, hex, and base64 at each of the three
/// offsets that it may have in a longer text. Forms that are not there are left out.
pub fn copies(pid: u32, secret: &[u8]) -> BTreeMap<String, usize> {
    let forms = forms(secret);
    let mut is_first = [false; 256];
    for (_, form) in &forms {
        is_first[usize::from(form[0])] = true;
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = BTreeMap::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        // A guard page, or a mapping that is gone by now.
        if memory.read_exact_at(&mut content, from).is_err() {
            continue;
        }
        for (at, byte) in content.iter().enumerate() {
            if !is_first[usize::from(*byte)] {
                continue;
            }
            for (name, form) in &forms {
                if content[at..].starts_with(form) {
                    *found.entry((*name).to_owned()).or_default() += 1;
                }
            }
        }
    }
    found
}

fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = vec![("raw", secret.to_vec()), ("hex", hex::encode(secret).into_bytes())];
    for (skip, name) in ["base64", "base64 after 1", "base64 after 2"].into_iter().enumerate() {
        // Without the characters at both ends, which depend on what stands beside the secret.
        let inner = &secret[(3 - skip) % 3..];
        let text = BASE64_STANDARD_NO_PAD.encode(&inner[..inner.len() / 3 * 3]);
        forms.push((name, text.into_bytes()));
    }
    forms
}
