//! Settings of a command, from the configuration file: read once, validated as a whole, passed on as values.

use std::path::{Path, PathBuf};

use imgsync_config::{Config, ConfigFile};
use imgsync_oci::error::{Error, Result};
use imgsync_registry::ClientSettings;
use imgsync_worker::cluster::{ClusterEndpoints, ClusterOverrides, ClusterSecrets};
use imgsync_worker::settings::{client_settings, readable_secrets_warning};

use super::exit::Exit;
use super::global::GlobalArgs;
use super::policy_keys::read_policy_keys;
use super::printer::Printer;
use crate::{import, presets};

const DEFAULT_FILE: &str = "imgsync.yaml";

/// The configuration and its file.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The file's content, or the defaults if there is no file.
    pub(crate) config: Config,
    /// The configuration with all its rules, if `config` is limited to some of them.
    pub(super) unlimited: Option<Box<Config>>,
    /// The file, if there is one.
    pub(crate) file: Option<PathBuf>,
    /// Cluster addresses from flags and the environment.
    cluster_overrides: ClusterOverrides,
}

/// Why settings could not be loaded, as a message.
#[derive(Debug)]
pub(crate) enum SettingsError {
    /// The file cannot be read.
    Unreadable(String),
    /// The configuration is invalid: several lines, with carets.
    Invalid(String),
}

impl SettingsError {
    /// Creates the error of a key that cannot be used, with its hint.
    fn from_key(error: Error) -> SettingsError {
        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        SettingsError::Unreadable(format!("{error}{hint}"))
    }
}

impl Settings {
    /// Reads the named file, else `./imgsync.yaml` if it exists. Prints warnings and errors.
    pub(crate) fn load(global: &GlobalArgs, printer: &Printer) -> std::result::Result<Settings, Exit> {
        match Settings::read(global) {
            Ok((settings, warning)) => {
                warning.iter().for_each(|warning| printer.warning(warning));
                Ok(settings)
            }
            Err(SettingsError::Unreadable(why)) => {
                printer.error(&why, None);
                Err(Exit::Usage)
            }
            Err(SettingsError::Invalid(errors)) => {
                printer.raw(&errors);
                Err(Exit::Usage)
            }
        }
    }

    /// Like [`Settings::load`], but returns warnings and errors instead of printing them.
    pub(crate) fn read(global: &GlobalArgs) -> std::result::Result<(Settings, Option<String>), SettingsError> {
        let path = Settings::config_path(global);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && global.config.is_none() => None,
            Err(error) => {
                return Err(SettingsError::Unreadable(format!(
                    "cannot read the configuration {}: {error}",
                    path.display()
                )));
            }
        };
        let mut config = match &text {
            None => Config::default(),
            Some(text) => parse_config(&path, text)?,
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        read_policy_keys(&mut config, folder).map_err(SettingsError::from_key)?;
        let warning = readable_secrets_warning(&config, &path);
        let secrets =
            ClusterSecrets::from_environment().map_err(|error| SettingsError::Unreadable(error.to_string()))?;
        let cluster_overrides =
            ClusterOverrides { broker: global.broker.clone(), store: global.store.clone(), secrets };
        Ok((Settings { config, unlimited: None, file: text.map(|_| path), cluster_overrides }, warning))
    }

    /// Returns the path of the configuration file.
    pub(crate) fn config_path(global: &GlobalArgs) -> PathBuf {
        global.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }

    /// Returns the settings without `report:`, which is for runs.
    pub(crate) fn without_report(&self) -> Settings {
        let mut settings = self.clone();
        settings.config.report = None;
        settings
    }

    /// Returns the configuration with all its rules, also if the command is limited to some of them.
    pub(crate) fn whole_config(&self) -> &Config {
        self.unlimited.as_deref().unwrap_or(&self.config)
    }

    /// Returns the addresses of the cluster, if there is one.
    pub(crate) fn cluster(&self) -> Result<Option<ClusterEndpoints>> {
        ClusterEndpoints::resolve(self.config.cluster.as_ref(), &self.cluster_overrides, self.folder())
    }

    /// Returns the base folder of relative paths of the configuration.
    pub(crate) fn folder(&self) -> &Path {
        self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// Returns the settings of the registry client.
    pub(crate) fn client(&self) -> Result<ClientSettings> {
        client_settings(&self.config, self.folder())
    }
}

/// Parses the file. For a file of another program, the error names the command that imports it.
fn parse_config(path: &Path, text: &str) -> std::result::Result<Config, SettingsError> {
    let name = path.display().to_string();
    let presets = presets::known_presets();
    let environment = |name: &str| std::env::var(name).ok();
    let file = ConfigFile { name: &name, text, environment: &environment, presets: Some(&presets) };
    Config::read(&file).map_err(|errors| {
        SettingsError::Invalid(match import::detect_format(text) {
            Some(format) => {
                // The shell empties the file that it redirects to before the command reads it.
                let output = if path.ends_with(DEFAULT_FILE) { "new.yaml" } else { DEFAULT_FILE };
                format!(
                    "error: {name} is a configuration of {format}\n\
                     hint: convert it with `imgsync config import {name} > {output}`\n"
                )
            }
            None => errors.to_string(),
        })
    })
}

/// Returns the base folder of relative paths of the configuration.
pub(crate) fn config_dir(settings: &Settings) -> &Path {
    settings.folder()
}
