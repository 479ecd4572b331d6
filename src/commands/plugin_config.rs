//! The plugin's configuration, as `rotate-keys`, `verify` and others find it.

use std::fs::File;
use std::path::Path;

use anyhow::Result;

use crate::config::{Config, DEFAULT_PATH};

/// The plugin's configuration: where it was named, or where it lies on a control-plane node.
///
/// # Errors
/// When it cannot be used.
pub fn plugin_config(named: Option<&Path>) -> Result<Option<Config>> {
    Ok(named.or(on_this_node()).map(Config::load).transpose()?)
}

/// The usual file, where this node has one that can be read.
pub fn on_this_node() -> Option<&'static Path> {
    File::open(DEFAULT_PATH).is_ok().then(|| Path::new(DEFAULT_PATH))
}
