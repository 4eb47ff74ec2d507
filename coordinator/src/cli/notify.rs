//! Notification flags, which override the configuration.

use clap::Args;
use imgsync_config::{NotifyConfig, TelegramConfig};
use imgsync_oci::secret::Secret;
use url::Url;

use super::printer::Printer;

/// Notifications. Commands that run batches flatten this in.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Notifications")]
pub(crate) struct NotifyArgs {
    /// URL of the Telegram Bot API or of a proxy [default: from the configuration, else https://api.telegram.org]
    #[arg(long, value_name = "URL", env = "IMGSYNC_TELEGRAM_API", value_parser = parse_api_url)]
    #[arg(hide_short_help = true)]
    pub(crate) telegram_api: Option<Url>,
    /// Token of the Telegram bot; visible to others on this machine: prefer the variable
    #[arg(long, value_name = "TOKEN", env = "IMGSYNC_TELEGRAM_TOKEN", hide_env_values = true, value_parser = parse_secret)]
    #[arg(hide_short_help = true)]
    pub(crate) telegram_token: Option<Secret>,
    /// Telegram chat that receives the report: a number such as -1001234567890, or @name of a public chat
    #[arg(long, value_name = "CHAT", env = "IMGSYNC_TELEGRAM_GROUP", allow_hyphen_values = true, value_parser = parse_group)]
    #[arg(hide_short_help = true)]
    pub(crate) telegram_group: Option<String>,
}

impl NotifyArgs {
    /// Merges the flags into the configured notification targets. Half a Telegram setting is dropped with a warning.
    pub(crate) fn resolve(&self, configured: &NotifyConfig, printer: &Printer) -> NotifyConfig {
        let mut notify = configured.clone();
        let is_typed = self.telegram_token.is_some() || self.telegram_group.is_some() || self.telegram_api.is_some();
        if !is_typed && notify.telegram.is_none() {
            return notify;
        }
        let was = notify.telegram.take().unwrap_or_default();
        let telegram = TelegramConfig {
            token: self.telegram_token.clone().or(was.token),
            group: self.telegram_group.clone().filter(|group| !group.is_empty()).or(was.group),
            api: self.telegram_api.clone().or(was.api),
            on: was.on,
        };
        let telegram = TelegramConfig { token: telegram.token.filter(|token| !token.expose().is_empty()), ..telegram };
        match (&telegram.token, &telegram.group) {
            (Some(_), Some(_)) => notify.telegram = Some(telegram),
            (Some(_), None) => {
                printer.warning("no Telegram notification: the token is set but the group is not (--telegram-group)")
            }
            (None, Some(_)) => {
                printer.warning("no Telegram notification: the group is set but the token is not (--telegram-token)")
            }
            // An API URL alone enables nothing.
            (None, None) => {}
        }
        notify
    }
}

fn parse_secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

/// Parses a group. An empty variable counts as unset.
fn parse_group(text: &str) -> Result<String, String> {
    match text.is_empty() || TelegramConfig::is_group(text) {
        true => Ok(text.to_owned()),
        false => Err("write a chat's number, such as -1001234567890, or @name".to_owned()),
    }
}

fn parse_api_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(url),
        _ => Err("write a URL that begins with https:// or http://".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TestArgs {
        #[command(flatten)]
        notify: NotifyArgs,
    }

    #[test]
    fn flags_override_the_configuration_and_half_a_telegram_is_left_out() {
        let printer = Printer::new(true);
        let resolved = |typed: &[&str], configured: &NotifyConfig| {
            let typed = TestArgs::try_parse_from([&["x"], typed].concat()).unwrap();
            typed.notify.resolve(configured, &printer).telegram.map(|it| (it.token.unwrap(), it.group.unwrap()))
        };
        let file = TelegramConfig {
            token: Some(Secret::new("1:a")),
            group: Some("-1".to_owned()),
            ..TelegramConfig::default()
        };
        let file = NotifyConfig { telegram: Some(file), ..NotifyConfig::default() };
        let none = NotifyConfig::default();
        assert_eq!(resolved(&[], &none), None);
        assert_eq!(resolved(&[], &file), Some((Secret::new("1:a"), "-1".to_owned())));
        assert_eq!(resolved(&["--telegram-group", "-2"], &file), Some((Secret::new("1:a"), "-2".to_owned())));
        assert_eq!(resolved(&["--telegram-group", "@all"], &none), None);
        assert_eq!(resolved(&["--telegram-token", "2:b"], &none), None);
        let both = resolved(&["--telegram-token", "2:b", "--telegram-group=-7"], &none);
        assert_eq!(both, Some((Secret::new("2:b"), "-7".to_owned())));
        assert!(TestArgs::try_parse_from(["x", "--telegram-group", "friends"]).is_err());
    }
}
