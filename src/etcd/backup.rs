//! Taking a snapshot of a member, and what comes before: its database without free pages, its alarms gone.

use std::io::{self, Write};

use tonic::Status;
use tonic::transport::Channel;

use super::cluster::EtcdCluster;
use super::connect::EtcdError;
use super::proto::alarm_request::AlarmAction;
use super::proto::maintenance_client::MaintenanceClient;
use super::proto::{AlarmRequest, AlarmType, DefragmentRequest, SnapshotRequest};

impl EtcdCluster {
    /// Writes the first member's database into `to` as `etcdctl snapshot save` does, its SHA-256 at the end. `to` is
    /// left as far as it got where this fails.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error, also where `to` cannot be written.
    pub async fn snapshot(&self, to: &mut (impl Write + Send)) -> Result<(), EtcdError> {
        let mut parts = self.maintenance()?.snapshot(SnapshotRequest {}).await.map_err(refused)?.into_inner();
        while let Some(part) = parts.message().await.map_err(refused)? {
            to.write_all(&part.blob).map_err(|error| refused(unwritten(&error)))?;
        }
        Ok(())
    }

    /// Has the first member rewrite its database without the pages that a compaction freed.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn defragment(&self) -> Result<(), EtcdError> {
        self.maintenance()?.defragment(DefragmentRequest {}).await.map_err(refused).map(drop)
    }

    /// Lowers the alarm that a full database raised. Whether another alarm is raised, of damaged data.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn lower_alarms(&self) -> Result<bool, EtcdError> {
        let ask = |action: AlarmAction, member, alarm: AlarmType| AlarmRequest {
            action: action.into(),
            member_id: member,
            alarm: alarm.into(),
        };
        let mut client = self.maintenance()?;
        let raised = client.alarm(ask(AlarmAction::Get, 0, AlarmType::None)).await.map_err(refused)?.into_inner();
        for alarm in raised.alarms.iter().filter(|alarm| alarm.alarm() == AlarmType::Nospace) {
            let lower = ask(AlarmAction::Deactivate, alarm.member_id, AlarmType::Nospace);
            client.alarm(lower).await.map_err(refused)?;
        }
        // Never lowered here: members that disagree are for a person to look at, and a copy of them would be a bad backup.
        Ok(raised.alarms.iter().any(|alarm| alarm.alarm() == AlarmType::Corrupt))
    }

    fn maintenance(&self) -> Result<MaintenanceClient<Channel>, EtcdError> {
        let channel = self.channels().next();
        channel.map(MaintenanceClient::new).ok_or_else(|| refused(Status::unavailable("the cluster has no member")))
    }
}

fn refused(status: Status) -> EtcdError {
    EtcdError::Refused(Box::new(status))
}

fn unwritten(error: &io::Error) -> Status {
    Status::aborted(format!("the snapshot cannot be written: {error}"))
}
