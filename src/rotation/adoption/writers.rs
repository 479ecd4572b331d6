//! Whether the API servers store each encrypted resource alike: one may have another provider first for some of them.

use std::collections::BTreeSet;

use crate::rotation::adoption::Obstacle;
use crate::rotation::claim::{Claim, Until, Witness, counted};
use crate::rotation::cluster::api::{Api, ApiError, Metadata, MetadataList, Partial};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;

/// So many objects of a resource are tried: one may be written by somebody else meanwhile.
const TRIED: u32 = 5;

/// What an object of one resource showed.
enum Shown {
    /// An empty patch through any server leaves it as it is.
    Alike,
    /// There is no object that stays as it is.
    NoObject,
    /// A server stores it otherwise than the first one: which.
    Otherwise(String),
}

/// Sends an empty patch through every server in turn, twice round, to an object of each resource that the first server
/// leaves as it is. A server that has another provider or key first stores it again. Says which resources were not
/// shown. Objects in `except` are left alone.
///
/// # Errors
/// [`Obstacle::NotYet`], naming server and resource, when a server stores one otherwise; that a server does not answer.
pub async fn write_alike(
    servers: &[Api],
    resources: &[Resource],
    except: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Obstacle> {
    let mut not_shown = BTreeSet::new();
    for resource in resources {
        let failed = RotationError::api(format!("see whether every API server stores {resource} alike"));
        let shown = round(servers, resource, except).await.map_err(failed)?;
        match shown {
            Shown::Alike => {}
            Shown::NoObject => _ = not_shown.insert(resource.to_string()),
            Shown::Otherwise(server) => {
                return Err(Obstacle::NotYet(format!(
                    "API server {server} does not store {resource} as the others do: give every API server the same \
                     EncryptionConfiguration, and restart or reload this one"
                )));
            }
        }
    }
    Ok(not_shown)
}

/// What [`write_alike`] shows. `untouched` are encrypted resources that it was not asked about.
#[must_use]
pub fn claim(
    servers: usize,
    resources: usize,
    not_shown: &BTreeSet<String>,
    untouched: impl IntoIterator<Item = String>,
) -> Claim {
    let unseen = "what each API server would store it under was not seen";
    // A configuration for everything has very many of them, and what else was not looked at must be seen, too.
    let empty = counted("resource(s) without an object", not_shown).map(|resources| format!("{resources}: {unseen}"));
    let left =
        untouched.into_iter().map(|resource| format!("{resource}: its objects are left as they are, so {unseen}"));
    let what = format!(
        "an empty patch of one object of each of {} encrypted resource(s) through {servers} API server(s) changed nothing",
        resources - not_shown.len()
    );
    Claim::shown(Witness::Api, what).until(Until::ServersChange).blind_to(empty.into_iter().chain(left))
}

async fn round(servers: &[Api], resource: &Resource, except: &BTreeSet<String>) -> Result<Shown, ApiError> {
    let Some(first) = servers.first() else { return Ok(Shown::NoObject) };
    let objects = objects_of(first, resource).await?;
    'objects: for path in objects.into_iter().filter(|path| !except.contains(path)) {
        // The first patch may store it again: an object that is written by others, or that a webhook changes each time.
        let (Some(_), Some(before)) = (touch(first, &path).await?, touch(first, &path).await?) else { continue };
        for server in servers.iter().skip(1).chain(servers) {
            match touch(server, &path).await? {
                Some(after) if after.resource_version == before.resource_version => {}
                // A new version and nothing else changed: stored again under another key, as only that makes an
                // empty update write (k8s.io/apiserver, etcd3/store.go, `origState.stale`).
                Some(after) if is_same_but_version(&before, &after) => {
                    return Ok(Shown::Otherwise(server.address().to_owned()));
                }
                _ => continue 'objects,
            }
        }
        return Ok(Shown::Alike);
    }
    Ok(Shown::NoObject)
}

/// What an empty patch that stores an object again leaves as it is. Somebody else's write changes more than that.
fn is_same_but_version(before: &Metadata, after: &Metadata) -> bool {
    before.content == after.content && before.managed_fields == after.managed_fields
}

/// The object's metadata after an empty patch; `None` where it cannot be patched.
async fn touch(server: &Api, path: &str) -> Result<Option<Metadata>, ApiError> {
    let answer = server.patient().patch(path, "{}").await?;
    match answer.status {
        200 => server.parse::<Partial>(&answer.body).map(|one| Some(one.metadata)),
        // A login that ran out: it would be the same for every object.
        401 => server.success(answer).map(|_| None),
        _ => Ok(None),
    }
}

async fn objects_of(api: &Api, resource: &Resource) -> Result<Vec<String>, ApiError> {
    let answer = api.patient().list(&resource.list_path(), TRIED, "").await?;
    if answer.status != 200 {
        return Ok(Vec::new());
    }
    let list: MetadataList = api.parse(&answer.body)?;
    Ok(list
        .items
        .iter()
        .map(|one| resource.object_path(one.metadata.namespace.as_deref(), &one.metadata.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_is_not_touched_is_among_what_was_not_seen() {
        let empty = ["roles.rbac.authorization.k8s.io".to_owned()].into();
        let claim = claim(2, 3, &empty, ["widgets.example.com".to_owned()]);
        assert!(claim.what.contains("each of 2 encrypted resource(s)"), "{}", claim.what);
        let spots = claim.blind_spots;
        assert!(spots.len() == 2 && spots[0].contains("(roles.rbac") && spots[1].starts_with("widgets"), "{spots:?}");
    }

    #[test]
    fn very_many_resources_without_an_object_hide_nothing_else() {
        let empty = (0..90).map(|number| format!("r{number:02}")).collect();
        let spots = claim(2, 91, &empty, ["widgets.example.com".to_owned()]).blind_spots;
        assert_eq!(spots.len(), 2, "{spots:?}");
        assert!(spots[0].starts_with("90 resource(s) without an object (r00, r01, r02 and 87 more): "), "{spots:?}");
    }
}
