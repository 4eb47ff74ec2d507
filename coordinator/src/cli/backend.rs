//! The state folder, and opening stores and backends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_store::{RedisOptions, Store};
use imgsync_worker::cluster::{ClusterConnection, ClusterEndpoints};

use super::printer::Printer;
use super::settings::Settings;
use crate::orchestrator::{Backend, coordinator_name};

/// Returns the state folder: `--state`, else `$XDG_STATE_HOME/imgsync`, else `~/.local/state/imgsync`.
pub(crate) fn state_dir(given: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder.clone());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("imgsync"))
        .ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "finding the state folder", "neither XDG_STATE_HOME nor HOME is set")
                .with_hint("pass --state DIR")
        })
}

/// Time limit for a broker or store that responds but is not ready: the length of a failover.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to a cluster. Fails at once if it is unreachable, and waits if it is not ready yet. Warns if it has no key.
pub(crate) async fn connect(addresses: &ClusterEndpoints, printer: &Printer) -> Result<ClusterConnection> {
    addresses.unsigned_warning().iter().for_each(|warning| printer.warning(warning));
    let is_waited_for = |error: &Error| error.kind() == ErrorKind::ServerError;
    addresses
        .connect_with_retries(&coordinator_name(), STARTUP_TIMEOUT, is_waited_for, |line| tracing::warn!("{line}"))
        .await
}

/// Opens the backend: the cluster if one is configured, else the embedded one.
pub(crate) async fn open(settings: &Settings, given: Option<&PathBuf>, printer: &Printer) -> Result<Backend> {
    match settings.cluster()? {
        Some(addresses) => {
            let cluster = connect(&addresses, printer).await?;
            Ok(Backend::cluster(&cluster))
        }
        None => Backend::embedded(&state_dir(given)?).await,
    }
}

/// Opens the store only, to show and control batches: of the given folder, else the cluster's, else this machine's.
pub(crate) async fn open_store(settings: &Settings, given: Option<&PathBuf>) -> Result<Arc<dyn Store>> {
    match settings.cluster()?.filter(|_| given.is_none()) {
        Some(addresses) => Ok(Arc::new(addresses.connect_store(RedisOptions::default()).await?)),
        None => Ok(Backend::embedded(&state_dir(given)?).await?.store),
    }
}
