//! Waits for a layout's lock, with warnings, a timeout and cancellation.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use super::open::OCI_LAYOUT;
use super::trouble::Trouble;
use crate::error::Class;
use crate::event::{Event, Events};
use crate::printable::printable;
use crate::registry::Context;
use crate::retry::seconds;

/// Timeout of a wait for the lock. A working process holds it for milliseconds.
pub const LOCK_LIMIT: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(4);
/// Time before the first warning of a wait, and between warnings.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// Cancellation and events of a wait for the lock.
#[derive(Debug, Clone, Default)]
pub(super) struct LockWait {
    pub(super) cancel: CancellationToken,
    pub(super) events: Events,
}

impl From<&Context> for LockWait {
    fn from(context: &Context) -> LockWait {
        LockWait { cancel: context.cancel.clone(), events: context.events.clone() }
    }
}

/// A lock held by another process, shared by all tasks of this process that wait for it.
#[derive(Debug, Clone, Copy)]
struct Busy {
    since: Instant,
    seen: Instant,
    warned: Option<Instant>,
}

/// Contended layout locks by path: the images for one layout wait together, warn once and time out at the same time.
static BUSY: Mutex<Option<HashMap<PathBuf, Busy>>> = Mutex::new(None);

fn with_busy<T>(work: impl FnOnce(&mut HashMap<PathBuf, Busy>) -> T) -> T {
    work(BUSY.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Records contention of a lock. Returns how long it has lasted, and whether to warn now.
fn is_busy(path: &Path, limit: Duration) -> (Duration, bool) {
    let now = Instant::now();
    with_busy(|busy| {
        busy.retain(|_, one| now - one.seen <= limit);
        let one = busy.entry(path.to_owned()).or_insert(Busy { since: now, seen: now, warned: None });
        one.seen = now;
        let waited = now - one.since;
        let warns = waited >= WARN_EVERY.min(limit / 4) && one.warned.is_none_or(|at| now - at >= WARN_EVERY);
        if warns {
            one.warned = Some(now);
        }
        (waited, warns)
    })
}

/// Locks a file until it is closed. File systems without locks are not safe for concurrent writers, and are used
/// unlocked.
pub(super) fn lock(root: &Folder, file: &File, wait: &LockWait) -> Result<(), Trouble> {
    lock_within(root, file, wait, LOCK_LIMIT)
}

pub(super) fn lock_within(root: &Folder, file: &File, wait: &LockWait, limit: Duration) -> Result<(), Trouble> {
    loop {
        match file.try_lock() {
            Ok(()) => {
                with_busy(|busy| busy.remove(root.path()));
                return Ok(());
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(root.failed(OCI_LAYOUT, "locking", error)),
        }
        if wait.cancel.is_cancelled() {
            return Err(Trouble::bad(Class::Cancelled, "stopped on request while another program held its lock"));
        }
        let (waited, warns) = is_busy(root.path(), limit);
        if waited >= limit {
            let detail = format!("{} has held its lock for {} and more", holder(file), seconds(waited));
            return Err(Trouble::bad(Class::TimedOut, detail).hint("see which other program writes to this folder"));
        }
        if warns {
            let folder = root.path().display().to_string();
            let message = format!(
                "waiting for the lock of oci:{}: {} has held it for {}; it is waited for up to {}",
                printable(&folder),
                holder(file),
                seconds(waited),
                seconds(limit)
            );
            wait.events.emit(Event::Warning { message });
        }
        std::thread::sleep(LOCK_POLL);
    }
}

/// Describes a lock's holder as far as this machine knows: proc_locks(5) lists the locks of all its processes.
fn holder(file: &File) -> String {
    let unknown = || "another program, perhaps on another machine,".to_owned();
    let (Ok(data), Ok(locks)) = (file.metadata(), std::fs::read_to_string("/proc/locks")) else { return unknown() };
    let Some(process) = process_in(&locks, data.ino()) else { return unknown() };
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("process {process} ({})", printable(name.trim())),
        Err(_) => format!("process {process}"),
    }
}

/// Finds the process that holds a lock on a whole file, by inode. Waiting processes are marked with an arrow.
fn process_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_whole = words.next()? == "FLOCK";
        let process = words.nth(2)?.parse().ok().filter(|process| *process > 0);
        let found = words.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
        process.filter(|_| is_whole && found == inode)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::event::Observer;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn on(&self, event: &Event) {
            if let Event::Warning { message } = event {
                self.0.lock().unwrap().push(message.clone());
            }
        }
    }

    fn held() -> (tempfile::TempDir, Folder, File) {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join(OCI_LAYOUT)).unwrap();
        file.lock().unwrap();
        let root = Folder::open(dir.path()).unwrap().unwrap();
        (dir, root, file)
    }

    #[test]
    fn who_waits_for_a_lock_is_told_of_its_holder_and_gives_up_in_the_end() {
        let (dir, root, _holder) = held();
        let heard = Arc::new(Heard::default());
        let wait = LockWait { events: Events::to(heard.clone()), ..LockWait::default() };
        let ours = File::open(dir.path().join(OCI_LAYOUT)).unwrap();
        let limit = Duration::from_millis(200);
        let Err(Trouble::Bad { class, detail, .. }) = lock_within(&root, &ours, &wait, limit) else { panic!() };
        assert_eq!(class, Class::TimedOut);
        let process = format!("process {} (", std::process::id());
        assert!(detail.contains(&process), "{detail}");
        let heard = heard.0.lock().unwrap();
        assert!(heard.len() == 1 && heard[0].contains(&process) && heard[0].contains("oci:"), "{heard:?}");
        // Another image for this layout does not wait for the full timeout again.
        let began = Instant::now();
        assert!(lock_within(&root, &ours, &wait, limit).is_err());
        assert!(began.elapsed() < limit, "{:?}", began.elapsed());
    }

    #[test]
    fn a_cancelled_wait_for_a_lock_ends() {
        let (dir, root, holder) = held();
        let wait = LockWait::default();
        wait.cancel.cancel();
        let ours = File::open(dir.path().join(OCI_LAYOUT)).unwrap();
        let waited = lock_within(&root, &ours, &wait, LOCK_LIMIT);
        assert!(matches!(waited, Err(Trouble::Bad { class: Class::Cancelled, .. })));
        drop(holder);
        lock(&root, &ours, &wait).unwrap();
    }

    #[test]
    fn the_holder_of_a_lock_is_told_from_those_that_wait_and_from_locks_of_ranges() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:01:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 08:01:7 0 EOF\n3: FLOCK  ADVISORY  READ 14 00:2d:8 0 EOF\n";
        assert_eq!([7, 8, 9].map(|inode| process_in(locks, inode)), [Some(12), Some(14), None]);
    }
}
