//! The roster: which API servers exist, from every source that names one, against those that were met. No source is
//! complete: a Lease outlives its server by an hour, an endpoint vanishes within seconds, a Node may run none. So each
//! disagreement is a doubt, and a doubt rules out a proof.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::rotation::cluster::ledger::ServerProcess;

/// API servers renew their identity Lease every 10 s. One that is not renewed for this long has stopped.
pub const LEASE_WATCHED: Duration = Duration::from_secs(35);

/// The identity Lease of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityLease {
    /// Name of the Lease, such as `apiserver-` and a hash.
    pub name: String,
    /// Hash of its name, as the server's metrics show it.
    pub identity: String,
    /// The host that the server runs on, by its label.
    pub host: Option<String>,
    /// When it was renewed, by the server's own clock; compared with itself alone.
    pub renewed: Option<jiff::Timestamp>,
}

/// A control-plane Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlaneNode {
    /// Name of the Node.
    pub name: String,
    /// Its addresses and host names.
    pub addresses: Vec<String>,
}

/// Everything that names API servers.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The identity Leases.
    pub leases: Vec<IdentityLease>,
    /// Addresses of the endpoints of `default/kubernetes`.
    pub endpoints: BTreeSet<String>,
    /// The control-plane Nodes; `None` where they may not be listed.
    pub nodes: Option<Vec<ControlPlaneNode>>,
    /// How many API servers there are, by the operator's word.
    pub expected: Option<usize>,
}

/// An API server process whose metrics were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// The address without its port.
    pub host: String,
    /// Which process answered there.
    pub process: ServerProcess,
}

/// Whether a Lease is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It was, between two looks.
    Renewed,
    /// Not watched for long enough to tell.
    Unknown,
    /// It was not for [`LEASE_WATCHED`].
    Stopped,
}

/// Remembers when each Lease was seen to change. Only changes count: a server's clock may be wrong.
#[derive(Debug, Default)]
pub struct LeaseWatch {
    seen: BTreeMap<String, Watched>,
}

#[derive(Debug)]
struct Watched {
    renewed: Option<jiff::Timestamp>,
    /// When the present `renewed` was first seen.
    since: Instant,
    /// Whether it changed at all while it was watched.
    changed: bool,
}

impl LeaseWatch {
    /// Takes a look at all Leases into account.
    pub fn observe(&mut self, leases: &[IdentityLease], now: Instant) {
        // What is known of a Lease ends with it: one of the same name that comes later is watched from the start.
        self.seen.retain(|name, _| leases.iter().any(|lease| &lease.name == name));
        for lease in leases {
            match self.seen.get_mut(&lease.name) {
                Some(watched) if watched.renewed == lease.renewed => {}
                Some(watched) => *watched = Watched { renewed: lease.renewed, since: now, changed: true },
                None => {
                    let watched = Watched { renewed: lease.renewed, since: now, changed: false };
                    self.seen.insert(lease.name.clone(), watched);
                }
            }
        }
    }

    /// Whether the Lease of this name is renewed.
    #[must_use]
    pub fn renewal(&self, name: &str, now: Instant) -> Renewal {
        match self.seen.get(name) {
            Some(watched) if now.duration_since(watched.since) >= LEASE_WATCHED => Renewal::Stopped,
            // A renewal that was seen proves that somebody lives, whatever clock the time in it is of.
            Some(watched) if watched.changed => Renewal::Renewed,
            _ => Renewal::Unknown,
        }
    }
}

/// A disagreement about which API servers there are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "doubt")]
pub enum Doubt {
    /// A server renews its Lease, and was not met.
    NotMet {
        /// Name of its Lease.
        lease: String,
        /// The host that the Lease's label names.
        host: Option<String>,
    },
    /// A Lease whose server was not met, and which was not watched for long enough to tell whether the server runs.
    Watching {
        /// Name of the Lease.
        lease: String,
        /// The host that the Lease's label names.
        host: Option<String>,
    },
    /// A server ran within the last hour, does not any more, and may come back.
    Stopped {
        /// Name of its Lease.
        lease: String,
        /// The host that the Lease's label names.
        host: Option<String>,
        /// Hash of the Lease's name.
        identity: String,
    },
    /// There are more endpoints than servers that were met.
    Endpoints {
        /// Endpoints of `default/kubernetes`.
        endpoints: usize,
        /// Servers that were met.
        met: usize,
    },
    /// A control-plane Node without an API server that was met.
    Node {
        /// Name of the Node.
        name: String,
    },
    /// The control-plane Nodes may not be listed, and nobody said how many servers there are.
    NodesUnread,
    /// There are not as many as the operator says.
    Count {
        /// By the operator's word.
        expected: usize,
        /// Servers that were met.
        met: usize,
    },
    /// Two servers have one identity: a third one with it would not be seen.
    SharedIdentity {
        /// Where they were met.
        hosts: String,
    },
    /// A server without a Lease was met at an address that is not its own, so another one may hide there.
    WithoutLease {
        /// The host part of the address at which it was met.
        host: String,
    },
}

impl Doubt {
    /// Whether it concerns a server that is known to have stopped; by the hash of its identity.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        match self {
            Self::Stopped { identity, .. } => Some(identity),
            _ => None,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |host: &Option<String>| host.as_ref().map_or_else(String::new, |host| format!(" on host {host}"));
        match self {
            Self::NotMet { lease, host } => write!(
                f,
                "the API server{} renews its identity Lease {lease} and was not reached, or uses no KMS v2 provider: \
                 name every API server with --server",
                on(host)
            ),
            Self::NodesUnread => f.write_str(
                "the control-plane Nodes may not be listed: grant it (--print-rbac), or say how many there are (--servers N)",
            ),
            Self::Watching { lease, host } => {
                write!(f, "watching whether the API server{} still renews its identity Lease {lease}", on(host))
            }
            Self::Stopped { lease, host, .. } => write!(
                f,
                "an API server{} ran within the last hour but is not running now: start it, or, if it is gone for good, \
                 delete its Lease (kubectl -n kube-system delete lease {lease})",
                on(host)
            ),
            Self::Endpoints { endpoints, met } => write!(
                f,
                "default/kubernetes has {endpoints} endpoints, and {met} API server(s) were reached: name every API \
                 server with --server"
            ),
            Self::Node { name } => write!(
                f,
                "no API server was reached on control-plane Node {name}: start it, delete the Node if it is gone for \
                 good, or say how many API servers there are with --servers"
            ),
            Self::Count { expected, met } => {
                write!(f, "--servers says {expected} API server(s), and {met} were reached")
            }
            Self::SharedIdentity { hosts } => write!(
                f,
                "the API servers {hosts} share one identity Lease: give their hosts different names and restart them"
            ),
            Self::WithoutLease { host } => write!(
                f,
                "the API server behind {host} has no identity Lease, so another one like it would not be seen: say \
                 how many API servers there are with --servers"
            ),
        }
    }
}

/// Compares every source with the servers that were met.
#[must_use]
pub fn doubts(sources: &Sources, met: &[Met], watch: &LeaseWatch, now: Instant) -> Vec<Doubt> {
    let identities: BTreeSet<&str> = met.iter().map(|one| one.process.identity.as_str()).collect();
    let mut doubts = Vec::new();
    for lease in sources.leases.iter().filter(|lease| !identities.contains(lease.identity.as_str())) {
        let (name, host) = (lease.name.clone(), lease.host.clone());
        doubts.push(match watch.renewal(&lease.name, now) {
            Renewal::Renewed => Doubt::NotMet { lease: name, host },
            Renewal::Unknown => Doubt::Watching { lease: name, host },
            Renewal::Stopped => Doubt::Stopped { lease: name, host, identity: lease.identity.clone() },
        });
    }
    // Metrics and Leases name a server by this hash alone: with two of one name a look at the Leases would be content
    // with one.
    for (at, one) in met.iter().enumerate().filter(|(_, one)| !one.process.identity.is_empty()) {
        if let Some(other) = met[..at].iter().find(|other| other.process.identity == one.process.identity) {
            doubts.push(Doubt::SharedIdentity { hosts: format!("{} and {}", other.host, one.host) });
        }
    }
    // The operator's word takes the place of what endpoints and Nodes let one guess; Leases still count.
    if let Some(expected) = sources.expected {
        if expected != met.len() {
            doubts.push(Doubt::Count { expected, met: met.len() });
        }
        return doubts;
    }
    if sources.nodes.is_none() {
        doubts.push(Doubt::NodesUnread);
    }
    // Not the addresses are compared: an endpoint may be an address that leads elsewhere from here. Fewer endpoints
    // than servers is what a server shows that is not ready.
    if sources.endpoints.len() > met.len() {
        doubts.push(Doubt::Endpoints { endpoints: sources.endpoints.len(), met: met.len() });
    }
    let leased: BTreeSet<&str> = sources.leases.iter().map(|lease| lease.identity.as_str()).collect();
    let hidden = met.iter().filter(|one| !leased.contains(one.process.identity.as_str()));
    for one in hidden.filter(|one| !sources.endpoints.contains(&one.host)) {
        doubts.push(Doubt::WithoutLease { host: one.host.clone() });
    }
    let hosts: BTreeSet<&str> = met
        .iter()
        .map(|one| one.host.as_str())
        .chain(
            sources
                .leases
                .iter()
                .filter(|lease| identities.contains(lease.identity.as_str()))
                .filter_map(|lease| lease.host.as_deref()),
        )
        .collect();
    for node in sources.nodes.iter().flatten() {
        if !hosts.contains(node.name.as_str()) && !node.addresses.iter().any(|address| hosts.contains(address.as_str()))
        {
            doubts.push(Doubt::Node { name: node.name.clone() });
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, second: i64) -> IdentityLease {
        IdentityLease {
            name: name.into(),
            identity: format!("hash-{name}"),
            host: Some(format!("host-{name}")),
            renewed: Some(jiff::Timestamp::from_second(second).unwrap()),
        }
    }

    fn met(name: &str) -> Met {
        Met { host: format!("ip-{name}"), process: ServerProcess { identity: format!("hash-{name}"), started: 1 } }
    }

    fn sources(names: &[&str]) -> Sources {
        Sources {
            leases: names.iter().map(|name| lease(name, 100)).collect(),
            endpoints: names.iter().map(|name| format!("ip-{name}")).collect(),
            nodes: Some(Vec::new()),
            expected: None,
        }
    }

    fn doubts_of(sources: &Sources, met: &[Met]) -> Vec<Doubt> {
        doubts(sources, met, &LeaseWatch::default(), Instant::now())
    }

    #[test]
    fn a_lease_counts_by_whether_it_advances_and_no_clock_is_compared() {
        let (mut watch, start) = (LeaseWatch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // The clock of a is two minutes behind that of b. c is renewed no more.
        watch.observe(&[lease("a", 880), lease("b", 1000), lease("c", 1000)], start);
        assert_eq!(watch.renewal("a", start), Renewal::Unknown);
        watch.observe(&[lease("a", 890), lease("b", 1010), lease("c", 1000)], at(10));
        assert_eq!(watch.renewal("a", at(10)), Renewal::Renewed);
        assert_eq!(watch.renewal("b", at(10)), Renewal::Renewed);
        assert_eq!(watch.renewal("c", at(10)), Renewal::Unknown);
        watch.observe(&[lease("a", 910), lease("b", 1035), lease("c", 1000)], at(35));
        assert_eq!(watch.renewal("a", at(35)), Renewal::Renewed);
        assert_eq!(watch.renewal("c", at(35)), Renewal::Stopped);
        watch.observe(&[lease("c", 1001)], at(40));
        assert_eq!(watch.renewal("c", at(40)), Renewal::Renewed, "it is back");
        assert_eq!(watch.renewal("a", at(40)), Renewal::Unknown, "its Lease is gone");
    }

    #[test]
    fn servers_that_every_source_agrees_on_leave_no_doubt() {
        assert_eq!(doubts_of(&sources(&["a", "b"]), &[met("a"), met("b")]), []);
        let mut all = sources(&["a", "b"]);
        let node = |name: &str| ControlPlaneNode { name: format!("host-{name}"), addresses: Vec::new() };
        let by_address = ControlPlaneNode { name: "n2".into(), addresses: vec!["ip-b".into()] };
        all.nodes = Some(vec![node("a"), by_address]);
        assert_eq!(doubts_of(&all, &[met("a"), met("b")]), []);
        all.nodes = None;
        assert_eq!(doubts_of(&all, &[met("a"), met("b")]), [Doubt::NodesUnread]);
        all.expected = Some(2);
        assert_eq!(doubts_of(&all, &[met("a"), met("b")]), []);
    }

    #[test]
    fn each_source_that_names_a_server_that_was_not_met_is_a_doubt() {
        let (mut watch, start) = (LeaseWatch::default(), Instant::now());
        let host = || Some("host-b".to_owned());
        let all = sources(&["a", "b"]);
        watch.observe(&all.leases, start);
        let endpoints = Doubt::Endpoints { endpoints: 2, met: 1 };
        let at = |watch: &LeaseWatch, now| doubts(&all, &[met("a")], watch, now);
        assert_eq!(at(&watch, start), [Doubt::Watching { lease: "b".into(), host: host() }, endpoints.clone()]);
        watch.observe(&[lease("a", 110), lease("b", 111)], start);
        assert_eq!(at(&watch, start), [Doubt::NotMet { lease: "b".into(), host: host() }, endpoints.clone()]);
        let stopped = Doubt::Stopped { lease: "b".into(), host: host(), identity: "hash-b".into() };
        assert_eq!(at(&watch, start + LEASE_WATCHED), [stopped, endpoints]);

        let mut all = sources(&["a"]);
        all.nodes = Some(vec![ControlPlaneNode { name: "down".into(), addresses: vec!["ip-x".into()] }]);
        assert_eq!(doubts_of(&all, &[met("a")]), [Doubt::Node { name: "down".into() }]);
        all.expected = Some(1);
        assert_eq!(doubts_of(&all, &[met("a")]), [], "the operator says that this Node runs none");
        all.expected = Some(3);
        assert_eq!(doubts_of(&all, &[met("a")]), [Doubt::Count { expected: 3, met: 1 }]);
    }

    #[test]
    fn two_processes_with_one_identity_are_two_servers_with_one_name() {
        let mut second = met("a");
        (second.host, second.process.started) = ("ip-b".into(), 2);
        let shared = Doubt::SharedIdentity { hosts: "ip-a and ip-b".into() };
        assert_eq!(doubts_of(&sources(&["a"]), &[met("a"), second]), [shared]);
    }

    #[test]
    fn a_server_without_a_lease_is_complete_only_at_an_endpoint_of_its_own() {
        let nameless =
            |host: &str| Met { host: host.into(), process: ServerProcess { identity: String::new(), started: 5 } };
        let mut all = sources(&[]);
        all.endpoints = ["ip-a".to_owned()].into();
        assert_eq!(doubts_of(&all, &[nameless("ip-a")]), []);
        assert_eq!(doubts_of(&all, &[nameless("balancer")]), [Doubt::WithoutLease { host: "balancer".into() }]);
    }
}
