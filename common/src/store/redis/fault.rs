//! Errors of Redis: one table of its error codes, with what each means for the connection, the call and the user.
//!
//! Codes are read from single commands, scripts and pipelines alike: of a pipeline, the client's own `code()` and
//! `kind()` report only some codes and only its first failure.

use ::redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

use crate::error::{Class, Error};

/// Maximum characters of the server's message in an error.
const MAX_DETAIL_CHARS: usize = 300;

const CHECK_LOGIN: &str = "check user and password in the store's URL (redis://user:password@host:6379)";
const USE_ONE_SERVER: &str =
    "name one server or a replication group without cluster mode: imgsync's scripts use keys of several hash slots";
const SEE_REPLICATION: &str =
    "name the master (of a managed service: the primary endpoint); after a failover this ends by itself";

/// Reaction to an error, weakest first: the strongest decides if a pipeline has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// Retry on the same server.
    Wait,
    /// Retry on another connection, perhaps to another server.
    Reconnect,
    /// Give up: somebody has to change something first.
    Fail,
}

/// An error code of Redis.
#[derive(Debug)]
struct Code {
    name: &'static str,
    action: Action,
    class: Class,
    meaning: &'static str,
    hint: &'static str,
}

const fn code(name: &'static str, action: Action, class: Class, meaning: &'static str, hint: &'static str) -> Code {
    Code { name, action, class, meaning, hint }
}

/// All codes that a server returns to imgsync's commands.
static CODES: [Code; 18] = [
    code("READONLY", Action::Reconnect, Class::ServerError, "the server is a read-only replica", SEE_REPLICATION),
    code(
        "MASTERDOWN",
        Action::Reconnect,
        Class::ServerError,
        "the server is a replica that has lost its master",
        SEE_REPLICATION,
    ),
    code(
        "LOADING",
        Action::Reconnect,
        Class::ServerError,
        "the server is loading its data",
        "nothing is to be done; how long it takes depends on how much it has",
    ),
    code(
        "NOREPLICAS",
        Action::Wait,
        Class::ServerError,
        "the server refuses writes: too few replicas are connected",
        "start its replicas, or lower min-replicas-to-write",
    ),
    code(
        "MISCONF",
        Action::Wait,
        Class::ServerError,
        "the server refuses writes: it cannot write to its disk",
        "see the server's log and the room on its disk",
    ),
    code(
        "OOM",
        Action::Wait,
        Class::ServerError,
        "the server refuses writes: it is out of memory",
        "give it more (maxmemory), or let it forget caches (maxmemory-policy volatile-lru)",
    ),
    code(
        "BUSY",
        Action::Wait,
        Class::ServerError,
        "the server is busy with a script that does not end",
        "if it is not of imgsync: SCRIPT KILL",
    ),
    code(
        "TRYAGAIN",
        Action::Wait,
        Class::ServerError,
        "the server is moving these keys to another one",
        "wait until it is done, and then name a server without cluster mode",
    ),
    code(
        "NOSCRIPT",
        Action::Wait,
        Class::ServerError,
        "the server has forgotten a script",
        "nothing is to be done, unless somebody calls SCRIPT FLUSH again and again",
    ),
    code("NOAUTH", Action::Fail, Class::Denied, "the server wants a password", CHECK_LOGIN),
    code("WRONGPASS", Action::Fail, Class::Denied, "the server does not know this user and password", CHECK_LOGIN),
    code(
        "NOPERM",
        Action::Fail,
        Class::Denied,
        "the user may not do this",
        "the user needs all commands but administration, on keys that begin with `imgsync:` (docs/cluster.md has the rule)",
    ),
    code(
        "DENIED",
        Action::Fail,
        Class::Denied,
        "the server is in protected mode and takes no connections from other machines",
        "set a password or ACL users on the server",
    ),
    code(
        "CLUSTERDOWN",
        Action::Fail,
        Class::Local,
        "the server is of a Redis Cluster, and that is down",
        USE_ONE_SERVER,
    ),
    code("MOVED", Action::Fail, Class::Local, "the server is of a Redis Cluster", USE_ONE_SERVER),
    code("ASK", Action::Fail, Class::Local, "the server is of a Redis Cluster", USE_ONE_SERVER),
    code("CROSSSLOT", Action::Fail, Class::Local, "the server is of a Redis Cluster", USE_ONE_SERVER),
    code(
        "WRONGTYPE",
        Action::Fail,
        Class::Local,
        "a key of imgsync holds something that is not of imgsync",
        "give imgsync a server or a database (redis://host:6379/1) of its own",
    ),
];

/// Error of a call.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Error of the client or the server.
    Said(RedisError),
    /// The connected server is unsuitable, or not ready yet.
    Unfit { action: Action, detail: String, hint: &'static str },
}

impl Fault {
    /// Returns how to react.
    pub(super) fn action(&self) -> Action {
        match self {
            Fault::Unfit { action, .. } => *action,
            Fault::Said(error) => match strongest(error) {
                Some(code) => code.action,
                None if is_full(error) || is_of_connection(error) => Action::Reconnect,
                None => Action::Fail,
            },
        }
    }

    /// Returns whether the connection must not be used any more.
    pub(super) fn ends_connection(&self) -> bool {
        let is_garbled = matches!(self, Fault::Said(error) if error.kind() == ErrorKind::Parse);
        is_garbled || self.action() == Action::Reconnect
    }

    /// Turns a refused login into a transient error, because it worked before. Other errors stay as they are.
    pub(super) fn login_changed(self) -> Fault {
        match &self {
            Fault::Said(error) if strongest(error).is_some_and(|code| ["NOAUTH", "WRONGPASS"].contains(&code.name)) => {
                let detail = "the server does not know this user and password any more".to_owned();
                Fault::Unfit { action: Action::Reconnect, detail, hint: CHECK_LOGIN }
            }
            _ => self,
        }
    }

    /// Converts to the error of an operation.
    pub(super) fn explain(&self, tried: &str) -> Error {
        match self {
            Fault::Unfit { action, detail, hint } => {
                let class = if *action == Action::Fail { Class::Local } else { Class::ServerError };
                Error::new(class, tried, detail).hint(hint)
            }
            Fault::Said(error) => match strongest(error) {
                Some(code) => {
                    let detail = format!("{} ({}: {})", code.meaning, code.name, words_of(error, code.name));
                    Error::new(code.class, tried, detail).hint(code.hint)
                }
                None => explain(tried, error),
            },
        }
    }
}

/// Returns the table entry that decides: of a pipeline, the strongest of its failures.
fn strongest(error: &RedisError) -> Option<&'static Code> {
    let errors = error.clone().into_server_errors()?;
    errors.iter().filter_map(|(_, error)| find(code_of(error))).max_by_key(|code| code.action)
}

/// Returns the code of an error. A command refused within a script has none of its own.
fn code_of(error: &ServerError) -> &str {
    match error.details() {
        Some(details) if details.starts_with("The user executing the script can't") => "NOPERM",
        _ => error.code(),
    }
}

fn find(name: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.name == name)
}

/// Returns whether the server has reached its client limit. It reports that without an error code, and closes the
/// connection.
fn is_full(error: &RedisError) -> bool {
    words(error).contains("max number of clients")
}

/// Returns whether the connection failed, not the command.
fn is_of_connection(error: &RedisError) -> bool {
    let is_io = error.kind() == ErrorKind::Io || error.kind() == ErrorKind::ClusterConnectionNotFound;
    let is_lost = error.is_timeout() || error.is_connection_dropped() || error.is_connection_refusal();
    (is_io || is_lost) && !is_untrusted(error)
}

fn is_untrusted(error: &RedisError) -> bool {
    words(error).contains("invalid peer certificate")
}

/// Describes an error that has no entry in the table.
fn explain(tried: &str, error: &RedisError) -> Error {
    let text = words(error);
    match error.kind() {
        _ if is_full(error) => {
            Error::new(Class::ServerError, tried, "the server has as many clients as it takes (maxclients)")
                .hint("raise maxclients, or stop clients that are not needed")
        }
        _ if is_untrusted(error) => Error::new(Class::Insecure, tried, text)
            .hint("name the authority that signed the store's certificate by `cluster: {ca: FILE}`, and the store by the name that the certificate is for"),
        _ if is_of_connection(error) => Error::new(Class::Unreachable, tried, text)
            .hint("check that Redis or Valkey is running there, and whether a firewall is in between"),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            Error::new(Class::BadAnswer, tried, text).hint("is that a Redis server?")
        }
        ErrorKind::InvalidClientConfig => Error::new(Class::Invalid, tried, text),
        ErrorKind::Server(ServerErrorKind::ResponseError) if text.contains("unknown command") => {
            Error::new(Class::Local, tried, text).hint("imgsync needs Redis 7 or later, or Valkey")
        }
        _ => Error::new(Class::Local, tried, text),
    }
}

/// Returns the server's message for the first failure with a code. Leaves out the position in the script, so that one
/// fault of all calls is one kind of log line.
fn words_of(error: &RedisError, code: &str) -> String {
    let errors = error.clone().into_server_errors();
    let said = errors.iter().flat_map(|errors| errors.iter()).find(|(_, error)| code_of(error) == code);
    let said = said.and_then(|(_, error)| error.details()).unwrap_or_default();
    shorten(said.split_once(" script: ").map_or(said, |(said, _)| said))
}

/// Returns the error message without the data sent.
pub(super) fn words(error: &RedisError) -> String {
    match error.is_timeout() {
        true => "no answer in time".to_owned(),
        false => shorten(&error.to_string()),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use ::redis::Value;

    use super::*;

    /// Parses an error reply as the client does.
    fn answer(line: &str) -> Fault {
        match ::redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => Fault::Said(error.into()),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_code(line: &str, action: Action, class: Class, words: &str) {
        // A refused script adds its position to the same message.
        for line in [line.to_owned(), format!("{line} script: 2cb1, on @user_script:4.")] {
            let fault = answer(&line);
            assert_eq!(fault.action(), action, "{line}");
            assert_eq!(fault.ends_connection(), action == Action::Reconnect, "{line}");
            let error = fault.explain("finishing task 4");
            assert_eq!(error.class(), class, "{line}");
            assert!(error.to_string().starts_with("finishing task 4: "), "{error}");
            assert!(error.detail().contains(words) && !error.detail().contains("user_script"), "{error}");
            assert!(
                error.detail().contains(line.split_once(' ').unwrap().0),
                "the code is there to search for: {error}"
            );
            assert!(error.advice().is_some_and(|hint| hint.len() > 20), "{line} has no hint");
        }
    }

    #[track_caller]
    fn assert_says_no_right(fault: &Fault) {
        let error = fault.explain("starting");
        assert!(error.class() == Class::Denied && error.detail().contains("NOPERM: The user"), "{error}");
    }

    #[test]
    fn readonly_asks_for_another_connection() {
        let line = "READONLY You can't write against a read only replica.";
        assert_code(line, Action::Reconnect, Class::ServerError, "read-only replica");
    }

    #[test]
    fn masterdown_asks_for_another_connection() {
        let line = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
        assert_code(line, Action::Reconnect, Class::ServerError, "lost its master");
    }

    #[test]
    fn loading_asks_for_another_connection() {
        assert_code(
            "LOADING Redis is loading the dataset in memory",
            Action::Reconnect,
            Class::ServerError,
            "loading its data",
        );
    }

    #[test]
    fn noreplicas_is_waited_for() {
        let line = "NOREPLICAS Not enough good replicas to write.";
        assert_code(line, Action::Wait, Class::ServerError, "too few replicas");
    }

    #[test]
    fn misconf_is_waited_for() {
        let line = "MISCONF Errors writing to the AOF file: No space left on device";
        assert_code(line, Action::Wait, Class::ServerError, "No space left on device");
    }

    #[test]
    fn oom_is_waited_for() {
        let line = "OOM command not allowed when used memory > 'maxmemory'.";
        assert_code(line, Action::Wait, Class::ServerError, "out of memory");
    }

    #[test]
    fn busy_is_waited_for() {
        let line = "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";
        assert_code(line, Action::Wait, Class::ServerError, "a script that does not end");
    }

    #[test]
    fn noscript_is_repeated() {
        let line = "NOSCRIPT No matching script. Please use EVAL.";
        assert_code(line, Action::Wait, Class::ServerError, "forgotten a script");
    }

    #[test]
    fn tryagain_is_waited_for() {
        let line = "TRYAGAIN Multiple keys request during rehashing of slot";
        assert_code(line, Action::Wait, Class::ServerError, "moving these keys");
    }

    #[test]
    fn noauth_fails() {
        assert_code("NOAUTH Authentication required.", Action::Fail, Class::Denied, "wants a password");
    }

    #[test]
    fn wrongpass_fails() {
        let line = "WRONGPASS invalid username-password pair or user is disabled.";
        assert_code(line, Action::Fail, Class::Denied, "does not know this user");
        let changed = answer(line).login_changed();
        assert_eq!(changed.action(), Action::Reconnect);
        let error = changed.explain("reading");
        assert!(error.class() == Class::ServerError && error.detail().contains("any more"), "{error}");
    }

    #[test]
    fn noperm_fails_and_names_the_command() {
        let line = "NOPERM User imgsync has no permissions to run the 'evalsha' command";
        assert_code(line, Action::Fail, Class::Denied, "'evalsha'");
        assert_eq!(answer(line).login_changed().action(), Action::Fail);
        let within = answer("ERR The user executing the script can't run this command or subcommand script: 4d07");
        assert_says_no_right(&within);
        assert_says_no_right(&answer("ERR The user executing the script can't access at least one of the keys"));
    }

    #[test]
    fn denied_fails() {
        let line = "DENIED Redis is running in protected mode because protected mode is enabled";
        assert_code(line, Action::Fail, Class::Denied, "protected mode");
    }

    #[test]
    fn clusterdown_fails() {
        assert_code("CLUSTERDOWN Hash slot not served", Action::Fail, Class::Local, "Redis Cluster");
    }

    #[test]
    fn moved_and_ask_fail() {
        assert_code("MOVED 3999 10.0.0.1:6381", Action::Fail, Class::Local, "Redis Cluster");
        assert_code("ASK 3999 10.0.0.1:6381", Action::Fail, Class::Local, "Redis Cluster");
    }

    #[test]
    fn crossslot_fails() {
        let line = "CROSSSLOT Keys in request don't hash to the same slot";
        assert_code(line, Action::Fail, Class::Local, "Redis Cluster");
    }

    #[test]
    fn wrongtype_fails() {
        let line = "WRONGTYPE Operation against a key holding the wrong kind of value";
        assert_code(line, Action::Fail, Class::Local, "not of imgsync");
    }

    #[test]
    fn a_server_that_is_full_is_asked_again_on_another_connection() {
        let full = answer("ERR max number of clients reached");
        assert!(full.ends_connection());
        let error = full.explain("connecting");
        assert_eq!(error.class(), Class::ServerError);
        assert!(error.advice().unwrap().contains("maxclients"));
    }

    #[test]
    fn a_connection_that_was_lost_or_does_not_answer_is_replaced() {
        for kind in [
            io::ErrorKind::TimedOut,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::HostUnreachable,
        ] {
            let fault = Fault::Said(RedisError::from(io::Error::from(kind)));
            assert!(fault.ends_connection(), "{kind}");
            assert_eq!(fault.explain("reading").class(), Class::Unreachable, "{kind}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_not_asked_again() {
        let error = io::Error::other("invalid peer certificate: UnknownIssuer");
        let fault = Fault::Said(RedisError::from(error));
        assert_eq!(fault.action(), Action::Fail);
        assert_eq!(fault.explain("connecting").class(), Class::Insecure);
    }

    #[test]
    fn other_answers_fail_with_the_words_of_the_server() {
        let fault = answer("ERR unknown command 'EVALSHA', with args beginning with:");
        assert_eq!(fault.action(), Action::Fail);
        let error = fault.explain("starting");
        assert!(error.detail().contains("EVALSHA") && error.advice().unwrap().contains("Redis 7"), "{error}");
        assert_eq!(answer("ERR something else").explain("starting").class(), Class::Local);
    }

    #[test]
    fn the_table_has_each_code_once() {
        let mut names: Vec<&str> = CODES.iter().map(|code| code.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CODES.len());
    }
}
