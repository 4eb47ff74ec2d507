//! Notification flags, which override the configuration.

use clap::Args;
use imgsync_common::config::{Notify, Telegram};
use imgsync_common::secret::Secret;
use url::Url;

use super::printer::Printer;

/// Notifications. Commands that run batches flatten this in.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Notifications")]
pub(crate) struct NotifyArgs {
    /// Telegram's Bot API is here: your own, or a proxy of it [default: the configuration's, else https://api.telegram.org]
    #[arg(long, value_name = "URL", env = "IMGSYNC_TELEGRAM_API", value_parser = api)]
    pub(crate) telegram_api: Option<Url>,
    /// The token of the bot that sends the report; visible to others on this machine: prefer the variable
    #[arg(long, value_name = "TOKEN", env = "IMGSYNC_TELEGRAM_TOKEN", hide_env_values = true, value_parser = secret)]
    pub(crate) telegram_token: Option<Secret>,
    /// The group that the report is sent to: a number such as -1001234567890, or @name of a public one
    #[arg(long, value_name = "CHAT", env = "IMGSYNC_TELEGRAM_GROUP", allow_hyphen_values = true, value_parser = group)]
    pub(crate) telegram_group: Option<String>,
}

impl NotifyArgs {
    /// Merges the flags into the configured notification targets. Half a Telegram setting is dropped with a warning.
    pub(crate) fn resolve(&self, configured: &Notify, printer: &Printer) -> Notify {
        let mut notify = configured.clone();
        let is_typed = self.telegram_token.is_some() || self.telegram_group.is_some() || self.telegram_api.is_some();
        if !is_typed && notify.telegram.is_none() {
            return notify;
        }
        let was = notify.telegram.take().unwrap_or_default();
        let telegram = Telegram {
            token: self.telegram_token.clone().or(was.token),
            group: self.telegram_group.clone().filter(|group| !group.is_empty()).or(was.group),
            api: self.telegram_api.clone().or(was.api),
            on: was.on,
        };
        let telegram = Telegram { token: telegram.token.filter(|token| !token.expose().is_empty()), ..telegram };
        match (&telegram.token, &telegram.group) {
            (Some(_), Some(_)) => notify.telegram = Some(telegram),
            (Some(_), None) => {
                printer.warning("Telegram is not told: there is a token and no group (--telegram-group)")
            }
            (None, Some(_)) => {
                printer.warning("Telegram is not told: there is a group and no token (--telegram-token)")
            }
            // An API URL alone enables nothing.
            (None, None) => {}
        }
        notify
    }
}

fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

/// Parses a group. An empty variable counts as unset.
fn group(text: &str) -> Result<String, String> {
    match text.is_empty() || Telegram::is_group(text) {
        true => Ok(text.to_owned()),
        false => Err("write a chat's number, such as -1001234567890, or @name".to_owned()),
    }
}

fn api(text: &str) -> Result<Url, String> {
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
    struct Typed {
        #[command(flatten)]
        notify: NotifyArgs,
    }

    #[test]
    fn what_is_typed_goes_before_what_is_configured_and_halves_tell_nobody() {
        let printer = Printer::new(true);
        let told = |typed: &[&str], configured: &Notify| {
            let typed = Typed::try_parse_from([&["x"], typed].concat()).unwrap();
            typed.notify.resolve(configured, &printer).telegram.map(|it| (it.token.unwrap(), it.group.unwrap()))
        };
        let file = Telegram { token: Some(Secret::new("1:a")), group: Some("-1".to_owned()), ..Telegram::default() };
        let file = Notify { telegram: Some(file), ..Notify::default() };
        let none = Notify::default();
        assert_eq!(told(&[], &none), None);
        assert_eq!(told(&[], &file), Some((Secret::new("1:a"), "-1".to_owned())));
        assert_eq!(told(&["--telegram-group", "-2"], &file), Some((Secret::new("1:a"), "-2".to_owned())));
        assert_eq!(told(&["--telegram-group", "@all"], &none), None);
        assert_eq!(told(&["--telegram-token", "2:b"], &none), None);
        let both = told(&["--telegram-token", "2:b", "--telegram-group=-7"], &none);
        assert_eq!(both, Some((Secret::new("2:b"), "-7".to_owned())));
        assert!(Typed::try_parse_from(["x", "--telegram-group", "friends"]).is_err());
    }
}
