//! What makes a Yes true. The tests take each protection out and let the checker find what it protects from.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// The target is what the KEK says; a Yes names the versions that were in use and are not in use now.
    ClaimsNameKeys,
    /// The KEK is asked once more before the verdict.
    KekAskedAgain,
    /// A resumed run takes all settings from the journal.
    IntentIsInTheJournal,
    /// What each server's metrics count from adoption to verdict is compared.
    LedgerOfServers,
    /// Counters are known by the start of the process that counts.
    CountersOfOneProcess,
    /// Everything is searched again after the snapshot, and after each resume.
    SearchAgain,
    /// The last search looks through the revisions since the first one, too, not only through present values.
    OldRevisionsSearched,
    /// Revisions from before the first search are shown to be compacted, instead of waited for.
    CompactionShown,
    /// The snapshot is shown to be newer than the first search.
    SnapshotOfNow,
    /// Each etcd has a snapshot of its own.
    SnapshotOfEveryEtcd,
    /// The content of the snapshot is checked, and not only when it was taken.
    SnapshotSearched,
    /// When everything has to be searched once more, the snapshot has to be taken once more, too.
    SnapshotTakenAgain,
    /// A Yes needs every etcd in which the API has objects.
    EveryEtcd,
    /// Every value in an etcd is judged, including those that no API serves.
    EveryValue,
    /// Servers are known from Leases, Nodes, endpoints and `--servers`; each one known must be proven.
    SettledServers,
    /// Before anything is rewritten, each server reads what another one stored, for each resource.
    ReadingTried,
    /// Each server stores an object of each resource under the target.
    EveryResourceProven,
    /// An object of the run's own that a server turns out not to read is taken away again.
    CanaryWithdrawn,
    /// The first search begins when no request from before the servers' proof can still be on its way to etcd.
    WritesDrained,
    /// A second run is refused while the first one lives.
    LeaseOfOneRun,
    /// A run whose Lease has lapsed stands still; it goes on only where no other run has begun, and asks the KEK again.
    StandsStill,
    /// The etcd that is given is shown to hold what the API serves, at the same revision.
    EtcdOfThisCluster,
    /// A plugin reports a generation only once it has saved it.
    AdoptionSaved,
}

impl Protection {
    pub const EVERY: [Self; 23] = [
        Self::ClaimsNameKeys,
        Self::KekAskedAgain,
        Self::IntentIsInTheJournal,
        Self::LedgerOfServers,
        Self::CountersOfOneProcess,
        Self::SearchAgain,
        Self::OldRevisionsSearched,
        Self::CompactionShown,
        Self::SnapshotOfNow,
        Self::SnapshotOfEveryEtcd,
        Self::SnapshotSearched,
        Self::SnapshotTakenAgain,
        Self::EveryEtcd,
        Self::EveryValue,
        Self::SettledServers,
        Self::ReadingTried,
        Self::EveryResourceProven,
        Self::CanaryWithdrawn,
        Self::WritesDrained,
        Self::LeaseOfOneRun,
        Self::StandsStill,
        Self::EtcdOfThisCluster,
        Self::AdoptionSaved,
    ];
}
