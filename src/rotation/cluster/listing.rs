//! Lists of metadata, page by page: of a resource in all namespaces or in one, whole or a part of its names.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::rotation::cluster::api::{Answer, Api, ApiError, MetadataList};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;

/// Objects in a page.
pub(in crate::rotation) const PAGE: u32 = 500;
/// Maximum attempts per request.
pub(in crate::rotation) const TRIES: u32 = 10;
/// The wait after the first failure; each later one is twice as long.
pub(in crate::rotation) const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait.
pub(in crate::rotation) const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A part of all names, by hash, in units of 2⁻³² of them: from, and up to but not with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The least hash.
    pub from: u64,
    /// The hash after the greatest.
    pub to: u64,
}

impl Names {
    /// Behind the hash of every name.
    pub const END: u64 = 1 << 32;
    /// All names: nothing is hashed.
    pub const ALL: Self = Self { from: 0, to: Self::END };

    /// Whether a name is in it. The same in every process, today and tomorrow.
    pub fn contains(self, name: &str) -> bool {
        if self == Self::ALL {
            return true;
        }
        let digest = Sha256::digest(name.as_bytes());
        let hash = digest.iter().take(4).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        (self.from..self.to).contains(&hash)
    }
}

/// What is gone through: a resource in all namespaces or in one, whole or a part of its names.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    /// The resource; its objects are listed in the version that it names.
    pub resource: Resource,
    /// Where; everywhere if in none.
    pub namespace: Option<String>,
    /// Which of the objects.
    pub names: Names,
}

impl Folder {
    /// All objects of a resource.
    pub fn all(resource: &Resource) -> Self {
        Self { resource: resource.clone(), namespace: None, names: Names::ALL }
    }

    fn path(&self) -> String {
        match &self.namespace {
            Some(namespace) => self.resource.namespace_path(namespace),
            None => self.resource.list_path(),
        }
    }
}

/// A page of a list.
pub enum Page {
    /// The objects' metadata.
    Listed(MetadataList),
    /// The resource no longer exists.
    Absent,
    /// One of the objects cannot be read or converted, so none can be listed.
    Unlistable(String),
}

/// For how long a list is tried that only one resource does not give, while the API server is well.
const OWN_PROBLEM_AFTER: Duration = Duration::from_secs(8);
/// For how long an API server is waited for that is away or overloaded.
const AWAY_FOR: Duration = Duration::from_mins(1);

/// One page of metadata. An expired token is followed by the one that the server sends instead: what was created
/// meanwhile may be missing, and that is stored under the target key.
///
/// # Errors
/// An error status of the API server, or no answer.
pub(in crate::rotation) async fn page_after(
    api: &Api,
    folder: &Folder,
    mut token: String,
) -> Result<Page, RotationError> {
    let mut wait = FIRST_WAIT;
    let (path, resource) = (folder.path(), &folder.resource);
    let mut tries = 0_u32;
    loop {
        tries = tries.saturating_add(1);
        let (problem, own_after, retry_after) = match api.list(&path, PAGE, &token).await {
            Ok(answer) => match answer.status {
                200 => {
                    let list = api.parse(&answer.body);
                    return list.map(Page::Listed).map_err(RotationError::api(format!("list {resource}")));
                }
                404 => return Ok(Page::Absent),
                // The list continues after the last name, as of now. Waiting would not help, so there is no pause.
                410 => {
                    token = answer.refusal().metadata.next.unwrap_or_default();
                    if tries < TRIES {
                        continue;
                    }
                    ("its continue token expires again and again".into(), TRIES, None)
                }
                400 | 403 | 405 => {
                    let refused = api.success(answer).expect_err("a refusal");
                    return Err(RotationError::api(format!("list {resource}"))(refused));
                }
                _ => {
                    let message = answer.refusal().message;
                    let after = match () {
                        // A plugin that is away for a moment is told in the same words; one that stays away is not
                        // waited for here.
                        () if is_undecryptable(&message) || is_conversion(&message) => 3,
                        () if is_initializing(&message) => 6,
                        () => TRIES,
                    };
                    (message, after, answer.retry_after)
                }
            },
            Err(error) => (error.to_string(), TRIES, None),
        };
        // Of this resource alone: the others can be gone through.
        if tries >= own_after && own_after < TRIES {
            return Ok(Page::Unlistable(problem));
        }
        if tries >= TRIES {
            return Err(RotationError::Paused(format!("cannot list {resource}: {problem}")));
        }
        tokio::time::sleep(retry_after.unwrap_or(wait).max(wait)).await;
        wait = wait.saturating_mul(2).min(LONGEST_WAIT);
    }
}

/// The revision of a list now, and about how many objects it has.
///
/// # Errors
/// An error status of the API server, or no answer.
pub(in crate::rotation) async fn revision(api: &Api, resource: &Resource) -> Result<(u64, u64), RotationError> {
    let list = shortest(api, &Folder::all(resource)).await?;
    let revision = list.metadata.resource_version.parse().map_err(|_| {
        RotationError::Unusable(format!(
            "resource version {:?} of {resource} is not a number",
            list.metadata.resource_version
        ))
    })?;
    Ok((revision, counted(&list)))
}

/// About how many objects there are, without regard to their names.
///
/// # Errors
/// An error status of the API server, or no answer.
pub(in crate::rotation) async fn count(api: &Api, folder: &Folder) -> Result<u64, RotationError> {
    Ok(counted(&shortest(api, folder).await?))
}

/// Asks until there is an answer that stays. An API server that is away or overloaded is waited for; one that is well and
/// does not list this resource has its reasons.
///
/// # Errors
/// No answer that stays within the time that is waited for one.
pub(in crate::rotation) async fn until_it_stays<A>(api: &Api, ask: impl Fn() -> A) -> Result<Answer, ApiError>
where
    A: Future<Output = Result<Answer, ApiError>>,
{
    let began = Instant::now();
    loop {
        let result = ask().await;
        let (status, message) = match &result {
            Ok(answer) => (Some(answer.status), answer.refusal().message),
            Err(_) => (None, String::new()),
        };
        let stays = match status {
            Some(401 | 408 | 429 | 500..) => is_undecryptable(&message) || is_conversion(&message),
            status => status.is_some(),
        };
        // A 500 is also what a server says that is starting. Whether it is well decides which of both it is.
        let may_be_its_own = matches!(status, Some(500..)) || is_initializing(&message);
        let waited = began.elapsed();
        if stays || waited >= AWAY_FOR || (may_be_its_own && waited >= OWN_PROBLEM_AFTER && is_well(api).await) {
            return result;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn is_well(api: &Api) -> bool {
    api.get("/readyz", "text/plain").await.is_ok_and(|answer| answer.status == 200)
}

async fn shortest(api: &Api, folder: &Folder) -> Result<MetadataList, RotationError> {
    let failed = || RotationError::api(format!("list {}", folder.resource));
    let path = folder.path();
    let answer = until_it_stays(api, || api.list(&path, 1, "")).await.map_err(failed())?;
    let body = api.success(answer).map_err(failed())?;
    api.parse(&body).map_err(failed())
}

fn counted(list: &MetadataList) -> u64 {
    (list.items.len() as u64).saturating_add(list.metadata.remaining_item_count.unwrap_or(0))
}

/// The names of all namespaces, sorted.
///
/// # Errors
/// An error status of the API server, or no answer.
pub(in crate::rotation) async fn namespaces(api: &Api) -> Result<Vec<String>, RotationError> {
    let resource =
        Resource { group: String::new(), version: "v1".into(), plural: "namespaces".into(), namespaced: false };
    let (folder, mut token, mut names) = (Folder::all(&resource), String::new(), Vec::new());
    loop {
        let list = match page_after(api, &folder, token).await? {
            Page::Listed(list) => list,
            Page::Absent => return Err(RotationError::Unusable("the API server serves no namespaces".into())),
            Page::Unlistable(why) => return Err(RotationError::Unusable(format!("cannot list the namespaces: {why}"))),
        };
        names.extend(list.items.into_iter().map(|one| one.metadata.name));
        token = list.metadata.next.unwrap_or_default();
        if token.is_empty() {
            // A list that expired half way may name one twice.
            names.sort();
            names.dedup();
            return Ok(names);
        }
    }
}

/// What helps when a resource cannot be listed, by the API server's words.
pub(in crate::rotation) fn remedy(why: &str) -> &'static str {
    if is_undecryptable(why) {
        "one of its objects cannot be read: with --etcd all others are rewritten and the bad one is named"
    } else if is_conversion(why) {
        "its conversion webhook does not answer; the data are sound. Bring the webhook back and run again, or leave the \
         resource out with --skip"
    } else if is_initializing(why) {
        "the API server has not been able to read it since it was started or the definition changed: most often its \
         conversion webhook does not answer; the data are sound. Bring the webhook back and run again, or leave the resource \
         out with --skip"
    } else {
        "find out why the API server cannot list it and run again, or leave it out with --skip"
    }
}

/// The API server's words for a custom resource whose conversion webhook fails.
pub(in crate::rotation) fn is_conversion(message: &str) -> bool {
    message.contains("conversion webhook for ")
}

/// The API server's words for a resource that it could not read into its cache yet.
fn is_initializing(message: &str) -> bool {
    message.contains("storage is (re)initializing")
}

/// The API server's words for a value that its providers cannot open.
pub(in crate::rotation) fn is_undecryptable(message: &str) -> bool {
    const WORDS: [&str; 4] =
        ["unable to transform key", "is not transformable", "corrupt object", "no matching prefix found"];
    // A value that a conversion webhook fails on is called corrupt, too, and is sound.
    !is_conversion(message) && WORDS.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::{Names, is_undecryptable, remedy};

    #[test]
    fn a_conversion_webhook_that_fails_does_not_make_the_data_unreadable() {
        let why = "StorageError: corrupt object, Code: 7, Key: /registry/example.com/widgets/default/w, \
                   AdditionalErrorMsg: object not decodable revision=228: conversion webhook for example.com/v1, \
                   Kind=Widget failed: connection refused";
        assert!(!is_undecryptable(why));
        assert!(remedy(why).contains("the data are sound"));
        assert!(is_undecryptable("StorageError: corrupt object, Code: 7: data from the storage is not transformable"));
    }

    #[test]
    fn a_resource_that_the_cache_never_read_is_not_called_damaged() {
        let why = "storage is (re)initializing";
        assert!(!is_undecryptable(why));
        assert!(remedy(why).contains("the data are sound") && remedy(why).contains("--skip"));
    }

    #[test]
    fn parts_of_all_names_leave_none_out_and_have_none_twice() {
        let cuts = [0, Names::END / 3, Names::END / 2, Names::END];
        let parts: Vec<_> = cuts.windows(2).map(|cut| Names { from: cut[0], to: cut[1] }).collect();
        let mut counts = [0_u32; 3];
        for number in 0..6000 {
            let name = format!("secret-{number}");
            let of: Vec<_> = (0..3).filter(|at| parts[*at].contains(&name)).collect();
            assert_eq!(of.len(), 1, "{name}");
            counts[of[0]] += 1;
            assert!(Names::ALL.contains(&name));
        }
        assert!(counts[0].abs_diff(2000) < 150 && counts[1].abs_diff(1000) < 150, "{counts:?}");
    }
}
