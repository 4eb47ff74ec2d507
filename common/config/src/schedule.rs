//! `schedule:`: when `imgsync serve` runs a rule.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::reader::ValueReader;
use super::schema_table::SCHEDULE;
use super::yaml::{YamlNode, YamlValue};
use imgsync_model::schedule::{CronPatternError, Recurrence, Schedule};

/// Minimum interval: a batch alone takes some seconds, so less is a mistake.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> Option<Schedule> {
    let YamlValue::Map(_) = node.value else {
        let text = reader.text(node)?;
        return match text.parse() {
            Ok(pattern) => Some(Schedule::new(Recurrence::Cron(pattern))),
            Err(error) => {
                let error: CronPatternError = error;
                let is_time = text.parse::<jiff::Span>().is_ok();
                reader.report_value(node, error, is_time.then(|| format!("write `{{every: {text}}}`")));
                None
            }
        };
    };
    let fields = reader.fields(node, &SCHEDULE)?;
    let recurrence = match (fields.get("cron"), fields.get("every")) {
        (Some(cron), None) => Recurrence::Cron(reader.parse(cron)?),
        (None, Some(every)) => {
            let time = reader.duration(every)?;
            if time < MIN_INTERVAL {
                reader.report_value(every, "the minimum is five seconds", None);
                return None;
            }
            Recurrence::Every(time)
        }
        (Some(_), Some(_)) => {
            reader.report(&fields.at, "a schedule has either `cron` or `every`, not both");
            return None;
        }
        (None, None) => {
            reader.report(&fields.at, "a schedule needs `cron` or `every`");
            return None;
        }
    };
    let jitter = fields.get("jitter").and_then(|node| {
        let jitter = reader.duration(node)?;
        if matches!(recurrence, Recurrence::Every(time) if jitter >= time) {
            reader.report_value(node, "`jitter` is shorter than `every`", None);
            return None;
        }
        Some(jitter)
    });
    let zone = match fields.get("zone") {
        None => TimeZone::UTC,
        Some(node) if matches!(recurrence, Recurrence::Every(_)) => {
            reader.report_value(node, "`zone` applies to `cron` only", None);
            return None;
        }
        Some(node) => {
            let name = reader.text(node)?;
            match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    let hint = "write a name such as Europe/Berlin, Asia/Shanghai or UTC".to_owned();
                    reader.report_value(node, format!("unknown time zone `{name}`"), Some(hint));
                    return None;
                }
            }
        }
    };
    Some(Schedule { recurrence, jitter: jitter.unwrap_or_default(), zone })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigFile};

    fn read(schedule: &str) -> Result<Config, String> {
        let text = format!("rules:\n- from: gcr.io/a\n  to: r.example/b\n  schedule: {schedule}\n");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn schedules_are_read_and_shown() {
        for (written, shown) in [
            ("'0 */6 * * *'", "0 */6 * * * (UTC)"),
            ("{cron: 0 3 * * *, zone: Asia/Shanghai}", "0 3 * * * (Asia/Shanghai)"),
            ("{every: 6h, jitter: 10m}", "every 6h, up to 10m later"),
        ] {
            let config = read(written).unwrap();
            assert_eq!(config.rules[0].schedule.as_ref().unwrap().to_string(), shown);
            let again = config.to_yaml_redacted();
            let file = ConfigFile { name: "c.yaml", text: &again, environment: &|_| None, presets: None };
            assert_eq!(Config::read(&file).unwrap().rules[0].schedule, config.rules[0].schedule, "{again}");
        }
    }

    #[test]
    fn defaults_have_a_schedule_for_rules_without() {
        let text = "defaults: {to: r.example/b, schedule: {every: 1h}}\nrules: [{from: gcr.io/a}, {from: gcr.io/c, schedule: '@daily'}]\n";
        let file = ConfigFile { name: "c.yaml", text, environment: &|_| None, presets: None };
        let rules = Config::read(&file).unwrap().rules;
        let shown: Vec<String> = rules.iter().map(|rule| rule.schedule.as_ref().unwrap().to_string()).collect();
        assert_eq!(shown, ["every 1h", "@daily (UTC)"]);
    }

    #[test]
    fn what_is_wrong_with_a_schedule_is_said() {
        for (written, wanted) in [
            ("'0 0 30 2 *'", "never matches"),
            ("{every: 6h, cron: '@daily'}", "not both"),
            ("{jitter: 6h}", "needs `cron` or `every`"),
            ("{every: 1s}", "the minimum is five seconds"),
            ("{every: 1h, jitter: 1h}", "shorter than `every`"),
            ("{cron: '@daily', zone: Mars/Olympus}", "unknown time zone"),
            ("{every: 1h, zone: UTC}", "applies to `cron` only"),
            ("6h", "every: 6h"),
            ("{evry: 1h}", "did you mean `every`"),
        ] {
            let said = read(written).unwrap_err();
            assert!(said.contains(wanted), "{written}: {said}");
        }
    }
}
