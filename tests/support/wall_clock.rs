//! The time of day as one process sees it. Other clocks of the machine go on.

use std::path::PathBuf;
use std::process::Command;

/// A clock that can be set.
pub struct WallClock {
    folder: tempfile::TempDir,
}

impl WallClock {
    pub fn new() -> Self {
        let clock = Self { folder: tempfile::tempdir().unwrap() };
        let (source, library) = (clock.file("clock.c"), clock.file("clock.so"));
        std::fs::write(&source, include_str!("wall_clock.c")).unwrap();
        let mut build = Command::new("cc");
        assert!(build.args(["-shared", "-fPIC", "-O1", "-o"]).args([library, source]).status().unwrap().success());
        clock.set(0);
        clock
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a process needs to see it.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.file(name).display().to_string();
        [("LD_PRELOAD", path("clock.so")), ("CLOCK_OFFSET", path("offset"))]
    }

    /// So many seconds from now.
    pub fn set(&self, offset: i64) {
        let beside = self.file("beside");
        std::fs::write(&beside, offset.to_string()).unwrap();
        std::fs::rename(beside, self.file("offset")).unwrap();
    }
}
