//! Nodes of the broker, in the order in which a connection tries them.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::uri::AMQPUri;
use rand::Rng as _;

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::is_transient;
use imgsync_oci::secret_url::SecretUrl;

/// Time limit for resolving the name of a node.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of addresses of a name that count as nodes.
const MAX_ADDRESSES: usize = 16;
/// Maximum number of nodes in the message of an error.
const MAX_LISTED_NODES: usize = 8;
/// Example of a broker's URL.
pub(super) const EXAMPLE_URL: &str = "amqp://user:password@host:5672/vhost";

/// The nodes that a connection may use. Each address of a name is a node. The order is random, so that the clients of
/// a cluster spread over its nodes, and stays the same for as long as the connection is used.
pub(super) struct BrokerNodes {
    urls: Vec<NodeUrl>,
    /// Determines the order.
    seed: u64,
}

/// A URL of the configuration.
struct NodeUrl {
    uri: AMQPUri,
    /// The host, without the brackets of an IPv6 address.
    host: String,
}

/// A node at one of its addresses.
#[derive(Clone)]
pub(super) struct BrokerNode {
    /// URL, with user and password.
    pub(super) uri: AMQPUri,
    /// The address, or why the name could not be resolved.
    pub(super) address: std::result::Result<SocketAddr, String>,
    /// Host and port, and the address if the host is a name.
    pub(super) name: String,
    /// Position in the order.
    pub(super) rank: u64,
}

impl BrokerNodes {
    /// Parses the URLs, of which there is at least one.
    pub(super) fn new(urls: &[SecretUrl]) -> Result<BrokerNodes> {
        let parse = |url: &SecretUrl| {
            // The parser's own message may contain the password.
            let uri: std::result::Result<AMQPUri, _> = url.expose().as_str().parse();
            let operation = format!("connecting to the broker {url}");
            let mut uri = uri.map_err(|_| {
                Error::new(ErrorKind::Invalid, operation, "this is not a broker URL").with_hint(EXAMPLE_URL)
            })?;
            // The parser takes an IPv6 address for `localhost`.
            let host = url.expose().host_str().unwrap_or(&uri.authority.host);
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            uri.authority.host.clone_from(&host);
            Ok(NodeUrl { uri, host })
        };
        let urls = urls.iter().map(parse).collect::<Result<_>>()?;
        Ok(BrokerNodes { urls, seed: rand::rng().random() })
    }

    /// Resolves the names, and returns all nodes in the order of a round: those after the last one used come first,
    /// and that one comes last.
    pub(super) async fn resolve(&self, last_rank: Option<u64>) -> Vec<BrokerNode> {
        let mut nodes: Vec<BrokerNode> = join_all(self.urls.iter().map(|url| self.addresses(url))).await.concat();
        nodes.sort_by_key(|node| node.rank);
        if let Some(last) = last_rank {
            let first = nodes.partition_point(|node| node.rank <= last);
            nodes.rotate_left(first);
        }
        nodes
    }

    /// Resolves the name of a URL.
    async fn addresses(&self, url: &NodeUrl) -> Vec<BrokerNode> {
        let (host, port) = (url.host.as_str(), url.uri.authority.port);
        let label = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let node = |address: std::result::Result<SocketAddr, String>| {
            let name = match &address {
                Ok(address) if host != address.ip().to_string() => format!("{label} ({})", address.ip()),
                _ => label.clone(),
            };
            BrokerNode { uri: url.uri.clone(), rank: self.rank(&(&label, &address)), address, name }
        };
        let found = match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(found)) => found.collect::<Vec<_>>(),
            Ok(Err(error)) => return vec![node(Err(format!("the name cannot be resolved: {error}")))],
            Err(_) => return vec![node(Err("the name cannot be resolved: timed out".to_owned()))],
        };
        let mut nodes: Vec<BrokerNode> = found.into_iter().map(|address| node(Ok(address))).collect();
        nodes.sort_by_key(|node| node.rank);
        nodes.dedup_by_key(|node| node.rank);
        nodes.truncate(MAX_ADDRESSES);
        match nodes.is_empty() {
            true => vec![node(Err("the name has no address".to_owned()))],
            false => nodes,
        }
    }

    fn rank(&self, node: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, node).hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Debug for BrokerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which has the password.
        f.debug_struct("BrokerNode").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for BrokerNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrokerNodes")
    }
}

/// A round in which no node accepted a connection.
pub(super) struct FailedRound {
    kind: ErrorKind,
    operation: String,
    message: String,
    hint: Option<String>,
}

impl FailedRound {
    /// Combines the errors of the nodes, which are given with their names.
    pub(super) fn new(mut failures: Vec<(String, Error)>) -> FailedRound {
        const OPERATION: &str = "connecting to the broker";
        // A permanent error needs a person, so it counts more than a node that is gone for now.
        failures.sort_by_key(|(_, error)| is_transient(error));
        let (operation, message) = match &failures[..] {
            [(node, error)] => (format!("{OPERATION} {node}"), error.message().to_owned()),
            _ => {
                let listed = failures.iter().take(MAX_LISTED_NODES);
                let mut parts: Vec<String> =
                    listed.map(|(node, error)| format!("{node}: {}", error.message())).collect();
                let more = failures.len().saturating_sub(MAX_LISTED_NODES);
                parts.extend((more > 0).then(|| format!("and {more} more")));
                (OPERATION.to_owned(), parts.join("; "))
            }
        };
        let kind = failures.first().map_or(ErrorKind::Unreachable, |(_, error)| error.kind());
        let hint = failures.iter().find_map(|(_, error)| error.hint()).map(str::to_owned);
        FailedRound { kind, operation, message, hint }
    }

    /// Returns the error for a call.
    pub(super) fn to_error(&self) -> Error {
        let error = Error::new(self.kind, &self.operation, &self.message);
        self.hint.iter().fold(error, |error, hint| error.with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn nodes(urls: &[&str]) -> BrokerNodes {
        let parse = |url: &&str| SecretUrl::parse(url, &["amqp", "amqps"]).unwrap();
        BrokerNodes::new(&urls.iter().map(parse).collect::<Vec<_>>()).unwrap()
    }

    fn names(round: &[BrokerNode]) -> Vec<&str> {
        round.iter().map(|node| node.name.as_str()).collect()
    }

    #[tokio::test]
    async fn a_round_begins_after_the_node_that_was_used_last_and_ends_with_it() {
        const URLS: [&str; 3] = ["amqp://u:pw@127.0.0.1:1", "amqp://u:pw@127.0.0.2", "amqps://u:pw@[::1]"];
        let nodes = nodes(&URLS);
        let first = nodes.resolve(None).await;
        let all = BTreeSet::from_iter(names(&first));
        assert_eq!(all, BTreeSet::from(["127.0.0.1:1", "127.0.0.2:5672", "[::1]:5671"]));
        let again = nodes.resolve(None).await;
        assert_eq!(names(&first), names(&again), "the order stays");
        let second = nodes.resolve(Some(first[0].rank)).await;
        assert_eq!(names(&second), [&names(&first)[1..], &names(&first)[..1]].concat());
        let third = nodes.resolve(Some(first[2].rank)).await;
        assert_eq!(names(&third), names(&first));
    }

    #[tokio::test]
    async fn processes_begin_with_different_nodes() {
        let mut begins = BTreeSet::new();
        for _ in 0..200 {
            let round = nodes(&["amqp://127.0.0.1", "amqp://127.0.0.2", "amqp://127.0.0.3"]).resolve(None).await;
            begins.insert(round[0].name.clone());
        }
        assert_eq!(begins.len(), 3);
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_a_node_and_a_name_without_one_hides_no_other() {
        let round = nodes(&["amqp://localhost:7", "amqp://nowhere.invalid", "amqp://127.0.0.9"]).resolve(None).await;
        let local: Vec<&str> = names(&round).into_iter().filter(|name| name.starts_with("localhost:7 (")).collect();
        assert!(local.contains(&"localhost:7 (127.0.0.1)"), "{round:?}");
        assert!(names(&round).contains(&"127.0.0.9:5672"));
        let lost = round.iter().find(|node| node.name == "nowhere.invalid:5672").unwrap();
        assert!(lost.address.as_ref().unwrap_err().starts_with("the name cannot be resolved: "), "{lost:?}");
    }

    #[test]
    fn the_error_of_a_round_names_each_node_and_the_permanent_one_decides() {
        let gone =
            |node: &str| (node.to_owned(), Error::new(ErrorKind::Unreachable, "x", "refused").with_hint("start"));
        let denied = ("c:5672".to_owned(), Error::new(ErrorKind::Denied, "x", "no access").with_hint("check"));
        let error = FailedRound::new(vec![gone("a:5672")]).to_error();
        assert_eq!((error.operation(), error.message()), ("connecting to the broker a:5672", "refused"));
        assert_eq!(error.hint(), Some("start"));
        let error = FailedRound::new(vec![gone("a:5672"), gone("b:5672"), denied]).to_error();
        assert_eq!(error.message(), "c:5672: no access; a:5672: refused; b:5672: refused");
        assert_eq!((error.kind(), error.hint()), (ErrorKind::Denied, Some("check")));
        let error = FailedRound::new((0..12).map(|n| gone(&format!("n{n}:1"))).collect()).to_error();
        assert!(error.message().ends_with("n7:1: refused; and 4 more"), "{error}");
    }
}
