//! Target and credential flags of commands with their own sources: presets, and the commands of imgsync 2.1.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;
use imgsync_config::{CredentialConfig, Rule, RuleSource, RuleTarget};
use imgsync_model::naming::{NamingStyle, TargetBase};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;
use imgsync_oci::{ArchiveFormat, ParseReferenceError, RegistryName, strip_transport};
use imgsync_registry::Client;
use imgsync_registry::credentials::CredentialEnvironment;

use super::printer::Printer;
use super::settings::Settings;
use crate::presets::source_selectors;

/// Password of `--user`, unless it is given otherwise.
const PASSWORD_VARIABLE: &str = "IMGSYNC_PASSWORD";

/// Target registry and credentials.
#[derive(Debug, Args)]
#[command(next_help_heading = "Target")]
pub(crate) struct TargetArgs {
    /// Target: registry and path, or oci:DIR; may be repeated [default: from the configuration, else docker.io/<user>]
    #[arg(long, value_name = "TARGET", value_parser = parse_destination)]
    pub(crate) to: Vec<RuleTarget>,
    /// Naming of the targets: flat, keep, basename, full, original, or a template
    #[arg(long, value_name = "STYLE", value_parser = |text: &str| text.parse::<NamingStyle>())]
    pub(crate) naming: Option<NamingStyle>,
    /// The user at the target's registry; the default of --to is docker.io/<user>
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The user's password or token; visible to others on this machine: prefer --password-stdin, or IMGSYNC_PASSWORD
    ///
    /// Defaults to the credentials of `docker login`.
    #[arg(hide_short_help = true)]
    #[arg(long, value_name = "PASSWORD", requires = "user", value_parser = |text: &str| Ok::<_, String>(Secret::new(text)))]
    pub(crate) password: Option<Secret>,
    /// Read the password from stdin
    #[arg(long, requires = "user", conflicts_with = "password")]
    pub(crate) password_stdin: bool,
}

impl TargetArgs {
    /// Returns whether one of these flags was given.
    pub(crate) fn is_typed(&self) -> bool {
        !self.to.is_empty() || self.naming.is_some() || self.user.is_some()
    }

    /// Replaces the configuration's rules with one rule per source, and adds the credentials. `naming` is the naming
    /// if the flag is missing. The configuration's defaults apply.
    pub(crate) async fn set_rules(
        &self,
        sources: Vec<RuleSource>,
        naming: Option<NamingStyle>,
        settings: &mut Settings,
        printer: &Printer,
    ) -> Result<()> {
        let to = self.resolve_destinations(settings).await?;
        self.set_credentials(to.as_deref(), settings, printer)?;
        let mut rules = Vec::new();
        for source in sources {
            let mut rule = settings.config.rule_from_defaults(source);
            rule.to = to.clone().unwrap_or(rule.to);
            rule.naming = self.naming.clone().or_else(|| naming.clone()).or(rule.naming);
            check_rule(&rule)?;
            rules.push(rule);
        }
        settings.config.rules = rules;
        Ok(())
    }

    /// Returns the targets from the flags or the logged-in user; none if the configuration defines them.
    async fn resolve_destinations(&self, settings: &Settings) -> Result<Option<Vec<RuleTarget>>> {
        if !self.to.is_empty() {
            return Ok(Some(self.to.clone()));
        }
        let user = match &self.user {
            Some(user) => Some(user.clone()),
            None if !settings.config.default_targets.is_empty() || settings.config.hub_user().is_some() => {
                return Ok(None);
            }
            None => {
                Client::new(settings.client()?, CredentialEnvironment::from_process())
                    .find_username(&docker_hub())
                    .await?
            }
        };
        let operation = "choosing the target";
        let user = user.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, operation, "no target is configured, and no Docker Hub user is known")
                .with_hint("pass --to or --user, set `defaults: {to: …}` in the configuration, or run `docker login`")
        })?;
        let prefix = user.to_ascii_lowercase().parse().map_err(|error: ParseReferenceError| {
            Error::new(ErrorKind::Invalid, operation, format!("{user} is not a valid Docker Hub namespace: {error}"))
        })?;
        Ok(Some(vec![RuleTarget::Registry(TargetBase { registry: docker_hub(), prefix: Some(prefix) })]))
    }

    /// Sets the credentials of the target's registry.
    fn set_credentials(&self, to: Option<&[RuleTarget]>, settings: &mut Settings, printer: &Printer) -> Result<()> {
        let password = read_password(self.user.as_deref(), self.password.as_ref(), self.password_stdin)?;
        let (Some(username), Some(password)) = (self.user.clone(), password) else { return Ok(()) };
        let registries = to.unwrap_or_default().iter().filter_map(|to| Some(&to.registry()?.registry));
        let mut registries: Vec<&RegistryName> = registries.collect();
        registries.dedup();
        let [registry] = registries.as_slice() else {
            let detail = "--user and --password apply to one registry, and the targets are in several or in none";
            return Err(Error::new(ErrorKind::Invalid, "choosing the target", detail)
                .with_hint("set the credentials in `registries:` of the configuration"));
        };
        let entry = settings.config.registries.entry((*registry).clone()).or_default();
        entry.username = Some(username.clone());
        entry.credential = Some(CredentialConfig::Basic { username, password });
        if settings.cluster()?.is_some() {
            printer.warning("this password is not sent to the workers of the cluster: configure their credentials");
        }
        Ok(())
    }
}

/// Validates a rule before anything is listed.
fn check_rule(rule: &Rule) -> Result<()> {
    let operation = || format!("copying {}", rule.source);
    if rule.to.is_empty() {
        return Err(
            Error::new(ErrorKind::Invalid, operation(), "the preset has no target").with_hint("pass --to or --user")
        );
    }
    for part in source_selectors(&rule.source)? {
        if let Some(error) = rule.sample_names(&part.pattern).into_iter().find_map(std::result::Result::err) {
            return Err(Error::new(ErrorKind::Invalid, operation(), error.to_string())
                .with_hint("choose another --naming or --to"));
        }
    }
    Ok(())
}

/// Returns the password of a user: typed, from stdin, or from the environment.
pub(crate) fn read_password(user: Option<&str>, typed: Option<&Secret>, from_stdin: bool) -> Result<Option<Secret>> {
    if !from_stdin {
        let variable = || std::env::var(PASSWORD_VARIABLE).ok().filter(|text| user.is_some() && !text.is_empty());
        // Scripts for imgsync 2.1 pass an empty password if a secret is not set.
        let typed = typed.filter(|typed| !typed.expose().is_empty()).cloned();
        return Ok(typed.or_else(|| variable().map(Secret::new)));
    }
    let mut text = String::new();
    std::io::stdin().take(64 << 10).read_to_string(&mut text).map_err(|error| {
        Error::new(ErrorKind::Invalid, "reading the password from stdin", error.to_string()).with_source(error)
    })?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "reading the password from stdin", "it is empty"));
    }
    Ok(Some(Secret::new(text)))
}

/// Returns the name of Docker Hub.
pub(crate) fn docker_hub() -> RegistryName {
    "docker.io".parse().expect("a constant name parses")
}

pub(crate) fn parse_destination(text: &str) -> std::result::Result<RuleTarget, String> {
    if let Some((format, file)) = ArchiveFormat::split_scheme(text) {
        return match file {
            "" | "-" => Err(format!("`{}` needs the name of a file", format.scheme())),
            file => Ok(RuleTarget::Archive(format, PathBuf::from(file))),
        };
    }
    match text.strip_prefix("oci:") {
        Some("") => Err("`oci:` needs the name of a folder".to_owned()),
        Some(folder) => Ok(RuleTarget::Layout(PathBuf::from(folder))),
        None => strip_transport(text)
            .parse()
            .map(RuleTarget::Registry)
            .map_err(|error: imgsync_model::naming::TargetBaseError| error.to_string()),
    }
}
