//! Where state lives, and opening it.

use std::path::PathBuf;

use imgsync_common::error::{Class, Error, Result};

use crate::batches::House;

/// `--state`, else `$XDG_STATE_HOME/imgsync`, else `~/.local/state/imgsync`.
pub(crate) fn folder(given: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder.clone());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("imgsync"))
        .ok_or_else(|| {
            Error::new(Class::Invalid, "finding a folder for the state", "neither XDG_STATE_HOME nor HOME is set")
                .hint("name one with --state")
        })
}

/// Opens the state of this machine.
pub(crate) async fn open(given: Option<&PathBuf>) -> Result<House> {
    House::embedded(&folder(given)?).await
}
