//! Kinds of notification targets, one in each file.

mod dingtalk;
mod email;
mod feishu;
mod ping;
mod slack;
mod telegram;
mod webhook;
mod wecom;

use imgsync_config::NotifyConfig;
use imgsync_oci::error::Result;

use super::chat;
use super::target::{NotificationTarget, TargetContext};

/// Builds the configured targets of one kind.
type BuildTargets = fn(&NotifyConfig, &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>>;

/// All kinds, in the order of notification.
const KINDS: &[BuildTargets] = &[
    telegram::build,
    webhook::build,
    chat::build::<slack::Slack>,
    chat::build::<wecom::WeCom>,
    chat::build::<feishu::Feishu>,
    chat::build::<dingtalk::DingTalk>,
    email::build,
    ping::build,
];

/// Builds all configured targets.
pub(super) fn build_targets(
    notify: &NotifyConfig,
    context: &TargetContext<'_>,
) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let mut targets = Vec::new();
    for build in KINDS {
        targets.extend(build(notify, context)?);
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use imgsync_config::{ChatKind, Config, ConfigFile};

    use super::super::Notifier;

    /// Returns the configuration keys of the targets of a configuration.
    fn keys(notify: &str) -> Vec<&'static str> {
        let text = format!("notify:\n{notify}");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
        let notify = Config::read(&file).unwrap().notify;
        let notifier = Notifier::new(&notify, Path::new("."), Duration::ZERO).unwrap();
        notifier.targets.iter().map(|target| target.key()).collect()
    }

    #[test]
    fn each_kind_of_target_is_built_in_the_order_of_notification() {
        let chats: Vec<&str> = ChatKind::ALL.map(ChatKind::key).into();
        let configured: String = chats.iter().map(|key| format!("  {key}: {{url: https://x.example}}\n")).collect();
        let notify = format!(
            "  ping: [https://x.example/1, https://x.example/2]
  email: {{server: 'smtp://x.example', from: a@b.example, to: c@d.example}}
{configured}  webhook: {{url: https://x.example}}
  telegram: {{token: '1:a', group: '@all'}}
"
        );
        assert_eq!(keys(&notify), [&["telegram", "webhook"], &chats[..], &["email", "ping", "ping"]].concat());
        assert!(keys("  telegram: {group: '@all'}\n").is_empty(), "without a token, Telegram is not notified");
    }
}
