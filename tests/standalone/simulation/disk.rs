//! A node's state folder: writes take a moment, fail, hang, or are lost with the process.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kube_envelope::dek::store::{Name, Place, StateFiles};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Good,
    Full,
    Hangs,
}

/// What is on the disk, whichever process runs.
#[derive(Debug)]
pub struct Disk {
    pub files: Mutex<BTreeMap<Name, Vec<u8>>>,
    pub health: Mutex<Health>,
}

impl Disk {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { files: Mutex::default(), health: Mutex::new(Health::Good) })
    }

    pub fn health(&self) -> Health {
        *self.health.lock().unwrap()
    }
}

/// One process's way to the disk.
#[derive(Debug)]
pub struct Mounted {
    pub disk: Arc<Disk>,
    /// What a process wrote last when it was killed did not arrive.
    pub is_alive: Arc<AtomicBool>,
}

impl Mounted {
    async fn arrive(&self) -> io::Result<()> {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            match self.disk.health() {
                _ if !self.is_alive.load(Ordering::SeqCst) => std::future::pending().await,
                Health::Good => return Ok(()),
                Health::Full => return Err(io::ErrorKind::StorageFull.into()),
                Health::Hangs => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

#[async_trait]
impl StateFiles for Mounted {
    async fn take(&self) -> io::Result<Place> {
        if self.disk.health() == Health::Hangs {
            self.arrive().await?;
        }
        Ok(Place::Same)
    }

    async fn names(&self) -> io::Result<BTreeSet<Name>> {
        Ok(self.disk.files.lock().unwrap().keys().copied().collect())
    }

    async fn load(&self) -> io::Result<Vec<(Name, Vec<u8>)>> {
        Ok(self.disk.files.lock().unwrap().iter().map(|(name, record)| (*name, record.clone())).collect())
    }

    async fn write(&self, name: Name, record: &[u8]) -> io::Result<()> {
        self.arrive().await?;
        self.disk.files.lock().unwrap().insert(name, record.to_vec());
        Ok(())
    }

    async fn remove(&self, name: Name) -> io::Result<()> {
        self.arrive().await?;
        self.disk.files.lock().unwrap().remove(&name);
        Ok(())
    }
}
