//! Archives as targets of `sync`: what real loaders make of them, their shape, and what may go wrong while one is written.

mod faults;
mod loaders;
mod resumption;
mod shape;

use std::io::Read as _;
use std::path::Path;

use imgsync_tests::program::Imgsync;
use serde_json::Value;

/// Returns `imgsync sync` with these arguments and short retries, in the home of a program.
fn sync(program: &Imgsync, arguments: &[&str]) -> Imgsync {
    program.again().args(["sync", "--retry-delay", "10ms"]).args(arguments)
}

/// Reads the members of an archive, in order.
fn members(archive: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

/// Returns a member that is JSON.
fn json_member(members: &[(String, Vec<u8>)], path: &str) -> Value {
    let (_, content) = members.iter().find(|(name, _)| name == path).unwrap_or_else(|| panic!("no {path}"));
    serde_json::from_slice(content).unwrap()
}

/// Returns the names of a folder's files, sorted, hidden ones included.
fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
