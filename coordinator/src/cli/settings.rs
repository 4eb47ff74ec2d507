//! What holds for a command, from the configuration file: read once, checked whole, handed on as values.

use std::path::{Path, PathBuf};

use imgsync_common::config::{Config, File};
use imgsync_common::error::Result;
use imgsync_common::registry::ClientSettings;
use imgsync_common::secret::Secret;
use imgsync_worker::cluster::{Addresses, Given};
use imgsync_worker::settings::{client_settings, exposed};

use super::args::Global;
use super::exit::Exit;
use super::printer::Printer;
use crate::{import, presets};

/// The file that is read where none was named.
const DEFAULT_FILE: &str = "imgsync.yaml";

/// The configuration, and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What the file means; what no file would mean where there is none.
    pub(crate) config: Config,
    /// The file, if there is one.
    pub(crate) file: Option<PathBuf>,
    /// The cluster, as far as flags and the environment name it.
    given: Given,
}

/// Why there are no settings, in words.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// The file cannot be read.
    Unreadable(String),
    /// What it says is wrong: several lines, with carets.
    Refused(String),
}

impl Settings {
    /// Reads the file that was named, else `./imgsync.yaml` if it is there. What is wrong with it is printed.
    pub(crate) fn load(global: &Global, printer: &Printer) -> std::result::Result<Settings, Exit> {
        match Settings::read(global) {
            Ok((settings, warning)) => {
                warning.iter().for_each(|warning| printer.warning(warning));
                Ok(settings)
            }
            Err(Wrong::Unreadable(why)) => {
                printer.error(&why, None);
                Err(Exit::Usage)
            }
            Err(Wrong::Refused(errors)) => {
                printer.raw(&errors);
                Err(Exit::Usage)
            }
        }
    }

    /// The same, with what people should know of it in place of its being printed.
    pub(crate) fn read(global: &Global) -> std::result::Result<(Settings, Option<String>), Wrong> {
        let path = Settings::path(global);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && global.config.is_none() => None,
            Err(error) => {
                return Err(Wrong::Unreadable(format!("cannot read the configuration {}: {error}", path.display())));
            }
        };
        let config = match &text {
            None => Config::default(),
            Some(text) => config(&path, text)?,
        };
        let warning = exposed(&config, &path);
        let key = std::env::var("IMGSYNC_KEY").ok().filter(|key| !key.is_empty()).map(Secret::new);
        // A variable that is set to nothing names nothing.
        let named = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let given = Given { broker: named(&global.broker), store: named(&global.store), key };
        Ok((Settings { config, file: text.map(|_| path), given }, warning))
    }

    /// The file that is read, by its name.
    pub(crate) fn path(global: &Global) -> PathBuf {
        global.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }

    /// The same without `report:`, which is for runs.
    pub(crate) fn without_report(&self) -> Settings {
        let mut settings = self.clone();
        settings.config.report = None;
        settings
    }

    /// Where the cluster is, if there is one.
    pub(crate) fn cluster(&self) -> Result<Option<Addresses>> {
        Addresses::resolve(self.config.cluster.as_ref(), &self.given, self.folder())
    }

    /// Where relative paths of the configuration begin.
    pub(crate) fn folder(&self) -> &Path {
        self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// How registries are spoken to.
    pub(crate) fn client(&self) -> Result<ClientSettings> {
        client_settings(&self.config, self.folder())
    }
}

/// What a file means. Of one that another program reads it is said how to take that over.
fn config(path: &Path, text: &str) -> std::result::Result<Config, Wrong> {
    let name = path.display().to_string();
    let presets = presets::known();
    let environment = |name: &str| std::env::var(name).ok();
    let file = File { name: &name, text, environment: &environment, presets: Some(&presets) };
    Config::read(&file).map_err(|errors| {
        let mut words = errors.to_string();
        if let Some(format) = import::whose(text) {
            words.push_str(&format!(
                "\nhint: this looks like a file of {format}: `imgsync config import {name}` makes a configuration of it\n"
            ));
        }
        Wrong::Refused(words)
    })
}
