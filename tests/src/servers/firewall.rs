//! Restores the firewall of the machine after a Docker Engine has changed it.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use super::process::find_program;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Snapshot of the firewall. On drop, Docker's new chains and rules are removed and forwarding is restored; other rules
/// stay.
#[derive(Debug)]
pub(super) struct Firewall {
    before: HashSet<(String, String)>,
    forwarding: String,
}

impl Firewall {
    pub(super) fn remember() -> Result<Self, String> {
        let before = lines()?.into_iter().collect();
        let forwarding = fs::read_to_string(FORWARDING).map_err(|error| format!("{FORWARDING}: {error}"))?;
        Ok(Self { before, forwarding })
    }

    fn put_back(&self) -> Result<(), String> {
        let added: Vec<(String, String)> = lines()?.into_iter().filter(|line| !self.before.contains(line)).collect();
        let chains: Vec<(&str, &str)> =
            added.iter().filter_map(|(table, line)| Some((&**table, chain(line)?))).collect();
        // Jumps to a chain first, then its rules, then the chain.
        for (table, line) in &added {
            let Some(rule) = line.strip_prefix("-A ") else { continue };
            if line.contains("DOCKER") && !rule.starts_with("DOCKER") {
                iptables(table, &["-D"], rule);
            }
        }
        for action in ["-F", "-X"] {
            for (table, chain) in &chains {
                iptables(table, &[action], chain);
            }
        }
        // Docker sets the FORWARD policy to DROP.
        let policy = |line: &&(String, String)| line.0 == "filter" && line.1.starts_with(":FORWARD ");
        if let Some((_, line)) = self.before.iter().find(policy) {
            iptables("filter", &["-P"], line.trim_start_matches(':'));
        }
        fs::write(FORWARDING, &self.forwarding).map_err(|error| format!("{FORWARDING}: {error}"))
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            crate::skipped(&format!("the firewall is not what it was: {error}"));
        }
    }
}

/// Returns the name of a Docker chain that the line declares.
fn chain(line: &str) -> Option<&str> {
    line.strip_prefix(":DOCKER").map(|rest| &line[1..line.len() - rest.len() + rest.find(' ').unwrap_or(rest.len())])
}

/// Returns the lines of `iptables-save` without counters, each with its table.
fn lines() -> Result<Vec<(String, String)>, String> {
    let program = find_program("iptables-save").ok_or("iptables-save is not installed (apt install iptables)")?;
    let output = Command::new(program).output().map_err(|error| error.to_string())?;
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name.to_owned(),
            None if line.starts_with([':', '-']) => {
                let line = line.split(" [").next().unwrap_or(line);
                lines.push((table.clone(), line.to_owned()));
            }
            None => {}
        }
    }
    Ok(lines)
}

fn iptables(table: &str, action: &[&str], what: &str) {
    let Some(program) = find_program("iptables") else { return };
    let _ = Command::new(program).args(["-w", "-t", table]).args(action).args(what.split(' ')).output();
}
