//! What `init` is asked for.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::distribution::Place;
use super::former::{First, Former};

/// Everything that the files and the steps are made of.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) place: Place,
    pub(super) cluster: String,
    pub(super) kind: String,
    pub(super) settings: Map<String, Value>,
    pub(super) resources: Vec<String>,
    pub(super) former: Former,
    /// Nothing is stored yet.
    pub(super) is_new: bool,
    pub(super) control_planes: u16,
    pub(super) image: Option<String>,
    pub(super) provider_name: String,
    pub(super) root: PathBuf,
}

impl Wanted {
    /// With several API servers none may write what another one cannot read yet.
    pub(super) fn begins_with(&self) -> First {
        if self.is_new || self.control_planes == 1 { First::Plugin } else { First::Former }
    }
}
