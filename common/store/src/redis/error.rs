//! Errors of calls to Redis, and what to do about them.
//!
//! Codes are read from single commands, scripts and pipelines alike: of a pipeline, the client's own `error_code()` and
//! `kind()` report only some codes and only its first failure.

use ::redis::{ErrorKind as RedisErrorKind, RedisError, ServerError, ServerErrorKind};

use super::error_codes::{CHECK_LOGIN, ErrorAction, ErrorCode, find_code};
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_tls::with_dates;

/// Maximum characters of the server's message in an error.
const MAX_DETAIL_CHARS: usize = 300;

const MASTER_LOGIN_HINT: &str = "check user and password in the store's URL: they are those of the servers; those of \
                                 Sentinels are `sentinel_username` and `sentinel_password`";
const MASTER_ADDRESS_HINT: &str = "the Sentinels name this server: check that it is running or being replaced, and that \
                                   this machine can reach the address that it announces (replica-announce-ip)";
pub(super) const CERTIFICATE_HINT: &str = "name the authority that signed the store's certificate by `cluster: {ca: \
                                           FILE}`, and the store by the name that the certificate is for";

/// Error of a call.
#[derive(Debug, Clone)]
pub(super) enum RedisCallError {
    /// Error of the client or the server.
    Redis(RedisError),
    /// The connected server is unsuitable, or not ready yet. The hint may be empty.
    UnsuitableServer { action: ErrorAction, kind: ErrorKind, detail: String, hint: &'static str },
    /// Error of a server that the Sentinels have named, or of one of the Sentinels.
    At { server: String, side: ServerSide, error: Box<RedisCallError> },
    /// Another server has become the master while the call was waiting for its reply.
    MasterReplaced,
}

/// Side of a store with Sentinels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerSide {
    Sentinel,
    Master,
}

impl RedisCallError {
    /// Returns the error of a call without a reply.
    pub(super) fn timed_out() -> RedisCallError {
        RedisCallError::Redis(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
    }

    /// Names the Sentinel where it happened.
    pub(super) fn at_sentinel(self, node: &str) -> RedisCallError {
        RedisCallError::At { server: node.to_owned(), side: ServerSide::Sentinel, error: Box::new(self) }
    }

    /// Names the server where it happened, which the Sentinels have named.
    pub(super) fn at_master(self, server: &str) -> RedisCallError {
        RedisCallError::At { server: server.to_owned(), side: ServerSide::Master, error: Box::new(self) }
    }

    /// Sets what to do, if the error has no hint.
    pub(super) fn with_hint(self, new_hint: &'static str) -> RedisCallError {
        match self {
            RedisCallError::UnsuitableServer { action, kind, detail, hint: "" } => {
                RedisCallError::UnsuitableServer { action, kind, detail, hint: new_hint }
            }
            other => other,
        }
    }

    /// Returns the hint of an unsuitable server, or nothing.
    pub(super) fn own_hint(&self) -> &'static str {
        match self {
            RedisCallError::UnsuitableServer { hint, .. } => hint,
            RedisCallError::At { error, .. } => error.own_hint(),
            RedisCallError::Redis(error) => most_severe_code(error).map_or("", |code| code.hint),
            RedisCallError::MasterReplaced => "",
        }
    }

    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, RedisCallError::Redis(error) if error.is_timeout())
    }

    /// Returns whether the Sentinels should be asked whether this is still the master, although it answers.
    pub(super) fn doubts_master(&self) -> bool {
        matches!(self, RedisCallError::Redis(error) if most_severe_code(error).is_some_and(|code| code.name == "NOREPLICAS"))
    }

    /// Returns how to react.
    pub(super) fn action(&self) -> ErrorAction {
        match self {
            RedisCallError::At { error, .. } => error.action(),
            RedisCallError::MasterReplaced => ErrorAction::Reconnect,
            RedisCallError::UnsuitableServer { action, .. } => *action,
            RedisCallError::Redis(error) => match most_severe_code(error) {
                Some(code) => code.action,
                None if has_too_many_clients(error) || is_connection_error(error) => ErrorAction::Reconnect,
                None => ErrorAction::Fail,
            },
        }
    }

    /// Returns whether the connection must not be used any more.
    pub(super) fn ends_connection(&self) -> bool {
        let is_garbled = matches!(self, RedisCallError::Redis(error) if error.kind() == RedisErrorKind::Parse);
        is_garbled || self.action() == ErrorAction::Reconnect
    }

    /// Turns a refused login into a transient error, because it worked before. Other errors stay as they are.
    pub(super) fn into_changed_login(self) -> RedisCallError {
        match &self {
            RedisCallError::At { server, side, error } => {
                let error = Box::new(error.clone().into_changed_login());
                RedisCallError::At { server: server.clone(), side: *side, error }
            }
            RedisCallError::Redis(_) if self.is_login_refused() => {
                let detail = "the server does not know this user and password any more".to_owned();
                let (action, kind) = (ErrorAction::Reconnect, ErrorKind::ServerError);
                RedisCallError::UnsuitableServer { action, kind, detail, hint: CHECK_LOGIN }
            }
            _ => self,
        }
    }

    /// Turns an error of a server that is set up wrongly into a transient one: others may still be up, or come back.
    pub(super) fn into_outage(self) -> RedisCallError {
        match self {
            RedisCallError::At { server, side, error } => {
                RedisCallError::At { server, side, error: Box::new(error.into_outage()) }
            }
            RedisCallError::UnsuitableServer { action: ErrorAction::Fail, detail, hint, .. } => {
                let (action, kind) = (ErrorAction::Reconnect, ErrorKind::ServerError);
                RedisCallError::UnsuitableServer { action, kind, detail, hint }
            }
            other => other,
        }
    }

    /// Returns whether the server refused user and password, or lacks them.
    pub(super) fn is_login_refused(&self) -> bool {
        match self {
            RedisCallError::At { error, .. } => error.is_login_refused(),
            RedisCallError::Redis(error) => {
                most_severe_code(error).is_some_and(|code| ["NOAUTH", "WRONGPASS"].contains(&code.name))
            }
            RedisCallError::UnsuitableServer { .. } | RedisCallError::MasterReplaced => false,
        }
    }

    /// Converts to the error of an operation.
    pub(super) fn to_error(&self, operation: &str) -> Error {
        match self {
            RedisCallError::UnsuitableServer { kind, detail, hint, .. } => match hint.is_empty() {
                true => Error::new(*kind, operation, detail),
                false => Error::new(*kind, operation, detail).with_hint(*hint),
            },
            RedisCallError::At { server, side, error } => {
                let inner = error.to_error(operation);
                let name = match side {
                    ServerSide::Sentinel => "the Sentinel",
                    ServerSide::Master => "the master",
                };
                let error = Error::new(inner.kind(), operation, format!("{name} {server}: {}", inner.message()));
                match (side, inner.kind(), inner.hint()) {
                    (ServerSide::Master, ErrorKind::Denied, Some(CHECK_LOGIN)) => error.with_hint(MASTER_LOGIN_HINT),
                    (ServerSide::Master, ErrorKind::Unreachable, _) => error.with_hint(MASTER_ADDRESS_HINT),
                    (_, _, Some(hint)) => error.with_hint(hint),
                    (_, _, None) => error,
                }
            }
            RedisCallError::MasterReplaced => {
                Error::new(ErrorKind::ServerError, operation, "another server is becoming the master")
                    .with_hint("no action needed: imgsync waits for the new master")
            }
            RedisCallError::Redis(error) => match most_severe_code(error) {
                Some(code) => {
                    let detail = format!("{} ({}: {})", code.meaning, code.name, server_message(error, code.name));
                    Error::new(code.kind, operation, detail).with_hint(code.hint)
                }
                None => describe(operation, error),
            },
        }
    }
}

/// Returns the table entry that decides: of a pipeline, the strongest of its failures.
fn most_severe_code(error: &RedisError) -> Option<&'static ErrorCode> {
    let errors = error.clone().into_server_errors()?;
    errors.iter().filter_map(|(_, error)| find_code(code_name(error))).max_by_key(|code| code.action)
}

/// Returns the code of an error. A command refused within a script has none of its own.
fn code_name(error: &ServerError) -> &str {
    match error.details() {
        Some(details) if details.starts_with("The user executing the script can't") => "NOPERM",
        _ => error.code(),
    }
}

/// Returns whether the server has reached its client limit. It reports that without an error code, and closes the
/// connection.
fn has_too_many_clients(error: &RedisError) -> bool {
    message(error).contains("max number of clients")
}

/// Returns whether the connection failed, not the command.
fn is_connection_error(error: &RedisError) -> bool {
    let is_io = error.kind() == RedisErrorKind::Io || error.kind() == RedisErrorKind::ClusterConnectionNotFound;
    let is_lost = error.is_timeout() || error.is_connection_dropped() || error.is_connection_refusal();
    (is_io || is_lost) && !is_untrusted_certificate(error)
}

fn is_untrusted_certificate(error: &RedisError) -> bool {
    message(error).contains("invalid peer certificate")
}

/// Describes an error that has no entry in the table.
fn describe(operation: &str, error: &RedisError) -> Error {
    let text = message(error);
    match error.kind() {
        _ if has_too_many_clients(error) => {
            Error::new(ErrorKind::ServerError, operation, "the server has reached its client limit (maxclients)")
                .with_hint("raise maxclients, or stop clients that are not needed")
        }
        _ if is_untrusted_certificate(error) => {
            Error::new(ErrorKind::Insecure, operation, text).with_hint(CERTIFICATE_HINT)
        }
        _ if is_connection_error(error) => Error::new(ErrorKind::Unreachable, operation, text)
            .with_hint("check that Redis or Valkey is running there, and whether a firewall is in between"),
        RedisErrorKind::Parse | RedisErrorKind::UnexpectedReturnType => {
            Error::new(ErrorKind::InvalidResponse, operation, text).with_hint("is that a Redis server?")
        }
        RedisErrorKind::InvalidClientConfig => Error::new(ErrorKind::Invalid, operation, text),
        RedisErrorKind::Server(ServerErrorKind::ResponseError) if text.contains("unknown command") => {
            Error::new(ErrorKind::Local, operation, text).with_hint("imgsync needs Redis 7 or later, or Valkey")
        }
        _ => Error::new(ErrorKind::Local, operation, text),
    }
}

/// Returns the server's message for the first failure with a code. Leaves out the position in the script, so that one
/// fault of all calls is one kind of log line.
fn server_message(error: &RedisError, code: &str) -> String {
    let errors = error.clone().into_server_errors();
    let text = errors.iter().flat_map(|errors| errors.iter()).find(|(_, error)| code_name(error) == code);
    let text = text.and_then(|(_, error)| error.details()).unwrap_or_default();
    truncate(text.split_once(" script: ").map_or(text, |(text, _)| text))
}

/// Returns the error message without the data sent.
pub(super) fn message(error: &RedisError) -> String {
    match error.is_timeout() {
        true => "timed out".to_owned(),
        false => truncate(&with_dates(&error.to_string())),
    }
}

fn truncate(text: &str) -> String {
    text.chars().take(MAX_DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use ::redis::Value;

    use super::super::error_codes::ERROR_CODES;
    use super::*;

    /// Parses an error reply as the client does.
    fn parse_answer(line: &str) -> RedisCallError {
        match ::redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => RedisCallError::Redis(error.into()),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_code(line: &str, action: ErrorAction, kind: ErrorKind, words: &str) {
        // A refused script adds its position to the same message.
        for line in [line.to_owned(), format!("{line} script: 2cb1, on @user_script:4.")] {
            let call_error = parse_answer(&line);
            assert_eq!(call_error.action(), action, "{line}");
            assert_eq!(call_error.ends_connection(), action == ErrorAction::Reconnect, "{line}");
            let error = call_error.to_error("finishing task 4");
            assert_eq!(error.kind(), kind, "{line}");
            assert!(error.to_string().starts_with("finishing task 4: "), "{error}");
            assert!(error.message().contains(words) && !error.message().contains("user_script"), "{error}");
            assert!(
                error.message().contains(line.split_once(' ').unwrap().0),
                "the code is there to search for: {error}"
            );
            assert!(error.hint().is_some_and(|hint| hint.len() > 20), "{line} has no hint");
        }
    }

    #[track_caller]
    fn assert_permission_denied(call_error: &RedisCallError) {
        let error = call_error.to_error("starting");
        assert!(error.kind() == ErrorKind::Denied && error.message().contains("NOPERM: The user"), "{error}");
    }

    #[test]
    fn readonly_asks_for_another_connection() {
        let line = "READONLY You can't write against a read only replica.";
        assert_code(line, ErrorAction::Reconnect, ErrorKind::ServerError, "read-only replica");
    }

    #[test]
    fn masterdown_asks_for_another_connection() {
        let line = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
        assert_code(line, ErrorAction::Reconnect, ErrorKind::ServerError, "lost its master");
    }

    #[test]
    fn loading_asks_for_another_connection() {
        assert_code(
            "LOADING Redis is loading the dataset in memory",
            ErrorAction::Reconnect,
            ErrorKind::ServerError,
            "loading its data",
        );
    }

    #[test]
    fn noreplicas_is_waited_for() {
        let line = "NOREPLICAS Not enough good replicas to write.";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "too few replicas");
    }

    #[test]
    fn misconf_is_waited_for() {
        let line = "MISCONF Errors writing to the AOF file: No space left on device";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "No space left on device");
    }

    #[test]
    fn oom_is_waited_for() {
        let line = "OOM command not allowed when used memory > 'maxmemory'.";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "out of memory");
    }

    #[test]
    fn busy_is_waited_for() {
        let line = "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "a script that does not end");
    }

    #[test]
    fn noscript_is_repeated() {
        let line = "NOSCRIPT No matching script. Please use EVAL.";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "lost a script");
    }

    #[test]
    fn tryagain_is_waited_for() {
        let line = "TRYAGAIN Multiple keys request during rehashing of slot";
        assert_code(line, ErrorAction::Wait, ErrorKind::ServerError, "moving these keys");
    }

    #[test]
    fn noauth_fails() {
        assert_code("NOAUTH Authentication required.", ErrorAction::Fail, ErrorKind::Denied, "requires a password");
    }

    #[test]
    fn wrongpass_fails() {
        let line = "WRONGPASS invalid username-password pair or user is disabled.";
        assert_code(line, ErrorAction::Fail, ErrorKind::Denied, "does not know this user");
        let changed = parse_answer(line).into_changed_login();
        assert_eq!(changed.action(), ErrorAction::Reconnect);
        let error = changed.to_error("reading");
        assert!(error.kind() == ErrorKind::ServerError && error.message().contains("any more"), "{error}");
    }

    #[test]
    fn noperm_fails_and_names_the_command() {
        let line = "NOPERM User imgsync has no permissions to run the 'evalsha' command";
        assert_code(line, ErrorAction::Fail, ErrorKind::Denied, "'evalsha'");
        assert_eq!(parse_answer(line).into_changed_login().action(), ErrorAction::Fail);
        let within =
            parse_answer("ERR The user executing the script can't run this command or subcommand script: 4d07");
        assert_permission_denied(&within);
        assert_permission_denied(&parse_answer(
            "ERR The user executing the script can't access at least one of the keys",
        ));
    }

    #[test]
    fn denied_fails() {
        let line = "DENIED Redis is running in protected mode because protected mode is enabled";
        assert_code(line, ErrorAction::Fail, ErrorKind::Denied, "protected mode");
    }

    #[test]
    fn clusterdown_fails() {
        assert_code("CLUSTERDOWN Hash slot not served", ErrorAction::Fail, ErrorKind::Local, "Redis Cluster");
    }

    #[test]
    fn moved_and_ask_fail() {
        assert_code("MOVED 3999 10.0.0.1:6381", ErrorAction::Fail, ErrorKind::Local, "Redis Cluster");
        assert_code("ASK 3999 10.0.0.1:6381", ErrorAction::Fail, ErrorKind::Local, "Redis Cluster");
    }

    #[test]
    fn crossslot_fails() {
        let line = "CROSSSLOT Keys in request don't hash to the same slot";
        assert_code(line, ErrorAction::Fail, ErrorKind::Local, "Redis Cluster");
    }

    #[test]
    fn wrongtype_fails() {
        let line = "WRONGTYPE Operation against a key holding the wrong kind of value";
        assert_code(line, ErrorAction::Fail, ErrorKind::Local, "data of another program");
    }

    #[test]
    fn too_many_clients_asks_for_another_connection() {
        let full = parse_answer("ERR max number of clients reached");
        assert!(full.ends_connection());
        let error = full.to_error("connecting");
        assert_eq!(error.kind(), ErrorKind::ServerError);
        assert!(error.hint().unwrap().contains("maxclients"));
    }

    #[test]
    fn a_lost_or_timed_out_connection_is_replaced() {
        for kind in [
            io::ErrorKind::TimedOut,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::HostUnreachable,
        ] {
            let call_error = RedisCallError::Redis(RedisError::from(io::Error::from(kind)));
            assert!(call_error.ends_connection(), "{kind}");
            assert_eq!(call_error.to_error("reading").kind(), ErrorKind::Unreachable, "{kind}");
        }
    }

    #[test]
    fn an_untrusted_certificate_is_a_permanent_error() {
        let error = io::Error::other("invalid peer certificate: UnknownIssuer");
        let call_error = RedisCallError::Redis(RedisError::from(error));
        assert_eq!(call_error.action(), ErrorAction::Fail);
        assert_eq!(call_error.to_error("connecting").kind(), ErrorKind::Insecure);
        let expired = "invalid peer certificate: certificate expired: verification time 1795968000 (UNIX), but \
                       certificate is not valid after 1735689600 (60278400 seconds ago)";
        let error = RedisCallError::Redis(RedisError::from(io::Error::other(expired))).to_error("connecting");
        assert!(error.message().ends_with("is not valid after 2025-01-01 00:00 UTC"), "{error}");
    }

    #[test]
    fn other_errors_fail_with_the_servers_message() {
        let call_error = parse_answer("ERR unknown command 'EVALSHA', with args beginning with:");
        assert_eq!(call_error.action(), ErrorAction::Fail);
        let error = call_error.to_error("starting");
        assert!(error.message().contains("EVALSHA") && error.hint().unwrap().contains("Redis 7"), "{error}");
        assert_eq!(parse_answer("ERR something else").to_error("starting").kind(), ErrorKind::Local);
    }

    #[test]
    fn the_table_has_each_code_once() {
        let mut names: Vec<&str> = ERROR_CODES.iter().map(|code| code.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ERROR_CODES.len());
    }
}
