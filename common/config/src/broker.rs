//! URLs of the broker: of one server, or of the nodes of a cluster.

use imgsync_oci::secret_url::SecretUrl;
use percent_encoding::percent_decode_str;

use super::reader::ValueReader;
use super::yaml::YamlNode;

/// URL schemes of a broker.
pub const BROKER_SCHEMES: [&str; 2] = ["amqp", "amqps"];
/// Ports of AMQP without and with TLS.
const DEFAULT_PORTS: [(&str, u16); 2] = [("amqp", 5672), ("amqps", 5671)];

/// Why several URLs do not belong to one broker. It quotes nothing of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrlsError {
    /// Position of the URL in the list.
    pub position: usize,
    /// What is wrong with it.
    pub message: &'static str,
    /// What to do.
    pub hint: &'static str,
}

/// Splits the value of an option or a variable into URLs, which commas separate. A comma that no URL follows belongs to
/// the URL before it: passwords may contain commas.
pub fn split_broker_urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let mut start = 0;
    for (comma, _) in text.match_indices(',') {
        let rest = text[comma + 1..].trim_start();
        let begins_url = |scheme: &&str| rest.strip_prefix(*scheme).is_some_and(|rest| rest.starts_with("://"));
        if BROKER_SCHEMES.iter().any(begins_url) {
            urls.push(text[start..comma].trim());
            start = comma + 1;
        }
    }
    urls.push(text[start..].trim());
    urls
}

/// Checks that the URLs name different nodes of one broker.
///
/// # Errors
/// If a node is named twice, if virtual hosts differ, or if a host contains a comma.
pub fn check_broker_urls(urls: &[SecretUrl]) -> Result<(), BrokerUrlsError> {
    let refuse = |position, message, hint| Err(BrokerUrlsError { position, message, hint });
    for (position, url) in urls.iter().enumerate() {
        if url.expose().host_str().is_some_and(|host| host.contains(',')) {
            return refuse(
                position,
                "there is a comma in the host of this URL",
                "write a URL for each node: [amqp://a, amqp://b] in the configuration, else amqp://a,amqp://b",
            );
        }
        if urls[..position].iter().any(|other| node(other) == node(url)) {
            return refuse(
                position,
                "this node is named twice: an earlier URL has the same host and port",
                "remove one",
            );
        }
        if virtual_host(url) != virtual_host(&urls[0]) {
            return refuse(
                position,
                "the virtual host differs from that of the first URL",
                "imgsync uses one virtual host of a cluster: end each URL with the same path, such as /imgsync",
            );
        }
    }
    Ok(())
}

/// Returns host and port.
fn node(url: &SecretUrl) -> (String, Option<u16>) {
    let url = url.expose();
    let default = DEFAULT_PORTS.iter().find(|(scheme, _)| *scheme == url.scheme()).map(|(_, port)| *port);
    (url.host_str().unwrap_or_default().to_ascii_lowercase(), url.port().or(default))
}

/// Returns the virtual host: percent-decoded, and `/` if there is no path.
fn virtual_host(url: &SecretUrl) -> Vec<u8> {
    match url.expose().path().strip_prefix('/') {
        None => b"/".to_vec(),
        Some(path) => percent_decode_str(path).collect(),
    }
}

/// Reads `cluster.broker`: an address, or a list of them.
pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> Vec<SecretUrl> {
    let nodes = reader.one_or_many(node);
    let urls: Vec<SecretUrl> = nodes.iter().filter_map(|node| reader.address(node, &BROKER_SCHEMES, true)).collect();
    // Positions are those of the file only if each is a URL; what is not was reported.
    if urls.len() == nodes.len()
        && let Err(error) = check_broker_urls(&urls)
    {
        reader.report_with_hint(&nodes[error.position].at, error.message, error.hint);
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_separated_by_commas_and_a_password_may_contain_one() {
        for (text, wanted) in [
            ("amqp://a", vec!["amqp://a"]),
            ("amqp://a,amqps://b, amqp://c", vec!["amqp://a", "amqps://b", "amqp://c"]),
            ("amqp://u:p,q@a,amqp://u:p,amqp@b", vec!["amqp://u:p,q@a", "amqp://u:p,amqp@b"]),
            // Nothing is left out silently: these are refused as URLs.
            ("amqp://a,b", vec!["amqp://a,b"]),
            ("amqp://a,", vec!["amqp://a,"]),
            (",amqp://a", vec!["", "amqp://a"]),
        ] {
            assert_eq!(split_broker_urls(text), wanted, "{text}");
        }
    }

    #[test]
    fn several_urls_name_different_nodes_of_one_broker() {
        let check = |urls: &[&str]| {
            let urls: Vec<SecretUrl> = urls.iter().map(|url| SecretUrl::parse(url, &BROKER_SCHEMES).unwrap()).collect();
            check_broker_urls(&urls).map_err(|error| (error.position, error.message.split(':').next().unwrap()))
        };
        for fine in [
            &["amqp://a"][..],
            &["amqp://a/%2f", "amqp://b", "amqp://a:5673"],
            &["amqp://a/v", "amqps://b/v", "amqps://a/v"],
            &["amqp://u:x@[::1]/%76", "amqp://w:y@[::2]/v"],
        ] {
            assert_eq!(check(fine), Ok(()), "{fine:?}");
        }
        let twice = "this node is named twice";
        assert_eq!(check(&["amqp://a", "amqp://b", "amqp://u:p@A:5672"]), Err((2, twice)));
        assert_eq!(check(&["amqps://a", "amqps://a:5671"]), Err((1, twice)));
        let differs = "the virtual host differs from that of the first URL";
        assert_eq!(check(&["amqp://a/v", "amqp://b/v", "amqp://c"]), Err((2, differs)));
        assert_eq!(check(&["amqp://a", "amqp://b/"]), Err((1, differs)));
        let comma = "there is a comma in the host of this URL";
        assert_eq!(check(&["amqp://a,b"]), Err((0, comma)));
        assert_eq!(check(&["amqp://a,"]), Err((0, comma)));
        assert_eq!(check(&["amqp://a,amqp://b"]), Err((0, comma)), "in a configuration, this is one URL");
    }
}
