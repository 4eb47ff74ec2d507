//! Proxies from the environment, chosen like Go's `httpproxy` does, and so like docker, containerd and podman:
//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, upper case first; also `ALL_PROXY` like curl.

use std::fmt;
use std::net::IpAddr;
use std::sync::OnceLock;

use url::{Host, Url};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret_url::ambiguity;

/// Supported proxy schemes.
const SCHEMES: [&str; 6] = ["http", "https", "socks5", "socks5h", "socks4", "socks4a"];

/// Proxy settings from the environment.
#[derive(Debug, Default)]
pub(crate) struct EnvironmentProxies {
    http: Option<ProxyVariable>,
    https: Option<ProxyVariable>,
    exceptions: Vec<NoProxyEntry>,
}

/// A variable that names a proxy, or why its value is invalid. The message never quotes the value, which may hold a
/// password.
#[derive(Clone)]
struct ProxyVariable {
    name: String,
    proxy: Result<Url, String>,
}

/// Prints the variable's name only: the URL holds the proxy's password.
impl fmt::Debug for ProxyVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum NoProxyEntry {
    Everything,
    Addresses { base: u128, bits: u32, is_v4: bool, port: Option<u16> },
    Names { suffix: String, itself: bool, port: Option<u16> },
}

impl EnvironmentProxies {
    /// Returns this process's proxies.
    pub(crate) fn from_environment() -> &'static EnvironmentProxies {
        static PROXIES: OnceLock<EnvironmentProxies> = OnceLock::new();
        PROXIES.get_or_init(|| EnvironmentProxies::read(|name| std::env::var(name).ok()))
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> EnvironmentProxies {
        // In a CGI script a client can set HTTP_PROXY by a header (CVE-2016-5385).
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let first = |upper: &str| {
            let names = [upper.to_owned(), upper.to_ascii_lowercase()].into_iter();
            let mut names = names.filter(|name| !(is_cgi && name == "HTTP_PROXY"));
            names.find_map(|name| variable(&name).filter(|value| !value.trim().is_empty()).map(|value| (name, value)))
        };
        let proxy = |name: &str| first(name).map(|(name, value)| ProxyVariable { name, proxy: parse(value.trim()) });
        let all = proxy("ALL_PROXY");
        let exceptions = first("NO_PROXY").map(|(_, value)| value.split(',').filter_map(NoProxyEntry::parse).collect());
        EnvironmentProxies {
            http: proxy("HTTP_PROXY").or_else(|| all.clone()),
            https: proxy("HTTPS_PROXY").or(all),
            exceptions: exceptions.unwrap_or_default(),
        }
    }

    /// Whether there are no proxies.
    pub(crate) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// Returns the proxy for a URL; `None` for a direct connection. Fails if the variable for it is invalid.
    pub(crate) fn proxy_for(&self, url: &Url) -> Result<Option<&Url>> {
        let variable = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        };
        let Some(variable) = variable.filter(|_| !self.excepts(url)) else { return Ok(None) };
        variable.proxy.as_ref().map(Some).map_err(|why| {
            let operation = format!("finding the proxy to {}", super::ssrf::origin(url));
            let detail = format!("the environment variable `{}` is not a proxy: {why}", variable.name);
            Error::new(ErrorKind::Invalid, operation, detail).with_hint(
                format!(
                    "write it as http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT with special characters as %40; or leave \
                     {} out",
                    variable.name
                ),
            )
        })
    }

    /// Returns the hosts of all proxies, in lower case.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.urls().filter_map(host).collect()
    }

    /// Returns all valid proxies.
    pub(crate) fn urls(&self) -> impl Iterator<Item = &Url> {
        [&self.http, &self.https].into_iter().flatten().filter_map(|variable| variable.proxy.as_ref().ok())
    }

    fn excepts(&self, url: &Url) -> bool {
        let Some(host) = url.host() else { return true };
        let port = url.port_or_known_default();
        match host {
            Host::Domain(name) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                name == "localhost" || name.ends_with(".localhost") || self.has_exception(&name, None, port)
            }
            Host::Ipv4(address) => self.excepts_address(address.into(), port),
            Host::Ipv6(address) => self.excepts_address(address.into(), port),
        }
    }

    fn excepts_address(&self, address: IpAddr, port: Option<u16>) -> bool {
        address.is_loopback() || self.has_exception("", Some(address), port)
    }

    fn has_exception(&self, name: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        self.exceptions.iter().any(|exception| match exception {
            NoProxyEntry::Everything => true,
            NoProxyEntry::Addresses { port: wanted, .. } | NoProxyEntry::Names { port: wanted, .. }
                if wanted.is_some() && *wanted != port =>
            {
                false
            }
            NoProxyEntry::Addresses { base, bits, is_v4, .. } => address.is_some_and(|address| {
                let (address, of_v4) = number(address);
                let shift = if *is_v4 { 32 - bits } else { 128 - bits };
                of_v4 == *is_v4 && address.checked_shr(shift) == base.checked_shr(shift)
            }),
            NoProxyEntry::Names { suffix, itself, .. } => {
                address.is_none() && (name.ends_with(suffix) || (*itself && name == &suffix[1..]))
            }
        })
    }
}

impl NoProxyEntry {
    /// Parses `host`, `.host` or `*.host` (only names below it), an address, a network in CIDR, each with or without
    /// `:port`; `*`.
    fn parse(entry: &str) -> Option<NoProxyEntry> {
        let entry = entry.trim().to_lowercase();
        if entry == "*" {
            return Some(NoProxyEntry::Everything);
        }
        if let Some(addresses) = NoProxyEntry::addresses(&entry, None) {
            return Some(addresses);
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Some(addresses) = NoProxyEntry::addresses(bare, port) {
            return Some(addresses);
        }
        let name = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host).trim_end_matches('.');
        let (itself, name) = match name.strip_prefix('.') {
            Some(below) => (false, below),
            None => (true, name),
        };
        // Internationalized names are resolved in Punycode.
        let name = match Host::parse(name) {
            Ok(Host::Domain(name)) => name,
            _ => name.to_owned(),
        };
        (!name.is_empty()).then(|| NoProxyEntry::Names { suffix: format!(".{name}"), itself, port })
    }

    fn addresses(text: &str, port: Option<u16>) -> Option<NoProxyEntry> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
        let (base, is_v4) = number(address.parse().ok()?);
        let all = if is_v4 { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(NoProxyEntry::Addresses { base, bits, is_v4, port })
    }
}

/// Returns an address as a number, and whether it is IPv4.
fn number(address: IpAddr) -> (u128, bool) {
    match address.to_canonical() {
        IpAddr::V4(address) => (u128::from(address.to_bits()), true),
        IpAddr::V6(address) => (address.to_bits(), false),
    }
}

/// Parses a proxy from a variable; without a scheme it speaks HTTP.
fn parse(written: &str) -> Result<Url, String> {
    if let Some(why) = ambiguity(written) {
        return Err(format!(
            "{why}; percent-encode the password, or use `username`/`password` of `proxy` in the configuration"
        ));
    }
    let url = match written.contains("://") {
        true => Url::parse(written),
        false => Url::parse(&format!("http://{written}")),
    };
    let url = url.map_err(|error| error.to_string())?;
    if !SCHEMES.contains(&url.scheme()) {
        return Err(format!("it starts with {}:// (use http, https, socks5 or socks5h)", url.scheme()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it names no host".to_owned());
    }
    // A slash, `?` or `#` in a password ends the host early.
    if url.as_str().rfind('@').is_some_and(|at| at > url[..url::Position::AfterPort].len()) {
        return Err("an `@` comes after its host".to_owned());
    }
    Ok(url)
}

/// Returns the host of a proxy as the resolver gets it.
pub(crate) fn host(proxy: &Url) -> Option<String> {
    // With schemes unknown to the URL standard (socks5) the host keeps its case.
    proxy.host_str().map(str::to_ascii_lowercase)
}

/// Formats a proxy for messages: without user and password.
pub(crate) fn shown(proxy: &Url) -> String {
    let host = proxy.host_str().unwrap_or_default();
    match proxy.port() {
        Some(port) => format!("{}://{host}:{port}", proxy.scheme()),
        None => format!("{}://{host}", proxy.scheme()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> EnvironmentProxies {
        EnvironmentProxies::read(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn to(proxies: &EnvironmentProxies, url: &str) -> Option<String> {
        proxies.proxy_for(&url.parse().unwrap()).unwrap().map(shown)
    }

    #[test]
    fn the_variable_follows_from_the_scheme_and_capitals_go_first() {
        let both = proxies(&[
            ("HTTP_PROXY", "plain.corp:3128"),
            ("https_proxy", "https://secure.corp"),
            ("HTTPS_PROXY", "http://Secure.corp:8080/"),
        ]);
        assert_eq!(to(&both, "http://r.example/v2/").as_deref(), Some("http://plain.corp:3128"));
        assert_eq!(to(&both, "https://r.example/v2/").as_deref(), Some("http://secure.corp:8080"));
        assert_eq!(both.hosts(), ["plain.corp", "secure.corp"]);
        let one = proxies(&[("http_proxy", "plain.corp"), ("HTTPS_PROXY", "  ")]);
        assert_eq!(to(&one, "https://r.example/"), None);
        let all = proxies(&[("all_proxy", "socks5h://u:p@Inside:1080"), ("http_proxy", "plain.corp")]);
        assert_eq!(to(&all, "https://r.example/").as_deref(), Some("socks5h://Inside:1080"));
        assert_eq!(to(&all, "http://r.example/").as_deref(), Some("http://plain.corp"));
        assert!(all.hosts().contains(&"inside".to_owned()));
        assert!(proxies(&[]).is_empty());
        let script = proxies(&[("HTTP_PROXY", "evil.example"), ("REQUEST_METHOD", "GET")]);
        assert_eq!(to(&script, "http://r.example/"), None);
    }

    #[test]
    fn what_is_here_is_reached_directly() {
        let proxies = proxies(&[("ALL_PROXY", "proxy.corp:1")]);
        for url in ["http://localhost:5000", "http://a.localhost", "http://127.8.0.1", "https://[::1]:5000"] {
            assert_eq!(to(&proxies, url), None, "{url}");
        }
        assert!(to(&proxies, "https://[::2]:5000").is_some());
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (exceptions, direct, not) in [
            ("corp.example", &["corp.example", "a.corp.example", "a.b.CORP.example:5000"][..], &["xcorp.example"][..]),
            (".corp.example", &["a.corp.example"], &["corp.example"]),
            ("*.corp.example", &["a.corp.example", "a.b.corp.example:81"], &["corp.example", "corp.example.org"]),
            (
                "corp.example:5000",
                &["corp.example:5000", "a.corp.example:5000"],
                &["corp.example", "corp.example:5001"],
            ),
            ("*.corp.example:443", &["a.corp.example"], &["a.corp.example:444"]),
            ("corp.example.", &["corp.example", "corp.example."], &["example"]),
            (" a.example , b.example", &["a.example", "b.example"], &["c.example"]),
            ("10.0.0.5", &["10.0.0.5", "10.0.0.5:5000"], &["10.0.0.6"]),
            ("10.0.0.5:5000", &["10.0.0.5:5000"], &["10.0.0.5"]),
            ("10.1.0.0/16", &["10.1.255.3", "10.1.0.0:5000"], &["10.2.0.1", "10.1.example"]),
            ("10.1.0.0/16:5000", &["10.1.7.7:5000"], &["10.1.7.7", "10.2.0.1:5000"]),
            ("0.0.0.0/0", &["8.8.8.8"], &["[2001:db8::1]", "r.example"]),
            ("fd00::/8", &["[fd12::1]:5000"], &["[fe80::1]"]),
            ("[fd00::/8]:5000", &["[fd12::1]:5000"], &["[fd12::1]"]),
            ("[2001:db8::1]:443,2001:db8::2", &["[2001:db8::1]", "[2001:db8::2]:81"], &["[2001:db8::1]:444"]),
            ("*", &["r.example", "10.0.0.5:5000", "[fd12::1]"], &[]),
            ("bücher.example", &["xn--bcher-kva.example"], &["bucher.example"]),
            (",,:80,/8,10.0.0.0/99,a:b:c,*corp.example", &[], &["r.example", "10.0.0.1", "corp.example"]),
        ] {
            let proxies = proxies(&[("HTTPS_PROXY", "proxy.corp:1"), ("no_proxy", exceptions)]);
            for host in direct {
                assert_eq!(to(&proxies, &format!("https://{host}/v2/")), None, "{exceptions}: {host}");
            }
            for host in not {
                assert!(to(&proxies, &format!("https://{host}/v2/")).is_some(), "{exceptions}: {host}");
            }
        }
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_an_error_that_quotes_no_password() {
        for written in [
            "ftp://proxy.corp:3128",
            "quic://proxy.corp",
            "http://",
            "http://proxy corp:3128",
            "proxy.corp:99999",
            "http://me:s3cret#pass@proxy.corp:3128",
            "http://me:12/s3cret@proxy.corp:3128",
            "socks5://me:12/s3cret@proxy.corp:3128",
            "http://[::1",
        ] {
            let proxies = proxies(&[("https_proxy", written), ("NO_PROXY", "direct.example")]);
            let error = proxies.proxy_for(&"https://r.example/v2/".parse().unwrap()).unwrap_err();
            let text = format!("{error} {}", error.hint().unwrap());
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(text.contains("`https_proxy`") && !text.contains("s3cret"), "{written}: {text}");
            assert_eq!(to(&proxies, "https://direct.example/"), None);
            assert_eq!(to(&proxies, "http://r.example/"), None);
        }
        let kept = proxies(&[("https_proxy", "http://me:p%40ss@proxy.corp:3128")]);
        assert!(!format!("{kept:?}").contains("ss"));
        assert_eq!(to(&kept, "https://r.example/").as_deref(), Some("http://proxy.corp:3128"));
    }
}
