//! `if_running`: what a run does while a batch of the same rules is running.

use std::fmt;
use std::str::FromStr;

/// What a run does while a batch of the same rules is running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfRunning {
    /// Waits for its end, then lists and runs anew. A run that finds another one waiting joins that one's batch.
    #[default]
    Wait,
    /// Follows the running batch, and ends with its result.
    Join,
    /// Stops the running batch and replaces it.
    Supersede,
    /// Fails with an error.
    Fail,
}

impl IfRunning {
    /// All modes.
    pub const ALL: [IfRunning; 4] = [IfRunning::Wait, IfRunning::Join, IfRunning::Supersede, IfRunning::Fail];

    /// Returns the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            IfRunning::Wait => "wait",
            IfRunning::Join => "join",
            IfRunning::Supersede => "supersede",
            IfRunning::Fail => "fail",
        }
    }
}

impl fmt::Display for IfRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IfRunning {
    type Err = String;

    fn from_str(text: &str) -> Result<IfRunning, String> {
        let found = IfRunning::ALL.into_iter().find(|mode| mode.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is not one of wait, join, supersede, fail"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigFile};
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let file = ConfigFile { name: "c.yaml", text, environment: &|_| None, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_run_waits_unless_the_configuration_says_otherwise() {
        assert_eq!(read("registries: {}\n").unwrap().if_running, IfRunning::Wait);
        for mode in IfRunning::ALL {
            let config = read(&format!("if_running: {mode}\n")).unwrap();
            assert_eq!(config.if_running, mode);
            assert!(config.to_yaml_redacted().contains(&format!("if_running: {mode}\n")));
        }
        let wrong = read("if_running: skip\n").unwrap_err();
        assert!(wrong.contains("`skip` is not one of wait, join, supersede, fail"), "{wrong}");
    }
}
