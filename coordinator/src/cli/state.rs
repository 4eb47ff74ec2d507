//! The state folder, and opening stores and backends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::store::{RedisOptions, Store};
use imgsync_worker::cluster::{Addresses, Cluster};

use super::settings::Settings;
use crate::batches::{House, coordinator_name};

/// Returns the state folder: `--state`, else `$XDG_STATE_HOME/imgsync`, else `~/.local/state/imgsync`.
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

/// Time limit for a broker or store that responds but is not ready: the length of a failover.
const START_WAIT: Duration = Duration::from_secs(20);

/// Connects to a cluster. Fails at once if it is unreachable, and waits if it is not ready yet.
pub(crate) async fn connect(addresses: &Addresses) -> Result<Cluster> {
    let is_waited_for = |error: &Error| error.class() == Class::ServerError;
    addresses.connect_within(&coordinator_name(), START_WAIT, is_waited_for, |line| tracing::warn!("{line}")).await
}

/// Opens the backend: the cluster if one is configured, else the embedded one.
pub(crate) async fn open(settings: &Settings, given: Option<&PathBuf>) -> Result<House> {
    match settings.cluster()? {
        Some(addresses) => {
            let cluster = connect(&addresses).await?;
            Ok(House::of_cluster(&cluster))
        }
        None => House::embedded(&folder(given)?).await,
    }
}

/// Opens the store only, to show and control batches: of the given folder, else the cluster's, else this machine's.
pub(crate) async fn store(settings: &Settings, given: Option<&PathBuf>) -> Result<Arc<dyn Store>> {
    match settings.cluster()?.filter(|_| given.is_none()) {
        Some(addresses) => Ok(Arc::new(addresses.store(RedisOptions::default()).await?)),
        None => Ok(House::embedded(&folder(given)?).await?.store),
    }
}
