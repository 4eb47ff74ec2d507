//! Waits for the lock of a layout or of an archive that is written, with warnings, a timeout and cancellation.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::LayoutError;
use super::safe_dir::SafeDir;
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::retry::format_duration;
use imgsync_oci::sanitize::sanitize;
use imgsync_registry::Context;
use imgsync_registry::event::{Event, Events};

/// Timeout of a wait for the lock. A working process holds it for milliseconds.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(4);
/// Time before the first warning of a wait, and between warnings.
const LOCK_WARN_INTERVAL: Duration = Duration::from_secs(5);

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
struct ContendedLock {
    since: Instant,
    seen: Instant,
    warned: Option<Instant>,
}

/// Contended layout locks by path: the images for one layout wait together, warn once and time out at the same time.
static CONTENDED_LOCKS: Mutex<Option<HashMap<PathBuf, ContendedLock>>> = Mutex::new(None);

fn with_contended_locks<T>(work: impl FnOnce(&mut HashMap<PathBuf, ContendedLock>) -> T) -> T {
    work(CONTENDED_LOCKS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Records contention of a lock. Returns how long it has lasted, and whether to warn now.
fn record_contention(path: &Path, limit: Duration) -> (Duration, bool) {
    let now = Instant::now();
    with_contended_locks(|busy| {
        busy.retain(|_, one| now - one.seen <= limit);
        let one = busy.entry(path.to_owned()).or_insert(ContendedLock { since: now, seen: now, warned: None });
        one.seen = now;
        let waited = now - one.since;
        let warns =
            waited >= LOCK_WARN_INTERVAL.min(limit / 4) && one.warned.is_none_or(|at| now - at >= LOCK_WARN_INTERVAL);
        if warns {
            one.warned = Some(now);
        }
        (waited, warns)
    })
}

/// A file that is locked, as messages name it.
struct LockedFile<'a> {
    path: &'a Path,
    /// `oci:FOLDER`, or a file.
    label: String,
    hint: &'static str,
}

/// Locks the marker of a layout until it is closed. File systems without locks are not safe for concurrent writers, and
/// are used unlocked.
pub(super) fn lock(root: &SafeDir, file: &File, wait: &LockWait) -> Result<(), LayoutError> {
    lock_with_timeout(root, file, wait, LOCK_TIMEOUT)
}

pub(super) fn lock_with_timeout(
    root: &SafeDir,
    file: &File,
    wait: &LockWait,
    limit: Duration,
) -> Result<(), LayoutError> {
    let label = format!("oci:{}", sanitize(&root.path().display().to_string()));
    let locked = LockedFile { path: root.path(), label, hint: "check which other process writes to this folder" };
    wait_for_lock(&locked, file, wait, limit)
}

/// Locks a file until it is closed, and returns it. File systems without locks are used unlocked. Waits for another
/// process with warnings, and gives up after 60 seconds.
pub async fn lock_file(file: File, path: &Path, operation: &str, context: &Context) -> Result<File, Error> {
    let (path, wait) = (path.to_owned(), LockWait::from(context));
    super::run_blocking(operation, move || {
        let label = sanitize(&path.display().to_string()).into_owned();
        let hint = "wait for the other process, or write to another file";
        let locked = LockedFile { path: &path, label, hint };
        wait_for_lock(&locked, &file, &wait, LOCK_TIMEOUT).map(|()| file)
    })
    .await
}

fn wait_for_lock(locked: &LockedFile<'_>, file: &File, wait: &LockWait, limit: Duration) -> Result<(), LayoutError> {
    loop {
        match file.try_lock() {
            Ok(()) => {
                with_contended_locks(|busy| busy.remove(locked.path));
                return Ok(());
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(LayoutError::io(locked.path, "locking", error)),
        }
        if wait.cancel.is_cancelled() {
            return Err(LayoutError::new(ErrorKind::Cancelled, "cancelled while another process held the lock"));
        }
        let (waited, warns) = record_contention(locked.path, limit);
        if waited >= limit {
            let detail =
                format!("{} has held the lock for more than {}", describe_lock_holder(file), format_duration(waited));
            return Err(LayoutError::new(ErrorKind::TimedOut, detail).with_hint(locked.hint));
        }
        if warns {
            let message = format!(
                "waiting for the lock of {}: held by {} for {}; gives up after {}",
                locked.label,
                describe_lock_holder(file),
                format_duration(waited),
                format_duration(limit)
            );
            wait.events.emit(Event::Warning { message });
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
}

/// Describes a lock's holder as far as this machine knows: proc_locks(5) lists the locks of all its processes.
fn describe_lock_holder(file: &File) -> String {
    let unknown = || "another process, perhaps on another machine,".to_owned();
    let (Ok(data), Ok(locks)) = (file.metadata(), std::fs::read_to_string("/proc/locks")) else { return unknown() };
    let Some(process) = find_lock_holder(&locks, data.ino()) else { return unknown() };
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("process {process} ({})", sanitize(name.trim())),
        Err(_) => format!("process {process}"),
    }
}

/// Finds the process that holds a lock on a whole file, by inode. Waiting processes are marked with an arrow.
fn find_lock_holder(locks: &str, inode: u64) -> Option<u32> {
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

    use super::super::OCI_LAYOUT;
    use super::*;
    use imgsync_registry::event::Observer;

    #[derive(Default)]
    struct WarningRecorder(Mutex<Vec<String>>);

    impl Observer for WarningRecorder {
        fn on_event(&self, event: &Event) {
            if let Event::Warning { message } = event {
                self.0.lock().unwrap().push(message.clone());
            }
        }
    }

    fn held() -> (tempfile::TempDir, SafeDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join(OCI_LAYOUT)).unwrap();
        file.lock().unwrap();
        let root = SafeDir::open(dir.path()).unwrap().unwrap();
        (dir, root, file)
    }

    #[test]
    fn a_wait_for_a_lock_warns_with_its_holder_and_times_out() {
        let (dir, root, _holder) = held();
        let warnings = Arc::new(WarningRecorder::default());
        let wait = LockWait { events: Events::new(warnings.clone()), ..LockWait::default() };
        let ours = File::open(dir.path().join(OCI_LAYOUT)).unwrap();
        let limit = Duration::from_secs(1);
        let Err(LayoutError::Other { kind, detail, .. }) = lock_with_timeout(&root, &ours, &wait, limit) else {
            panic!()
        };
        assert_eq!(kind, ErrorKind::TimedOut);
        let process = format!("process {} (", std::process::id());
        assert!(detail.contains(&process), "{detail}");
        let warnings = warnings.0.lock().unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(&process) && warnings[0].contains("oci:"), "{warnings:?}");
        // Another image for this layout does not wait for the full timeout again.
        let began = Instant::now();
        assert!(lock_with_timeout(&root, &ours, &wait, limit).is_err());
        assert!(began.elapsed() < limit, "{:?}", began.elapsed());
    }

    #[test]
    fn a_cancelled_wait_for_a_lock_ends() {
        let (dir, root, holder) = held();
        let wait = LockWait::default();
        wait.cancel.cancel();
        let ours = File::open(dir.path().join(OCI_LAYOUT)).unwrap();
        let waited = lock_with_timeout(&root, &ours, &wait, LOCK_TIMEOUT);
        assert!(matches!(waited, Err(LayoutError::Other { kind: ErrorKind::Cancelled, .. })));
        drop(holder);
        lock(&root, &ours, &wait).unwrap();
    }

    #[test]
    fn the_holder_of_a_lock_is_told_from_those_that_wait_and_from_locks_of_ranges() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:01:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 08:01:7 0 EOF\n3: FLOCK  ADVISORY  READ 14 00:2d:8 0 EOF\n";
        assert_eq!([7, 8, 9].map(|inode| find_lock_holder(locks, inode)), [Some(12), Some(14), None]);
    }
}
