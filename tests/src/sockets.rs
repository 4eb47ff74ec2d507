//! Finds the process at the other end of a connection.

use std::fs;

/// Reports whether a process has an IPv4 connection from this local port.
pub(crate) fn has_connection_from(pid: u32, port: u16) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let inodes: Vec<String> = table.lines().skip(1).filter_map(|line| inode_of(line, port)).collect();
    let Ok(handles) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    handles.flatten().any(|handle| {
        let is = fs::read_link(handle.path()).unwrap_or_default();
        inodes.iter().any(|inode| is.to_string_lossy() == format!("socket:[{inode}]"))
    })
}

/// Returns the inode of a line of `/proc/net/tcp` with this local port.
fn inode_of(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_whitespace();
    let (_, local) = fields.nth(1)?.rsplit_once(':')?;
    let is_it = u16::from_str_radix(local, 16).is_ok_and(|local| local == port);
    is_it.then(|| fields.nth(7).map(str::to_owned)).flatten()
}
