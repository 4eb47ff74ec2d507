//! `serve:`: HTTP settings of `imgsync serve`.

use std::net::SocketAddr;

use super::reader::ValueReader;
use super::schema_table::SERVE;
use super::yaml::YamlNode;
use imgsync_oci::secret::Secret;

/// Minimum length of a token in characters: it alone protects the registries from others.
const MIN_TOKEN_CHARS: usize = 16;

/// HTTP settings of `imgsync serve`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeConfig {
    /// Listen address.
    pub listen: Option<SocketAddr>,
    /// Token required for changes, and for reading from other hosts.
    pub token: Option<Secret>,
    /// Additional host names that requests may use; lowercase, with a port or without.
    pub hosts: Vec<String>,
}

impl ServeConfig {
    /// Returns the URL under which others reach the dashboard: that of the first proxy, which has TLS, else the listen
    /// address. None if neither is known.
    pub fn dashboard_url(&self) -> Option<String> {
        let at_address = || {
            let address = self.listen.filter(|address| !address.ip().is_unspecified() && address.port() != 0)?;
            Some(format!("http://{address}"))
        };
        self.hosts.first().map(|host| format!("https://{host}")).or_else(at_address)
    }

    /// Returns why a text is too weak for a token; `None` if it is not.
    pub fn token_weakness(text: &str) -> Option<String> {
        if text.chars().any(|c| !c.is_ascii_graphic()) {
            return Some("a token consists of visible ASCII characters, without spaces".to_owned());
        }
        (text.len() < MIN_TOKEN_CHARS).then(|| {
            format!(
                "a token of fewer than {MIN_TOKEN_CHARS} characters can be guessed; `openssl rand -hex 32` makes one"
            )
        })
    }
}

pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> ServeConfig {
    let Some(fields) = reader.fields(node, &SERVE) else { return ServeConfig::default() };
    let listen = fields.get("listen").and_then(|node| {
        let text = reader.text(node)?;
        let address = text.parse().ok();
        if address.is_none() {
            let hint = "write 127.0.0.1:8080, or 0.0.0.0:8080 for all addresses".to_owned();
            reader.report_value(node, format!("`{text}` is not an address with a port"), Some(hint));
        }
        address
    });
    let token = fields.get("token").and_then(|node| {
        let token = reader.secret(node)?;
        match ServeConfig::token_weakness(token.expose()) {
            Some(why) => {
                reader.report(&node.at, why);
                None
            }
            None => Some(token),
        }
    });
    let hosts = fields.get("hosts").map(|node| {
        let names = reader.one_or_many(node).iter().filter_map(|item| {
            let name = reader.text(item)?.to_ascii_lowercase();
            if name.contains('/') || name.contains('*') {
                reader.report_value(item, format!("`{name}` is not a host name"), None);
                return None;
            }
            Some(name)
        });
        names.collect()
    });
    ServeConfig { listen, token, hosts: hosts.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigFile};
    use super::ServeConfig;

    fn read(serve: &str) -> Result<Config, String> {
        let text = format!("serve: {serve}\n");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn how_to_answer_is_read_and_shown_without_the_token() {
        let config = read("{listen: '0.0.0.0:8080', token: 0123456789abcdef, hosts: Sync.Example}").unwrap();
        assert_eq!(config.serve.listen.unwrap().port(), 8080);
        assert_eq!(config.serve.hosts, ["sync.example"]);
        let shown = config.to_yaml_redacted();
        assert!(shown.contains("sync.example") && !shown.contains("0123456789abcdef"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_token() {
        for (written, wanted) in [
            ("{listen: '8080'}", "not an address with a port"),
            ("{token: hush}", "can be guessed"),
            ("{token: 'hush hush hush hush'}", "without spaces"),
            ("{hosts: 'https://x'}", "not a host name"),
        ] {
            let said = read(written).unwrap_err();
            assert!(said.contains(wanted) && !said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn others_reach_the_dashboard_by_the_first_proxy_or_the_address() {
        let url = |serve: &str| read(serve).unwrap().serve.dashboard_url();
        assert_eq!(url("{hosts: [sync.example, b.example]}").as_deref(), Some("https://sync.example"));
        assert_eq!(url("{listen: '10.0.0.7:8080'}").as_deref(), Some("http://10.0.0.7:8080"));
        assert_eq!(url("{listen: '0.0.0.0:8080'}"), None, "no address that others can use");
        assert_eq!(ServeConfig::default().dashboard_url(), None);
    }
}
