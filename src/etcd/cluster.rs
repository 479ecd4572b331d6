//! The etcd clusters behind the endpoints that were given: each endpoint is asked which cluster it belongs to, since
//! an API server may keep some resources in an etcd of their own (`--etcd-servers-overrides`).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::connect::{EtcdAccess, EtcdError, cause, connect};
use super::proto::cluster_client::ClusterClient;
use super::proto::kv_client::KvClient;
use super::proto::maintenance_client::MaintenanceClient;
use super::proto::{MemberListRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse};

/// The id that all members of one etcd cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ClusterId(pub u64);

/// Every cluster that the endpoints lead to.
#[derive(Clone, Debug)]
pub struct EtcdClusters {
    /// The clusters, in the order of their first endpoint.
    pub clusters: Vec<EtcdCluster>,
    /// Endpoints that do not answer and that no cluster lists as a member of its own: endpoint and reason. They may
    /// lead to a cluster with data that nobody has seen.
    pub unknown: Vec<(String, String)>,
}

/// One etcd cluster.
#[derive(Clone, Debug)]
pub struct EtcdCluster {
    /// The id that its members report in every answer's header; of a kine, one made from its endpoint.
    pub id: ClusterId,
    /// Whether it is kine, the datastore of k3s: the API of etcd over an SQL database.
    pub is_kine: bool,
    /// What this client may read.
    prefix: String,
    members: Vec<Member>,
    /// Members of the cluster that cannot be reached: name or URL, and reason.
    unreached: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
struct Member {
    endpoint: String,
    id: u64,
    is_kine: bool,
    channel: Channel,
}

/// What one member says about itself.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Where it was asked.
    pub endpoint: String,
    /// Its answer, or the reason why there is none.
    pub answer: Result<StatusResponse, String>,
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ClusterId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

impl EtcdClusters {
    /// Asks every endpoint for one key under `prefix` (with a slash at its end): that needs no right beyond reading the prefix, shows whether
    /// the client certificate is accepted, and tells the cluster's id.
    ///
    /// # Errors
    /// [`EtcdError::Unreachable`] if no endpoint answers, [`EtcdError::File`] if a TLS file cannot be read.
    pub async fn connect(access: &EtcdAccess, prefix: &str) -> Result<Self, EtcdError> {
        let mut clusters: Vec<EtcdCluster> = Vec::new();
        let mut silent = Vec::new();
        for endpoint in &access.endpoints {
            match Member::connect(endpoint, access, prefix).await {
                Ok((id, member)) => add(&mut clusters, prefix, id, member),
                Err(EtcdError::Unreachable(problem)) => silent.push((endpoint.clone(), problem)),
                Err(error) => return Err(error),
            }
        }
        if clusters.is_empty() {
            return Err(EtcdError::Unreachable(with_likely_fixes(access, &silent)));
        }
        // A member that was not named may be the one that is full, or behind.
        for cluster in &mut clusters {
            cluster.find_other_members(access, &mut silent).await;
        }
        Ok(Self { clusters, unknown: silent })
    }
}

fn add(clusters: &mut Vec<EtcdCluster>, prefix: &str, id: ClusterId, member: Member) {
    // By the id that each answers with: endpoints of several clusters may be named together, and two names may lead to
    // one member.
    if let Some(cluster) = clusters.iter_mut().find(|cluster| cluster.id == id) {
        if cluster.members.iter().all(|known| known.id != member.id) {
            cluster.members.push(member);
        }
    } else {
        let is_kine = member.is_kine;
        clusters.push(EtcdCluster { id, is_kine, prefix: prefix.into(), members: vec![member], unreached: Vec::new() });
    }
}

fn with_likely_fixes(access: &EtcdAccess, silent: &[(String, String)]) -> String {
    let mut problems: Vec<String> = silent.iter().map(|(endpoint, why)| format!("{endpoint}: {why}")).collect();
    // Over TLS 1.3 a refused client may see no more than a connection that ends, so the likely reason is named.
    let over_tls = access.endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
    if over_tls && access.certificate.is_none() {
        problems.push("etcd may require a client certificate: give --etcd-cert and --etcd-key".into());
    }
    // A server that speaks TLS hangs up on one that does not, without a word.
    let hung_up = |(endpoint, why): &(String, String)| {
        endpoint.starts_with("http:")
            && !why.contains("refused")
            && !why.contains("timed out")
            && !why.contains("lookup")
    };
    if silent.iter().any(hung_up) {
        problems.push("if this etcd speaks TLS, write https:// and give --etcd-ca, --etcd-cert and --etcd-key".into());
    }
    // Another authority of the same name shows as a bad signature.
    if ["UnknownIssuer", "BadSignature"].iter().any(|why| problems.iter().any(|problem| problem.contains(why))) {
        problems.push("--etcd-ca must name the authority that signed etcd's own certificate".into());
    }
    problems.join("; ")
}

impl Member {
    async fn connect(endpoint: &str, access: &EtcdAccess, prefix: &str) -> Result<(ClusterId, Self), EtcdError> {
        let channel = connect(endpoint, access).await?;
        // One key under the prefix: with etcd's authentication this user may have no right to read anything else.
        let small = RangeRequest {
            key: prefix.into(),
            range_end: end_of(prefix),
            limit: 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        let answer = KvClient::new(channel.clone()).range(small).await;
        let header = answer.map_err(|status| EtcdError::Unreachable(words(&status)))?.into_inner().header;
        let header = header.unwrap_or_default();
        // No etcd has the id 0, and every kine (k3s-io/kine, pkg/server/list.go).
        let is_kine = header.cluster_id == 0;
        let id = if is_kine { id_of(endpoint) } else { header.cluster_id };
        Ok((ClusterId(id), Self { endpoint: endpoint.into(), id: header.member_id, is_kine, channel }))
    }
}

impl EtcdCluster {
    /// The endpoints of its members that answered.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.endpoint.as_str())
    }

    /// The ids of its members that answered.
    pub fn member_ids(&self) -> BTreeSet<u64> {
        self.members.iter().map(|member| member.id).collect()
    }

    /// Looks for the members that were not named, by the URLs that they advertise. An endpoint that did not answer and
    /// that is advertised here is a member that is down, and leads to no other cluster.
    async fn find_other_members(&mut self, access: &EtcdAccess, silent: &mut Vec<(String, String)>) {
        if self.is_kine {
            // It is its own only member, under an address that is made up.
            return;
        }
        let listed = ClusterClient::new(self.members[0].channel.clone()).member_list(MemberListRequest {}).await;
        let Ok(listed) = listed else { return };
        let known: BTreeSet<u64> = self.members.iter().map(|member| member.id).collect();
        for other in listed.into_inner().members.into_iter().filter(|member| !known.contains(&member.id)) {
            let down = silent.iter().position(|(endpoint, _)| other.client_urls.contains(endpoint));
            if let Some(at) = down {
                self.unreached.push(silent.remove(at));
                continue;
            }
            let mut why = "it advertises no client URL".to_owned();
            let mut reached = None;
            for url in &other.client_urls {
                match Member::connect(url, access, &self.prefix).await {
                    Ok((id, member)) if id == self.id => reached = Some(member),
                    Ok(_) => why = format!("{url} leads to another cluster"),
                    Err(error) => why = format!("{url}: {}", cause(&error)),
                }
            }
            match reached {
                Some(member) => self.members.push(member),
                None => self.unreached.push((other.name, why)),
            }
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Sends a range request, to another member if one does not answer.
    pub(super) async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        let mut last = None;
        for member in &self.members {
            let mut client = KvClient::new(member.channel.clone()).max_decoding_message_size(usize::MAX);
            match client.range(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // Another member may answer. What etcd itself refuses, it refuses everywhere.
                Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) => {
                    last = Some(status);
                }
                Err(status) => return Err(status),
            }
        }
        Err(last.unwrap_or_else(|| Status::unavailable("the cluster has no member")))
    }

    /// A channel to each member that answered.
    pub(super) fn channels(&self) -> impl Iterator<Item = Channel> {
        self.members.iter().map(|member| member.channel.clone())
    }

    /// A client for writing requests, at the first member.
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.members[0].channel.clone())
    }

    /// Asks every member for its status. Members that were not reached come with the reason.
    pub async fn statuses(&self) -> Vec<MemberStatus> {
        let asked = self.members.iter().map(|member| async {
            let answer = MaintenanceClient::new(member.channel.clone()).status(StatusRequest {}).await;
            MemberStatus {
                endpoint: member.endpoint.clone(),
                answer: answer.map(tonic::Response::into_inner).map_err(|status| words(&status)),
            }
        });
        let mut statuses = futures::future::join_all(asked).await;
        statuses.extend(
            self.unreached
                .iter()
                .map(|(endpoint, why)| MemberStatus { endpoint: endpoint.clone(), answer: Err(why.clone()) }),
        );
        statuses
    }
}

/// Two kines say nothing that tells one from the other, and each may have a database of its own.
fn id_of(endpoint: &str) -> u64 {
    Sha256::digest(endpoint).iter().take(size_of::<u64>()).fold(0, |id, byte| (id << 8) | u64::from(*byte))
}

/// What etcd itself says, or the innermost cause where the request did not get there.
pub(super) fn words(status: &Status) -> String {
    let inner = cause(status);
    if status.message().is_empty() || inner != status.to_string() { inner } else { status.message().to_owned() }
}

/// The first key after every key that begins with `prefix`.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // A prefix ends with a slash, so that the last byte is never 255.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_written_as_etcd_writes_it() {
        let id = ClusterId(0xcdf8_181e_3c5e_33f1);
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"cdf8181e3c5e33f1\"");
        assert_eq!(serde_json::from_str::<ClusterId>("\"cdf8181e3c5e33f1\"").unwrap(), id);
    }

    #[test]
    fn two_endpoints_of_kine_are_two_clusters() {
        assert_eq!(id_of("unix:///run/k3s/kine.sock"), id_of("unix:///run/k3s/kine.sock"));
        assert_ne!(id_of("unix:///run/k3s/kine.sock"), id_of("http://10.0.0.2:2379"));
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_is_passed() {
        assert_eq!(end_of("/registry/"), b"/registry0");
    }
}
