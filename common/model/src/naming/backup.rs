//! Tags for backups of overwritten tags.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use minijinja::{Environment, UndefinedBehavior, Value};

use super::template::describe;
use imgsync_oci::{Digest, Tag};

/// Variables of a template.
const VARIABLES: [&str; 4] = ["tag", "date", "time", "digest"];

/// A tag template such as `{{tag}}-before-{{date}}`. For latest, overwritten on the 25th of November: `render` latest,
/// `date` 2026-11-25, `time` 152000 (UTC), `digest` the first 12 digits of the backed-up digest.
#[derive(Clone, Debug)]
pub struct BackupTagTemplate {
    text: String,
    environment: Arc<Environment<'static>>,
}

impl BackupTagTemplate {
    /// Renders the tag. Fails if the result is not a valid tag, mostly because it is too long.
    pub fn render(&self, tag: &Tag, kept: &Digest, now: Timestamp) -> Result<Tag, String> {
        let (date, time) = (now.strftime("%Y-%m-%d").to_string(), now.strftime("%H%M%S").to_string());
        let values = [tag.as_str(), &date, &time, &kept.hex()[..12]];
        let context = Value::from_pairs(VARIABLES.into_iter().zip(values));
        let rendered = self.environment.get_template("tag").and_then(|template| template.render(context));
        let text = rendered.map_err(|error| describe(&error))?;
        text.trim().parse().map_err(|error| format!("`backup` renders to `{}`: {error}", text.trim()))
    }
}

impl FromStr for BackupTagTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<BackupTagTemplate, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let broken = |error: minijinja::Error| format!("the template is invalid: {}", describe(&error));
        environment.add_template_owned("tag", text.to_owned()).map_err(broken)?;
        let used = environment.get_template("tag").map_err(broken)?.undeclared_variables(false);
        let known = |name: &String| {
            VARIABLES.contains(&name.as_str()) || environment.globals().any(|(global, _)| global == name)
        };
        let mut unknown: Vec<&String> = used.iter().filter(|name| !known(name)).collect();
        unknown.sort();
        if let Some(unknown) = unknown.first() {
            return Err(format!("unknown variable `{unknown}`: available are {}", VARIABLES.join(", ")));
        }
        if !used.contains("tag") {
            return Err("the backup tag must contain {{tag}}, or all backups would have the same tag".to_owned());
        }
        let name = BackupTagTemplate { text: text.to_owned(), environment: Arc::new(environment) };
        let tag = Tag::latest();
        let made = name.render(&tag, &Digest::sha256(b""), Timestamp::UNIX_EPOCH)?;
        match made == tag {
            true => Err("the backup tag must differ from the tag that is backed up".to_owned()),
            false => Ok(name),
        }
    }
}

impl fmt::Display for BackupTagTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for BackupTagTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_has_a_tag_of_its_own() {
        let now: Timestamp = "2026-11-25T15:20:00Z".parse().unwrap();
        let kept = Digest::sha256(b"kept");
        let name = |template: &str| template.parse::<BackupTagTemplate>().unwrap();
        let tag = |template: &str| name(template).render(&"1.0".parse().unwrap(), &kept, now).unwrap().to_string();
        assert_eq!(tag("{{tag}}-before-{{date}}"), "1.0-before-2026-11-25");
        assert_eq!(tag("{{ date }}T{{ time }}_{{ tag }}"), "2026-11-25T152000_1.0");
        assert_eq!(tag("{{tag}}-{{digest}}"), format!("1.0-{}", &kept.hex()[..12]));
        for bad in ["{{tag}}", "backup", "{{date}}", "{{tag}}/x", "{{tag}}-{{version}}", "{{tag}}-{{", ""] {
            assert!(bad.parse::<BackupTagTemplate>().is_err(), "{bad}");
        }
        let long = format!("v{}", "1".repeat(126));
        let error = name("{{tag}}-before-{{date}}").render(&long.parse().unwrap(), &kept, now).unwrap_err();
        assert!(error.contains("`backup` renders to"), "{error}");
    }
}
