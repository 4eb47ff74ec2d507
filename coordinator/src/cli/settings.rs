//! What holds for registries, from the configuration file.

use imgsync_common::error::Result;
use imgsync_common::registry::ClientSettings;

use super::args::Global;
use super::printer::Printer;

pub(crate) fn client(_global: &Global, _printer: &Printer) -> Result<ClientSettings> {
    Ok(ClientSettings::default())
}
