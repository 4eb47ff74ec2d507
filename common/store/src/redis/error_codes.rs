//! Error codes of Redis, with what each means for the connection, the call and the user.

use imgsync_oci::error::ErrorKind;

pub(super) const CHECK_LOGIN: &str = "check user and password in the store's URL (redis://user:password@host:6379)";
const USE_ONE_SERVER: &str =
    "name one server or a replication group without cluster mode: imgsync's scripts use keys of several hash slots";
const SEE_REPLICATION: &str =
    "name the master (of a managed service: the primary endpoint); after a failover this recovers by itself";

/// Reaction to an error, weakest first: the strongest decides if a pipeline has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ErrorAction {
    /// Retry on the same server.
    Wait,
    /// Retry on another connection, perhaps to another server.
    Reconnect,
    /// Give up: somebody has to change something first.
    Fail,
}

/// An error code of Redis.
#[derive(Debug)]
pub(super) struct ErrorCode {
    pub(super) name: &'static str,
    pub(super) action: ErrorAction,
    pub(super) kind: ErrorKind,
    pub(super) meaning: &'static str,
    pub(super) hint: &'static str,
}

const fn error_code(
    name: &'static str,
    action: ErrorAction,
    kind: ErrorKind,
    meaning: &'static str,
    hint: &'static str,
) -> ErrorCode {
    ErrorCode { name, action, kind, meaning, hint }
}

/// All codes that a server returns to imgsync's commands.
pub(super) static ERROR_CODES: [ErrorCode; 18] = [
    error_code(
        "READONLY",
        ErrorAction::Reconnect,
        ErrorKind::ServerError,
        "the server is a read-only replica",
        SEE_REPLICATION,
    ),
    error_code(
        "MASTERDOWN",
        ErrorAction::Reconnect,
        ErrorKind::ServerError,
        "the server is a replica that has lost its master",
        SEE_REPLICATION,
    ),
    error_code(
        "LOADING",
        ErrorAction::Reconnect,
        ErrorKind::ServerError,
        "the server is loading its data",
        "no action needed; loading time depends on the size of the data",
    ),
    error_code(
        "NOREPLICAS",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server refuses writes: too few replicas are connected",
        "start its replicas, or lower min-replicas-to-write",
    ),
    error_code(
        "MISCONF",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server refuses writes: it cannot write to its disk",
        "check the server's log and the free space of its disk",
    ),
    error_code(
        "OOM",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server refuses writes: it is out of memory",
        "give it more (maxmemory), or let it evict caches (maxmemory-policy volatile-lru)",
    ),
    error_code(
        "BUSY",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server is busy with a script that does not end",
        "if the script does not belong to imgsync, stop it with SCRIPT KILL",
    ),
    error_code(
        "TRYAGAIN",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server is moving these keys to another one",
        "wait until it is done, and then name a server without cluster mode",
    ),
    error_code(
        "NOSCRIPT",
        ErrorAction::Wait,
        ErrorKind::ServerError,
        "the server has lost a script",
        "no action needed, unless something calls SCRIPT FLUSH repeatedly",
    ),
    error_code("NOAUTH", ErrorAction::Fail, ErrorKind::Denied, "the server requires a password", CHECK_LOGIN),
    error_code(
        "WRONGPASS",
        ErrorAction::Fail,
        ErrorKind::Denied,
        "the server does not know this user and password",
        CHECK_LOGIN,
    ),
    error_code(
        "NOPERM",
        ErrorAction::Fail,
        ErrorKind::Denied,
        "the user lacks permission for this command or key",
        "allow the user all commands but administration, on keys that begin with `imgsync:` (see docs/how-to/cluster.md)",
    ),
    error_code(
        "DENIED",
        ErrorAction::Fail,
        ErrorKind::Denied,
        "the server is in protected mode and takes no connections from other machines",
        "set a password or ACL users on the server",
    ),
    error_code(
        "CLUSTERDOWN",
        ErrorAction::Fail,
        ErrorKind::Local,
        "the server belongs to a Redis Cluster that is down",
        USE_ONE_SERVER,
    ),
    error_code("MOVED", ErrorAction::Fail, ErrorKind::Local, "the server belongs to a Redis Cluster", USE_ONE_SERVER),
    error_code("ASK", ErrorAction::Fail, ErrorKind::Local, "the server belongs to a Redis Cluster", USE_ONE_SERVER),
    error_code(
        "CROSSSLOT",
        ErrorAction::Fail,
        ErrorKind::Local,
        "the server belongs to a Redis Cluster",
        USE_ONE_SERVER,
    ),
    error_code(
        "WRONGTYPE",
        ErrorAction::Fail,
        ErrorKind::Local,
        "a key with imgsync's prefix holds data of another program",
        "give imgsync a server or a database (redis://host:6379/1) of its own",
    ),
];

pub(super) fn find_code(name: &str) -> Option<&'static ErrorCode> {
    ERROR_CODES.iter().find(|code| code.name == name)
}
