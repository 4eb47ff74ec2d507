//! SSRF protection for URLs that a registry names: redirects, token services, upload locations, next pages.
//!
//! A registry is trusted with requests to itself, not with the addresses that we connect to (CVE-2020-15157 and
//! similar): never from https to http, never from a public host to loopback, link-local or private addresses, and to a
//! cloud's metadata service only if the user allowed that address. Checks apply to the address of the connection, at
//! every hop, since a name can resolve differently a moment later.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::mask::mask;

/// Network that an address belongs to, from the most public to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NetworkScope {
    Public,
    Private,
    LinkLocal,
    Loopback,
}

/// Returns the IPv4 address embedded in an IPv6 address: mapped, translated (RFC 6052, RFC 8215), 6to4 (RFC 3056). Any
/// other address is returned unchanged.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let (high, low) = match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        [0x64, 0xff9b, 1, _, _, _, high, low] | [0x2002, high, low, ..] => (high, low),
        _ => return address,
    };
    IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
}

pub(crate) fn network_scope(address: IpAddr) -> NetworkScope {
    match canonical(address) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            match () {
                () if v4.is_loopback() || v4.is_unspecified() => NetworkScope::Loopback,
                () if v4.is_link_local() => NetworkScope::LinkLocal,
                // RFC 1918, and the shared address space of carriers (RFC 6598). Not 198.18.0.0/15: resolvers of
                // transparent proxies return such addresses for public names.
                () if v4.is_private() || (a == 100 && (64..128).contains(&b)) => NetworkScope::Private,
                () => NetworkScope::Public,
            }
        }
        IpAddr::V6(v6) => match () {
            () if v6.is_loopback() || v6.is_unspecified() => NetworkScope::Loopback,
            () if (v6.segments()[0] & 0xffc0) == 0xfe80 => NetworkScope::LinkLocal,
            () if (v6.segments()[0] & 0xfe00) == 0xfc00 => NetworkScope::Private,
            () => NetworkScope::Public,
        },
    }
}

/// Whether an address is a cloud's metadata service, which hands out credentials to any client.
pub(crate) fn is_metadata(address: IpAddr) -> bool {
    match canonical(address) {
        // 169.254.0.0/16 as a whole: AWS, Google, Azure and others use several of it. Then Alibaba, Azure, Oracle.
        IpAddr::V4(v4) => {
            v4.is_link_local() || matches!(v4.octets(), [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192])
        }
        // AWS, Google, OpenStack.
        IpAddr::V6(v6) => matches!(
            v6.segments(),
            [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
                | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
                | [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
        ),
    }
}

/// Non-public addresses that the user allows a registry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AllowedAddresses<'a> {
    /// Private, link-local and loopback addresses.
    pub private: bool,
    /// Metadata service addresses, which are refused otherwise.
    pub metadata: &'a [IpAddr],
}

impl AllowedAddresses<'_> {
    fn allows_metadata(self, address: IpAddr) -> bool {
        self.metadata.iter().any(|allowed| canonical(*allowed) == canonical(address))
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(IpAddr::V4(address)),
        Host::Ipv6(address) => Some(IpAddr::V6(address)),
        Host::Domain(_) => None,
    }
}

/// Refuses a literal address of a cloud's metadata service, unless it is allowed.
pub(crate) fn refuse_metadata(url: &Url, allowed: AllowedAddresses<'_>, operation: &str) -> Result<()> {
    match literal(url) {
        Some(address) if is_metadata(address) && !allowed.allows_metadata(address) => Err(Error::new(
            ErrorKind::Insecure,
            operation,
            format!("{address} is the address of a cloud's metadata service"),
        )
        .with_hint(format!(
            "if that is intended, set `allow_metadata: {}` for the registry (`allow_private` is not enough)",
            canonical(address)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a literal address that is not public, and the names of this machine. Names that resolve to such addresses are
/// refused when they are resolved ([`ResolvePolicy::Public`]).
pub(crate) fn refuse_private(url: &Url, operation: &str) -> Result<()> {
    match literal_scope(url) {
        None | Some(NetworkScope::Public) => Ok(()),
        Some(_) => {
            let host = url.host_str().unwrap_or_default();
            let detail = format!("{host} is a private, link-local or loopback address, and no configured registry");
            let hint = "if you trust it, name the registry under `registries` in the configuration";
            Err(Error::new(ErrorKind::Insecure, operation, detail).with_hint(hint))
        }
    }
}

/// Returns the network of a URL's host as far as it is known without DNS.
pub(crate) fn literal_scope(url: &Url) -> Option<NetworkScope> {
    match url.host()? {
        Host::Ipv4(address) => Some(network_scope(IpAddr::V4(address))),
        Host::Ipv6(address) => Some(network_scope(IpAddr::V6(address))),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            (name == "localhost" || name.ends_with(".localhost")).then_some(NetworkScope::Loopback)
        }
    }
}

/// Whether two URLs have the same origin: scheme, host and port.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Validates a URL that a registry named, and returns the URL to use. `home` is the network in which the naming host
/// was connected to. `what` is its role, for the error: "redirect", "token service", "upload location".
pub(crate) fn validate_url(
    from: &Url,
    to: Url,
    home: NetworkScope,
    allowed: AllowedAddresses<'_>,
    what: &str,
) -> Result<Url> {
    let operation = || format!("following the {what} of {} to {}", origin(from), origin(&to));
    let mut next = to.clone();
    if !matches!(to.scheme(), "http" | "https") || to.host().is_none() {
        return Err(Error::new(
            ErrorKind::Insecure,
            operation(),
            format!("`{}` is not a scheme for a registry", to.scheme()),
        ));
    }
    if from.scheme() == "https" && to.scheme() == "http" {
        // A TLS-terminating proxy that sets no forwarding headers makes its registry answer with its own name and http.
        let same_port = to.port().is_some() && to.port() == from.port();
        if from.host() == to.host() && (same_port || matches!(to.port(), None | Some(80 | 443))) {
            let _ = next.set_scheme("https");
            let _ = next.set_port(from.port());
        } else {
            return Err(Error::new(ErrorKind::Insecure, operation(), "it redirects from https to http")
                .with_hint("the registry, or a proxy in front of it, is misconfigured; contact its operator"));
        }
    }
    refuse_metadata(&next, allowed, &operation())?;
    let named = literal(&next).is_some_and(|address| allowed.allows_metadata(address));
    let forbidden = match literal_scope(&next).unwrap_or(NetworkScope::Public) {
        NetworkScope::Public => false,
        NetworkScope::LinkLocal => home != NetworkScope::LinkLocal,
        NetworkScope::Private | NetworkScope::Loopback => home == NetworkScope::Public,
    };
    if forbidden && !allowed.private && !named {
        return Err(private_address(operation(), from));
    }
    Ok(next)
}

fn private_address(operation: String, from: &Url) -> Error {
    let registry = match (from.host_str(), from.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "it".to_owned(),
    };
    Error::new(
        ErrorKind::Insecure,
        operation,
        "it points to a private, link-local or loopback address, but the registry itself has a public one",
    )
    .with_hint(format!("if that is intended, set `allow_private: true` for {registry} under `registries`"))
}

/// Returns scheme, host and port for messages: paths and queries can hold signatures.
pub(crate) fn origin(url: &Url) -> String {
    mask(&url.origin().ascii_serialization()).into_owned()
}

/// Which addresses names may resolve to. Metadata services are always excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ResolvePolicy {
    /// Any address: the user allows it.
    Anywhere,
    /// For the registry itself: any address, until it was connected to at a public one. From then on its name must not
    /// resolve to a private address.
    Registry,
    /// For URLs named by a private registry: any but link-local addresses.
    NotLinkLocal,
    /// For URLs named by a public registry: public addresses.
    Public,
}

/// Networks in which hosts were connected to; for each host the most public. Holds hosts of registries only, so its
/// size is bounded.
#[derive(Debug, Default)]
pub(crate) struct HostScopes(Mutex<HashMap<String, NetworkScope>>);

impl HostScopes {
    /// Records a connection to a host.
    pub(crate) fn record(&self, host: &str, scope: NetworkScope) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(host) {
            Some(known) => *known = (*known).min(scope),
            None => drop(seen.insert(host.to_owned(), scope)),
        }
    }

    fn is_public(&self, host: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host) == Some(&NetworkScope::Public)
    }
}

/// Filters the addresses that names resolve to, so that a name cannot reach what a literal address may not: the check
/// applies to the addresses that are connected to. Proxies are exempt: the user chose them, and most have private
/// addresses. Names that a proxy resolves are not seen here; for those only the check of literal addresses applies.
#[derive(Debug)]
pub(crate) struct AddressFilter {
    /// Hosts of the proxies, in lower case.
    pub proxies: Vec<String>,
    /// Policy for all other hosts.
    pub policy: ResolvePolicy,
    /// Metadata addresses that the user allowed.
    pub metadata: Vec<IpAddr>,
    /// Networks in which hosts were connected to.
    pub host_scopes: Arc<HostScopes>,
}

/// Error of [`AddressFilter`] if it leaves no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockedAddress {
    #[error("{0} has private, link-local or loopback addresses only")]
    Private(String),
    #[error("{0} has the address of a cloud's metadata service, {1}")]
    Metadata(String, IpAddr),
}

impl AddressFilter {
    fn is_allowed(&self, host: &str, address: IpAddr) -> bool {
        if is_metadata(address) {
            return AllowedAddresses { private: false, metadata: &self.metadata }.allows_metadata(address);
        }
        match self.policy {
            ResolvePolicy::Anywhere => true,
            ResolvePolicy::Registry => {
                !self.host_scopes.is_public(host) || network_scope(address) == NetworkScope::Public
            }
            ResolvePolicy::NotLinkLocal => network_scope(address) != NetworkScope::LinkLocal,
            ResolvePolicy::Public => network_scope(address) == NetworkScope::Public,
        }
    }

    /// Returns the allowed addresses of a name.
    fn filter(&self, host: &str, found: Vec<SocketAddr>) -> std::result::Result<Vec<SocketAddr>, BlockedAddress> {
        if self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)) {
            return Ok(found);
        }
        let (kept, withheld): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| self.is_allowed(host, address.ip()));
        match (kept.is_empty(), withheld.first()) {
            (true, Some(address)) if is_metadata(address.ip()) => {
                Err(BlockedAddress::Metadata(host.to_owned(), canonical(address.ip())))
            }
            (true, Some(_)) => Err(BlockedAddress::Private(host.to_owned())),
            _ => Ok(kept),
        }
    }
}

/// DNS resolver that applies a [`AddressFilter`].
#[derive(Debug, Clone)]
pub(crate) struct GuardedResolver(pub(crate) Arc<AddressFilter>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guarded = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().trim_end_matches('.').to_ascii_lowercase();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(guarded.filter(&host, found)?.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    const NOTHING: AllowedAddresses<'static> = AllowedAddresses { private: false, metadata: &[] };
    const PRIVATE: AllowedAddresses<'static> = AllowedAddresses { private: true, metadata: &[] };

    fn guarded(policy: ResolvePolicy) -> AddressFilter {
        AddressFilter { proxies: Vec::new(), policy, metadata: Vec::new(), host_scopes: Arc::default() }
    }

    fn refusal_kind(from: &str, to: &str, home: NetworkScope) -> Option<ErrorKind> {
        validate_url(&url(from), url(to), home, NOTHING, "redirect").err().map(|error| error.kind())
    }

    #[test]
    fn a_public_registry_may_not_redirect_to_private_addresses() {
        for to in [
            "https://127.0.0.1/x",
            "https://10.1.2.3/x",
            "https://192.168.0.1/x",
            "https://172.16.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
            "https://[fe80::1]/x",
            "https://[fd00::1]/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://100.64.0.1/x",
            "https://0.0.0.0/x",
            "https://localhost/x",
            "https://localhost./x",
            "https://a.localhost/x",
            "https://0x7f000001/x",
        ] {
            assert_eq!(
                refusal_kind("https://registry.example.com/", to, NetworkScope::Public),
                Some(ErrorKind::Insecure),
                "{to}"
            );
        }
        assert_eq!(
            refusal_kind("https://registry.example.com/", "https://cdn.example.com/x", NetworkScope::Public),
            None
        );
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_blocked_where_only_public_ones_are_allowed() {
        let resolver = GuardedResolver(Arc::new(guarded(ResolvePolicy::Public)));
        let error = resolver.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.downcast_ref::<BlockedAddress>().is_some(), "{error}");
    }

    #[tokio::test]
    async fn a_proxy_may_have_a_private_address() {
        let resolver = GuardedResolver(Arc::new(AddressFilter {
            proxies: vec!["localhost".to_owned()],
            ..guarded(ResolvePolicy::Public)
        }));
        assert!(resolver.resolve("LocalHost".parse().unwrap()).await.unwrap().count() > 0);
    }

    /// Returns the addresses that pass the filter.
    fn kept(guarded: &AddressFilter, host: &str, addresses: &[&str]) -> Vec<String> {
        let found = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
        let kept = guarded.filter(host, found).unwrap_or_default();
        kept.iter().map(|address| address.ip().to_string()).collect()
    }

    #[test]
    fn names_from_a_private_registry_resolve_to_private_but_not_link_local_addresses() {
        let inside = ["10.0.0.6", "127.0.0.1", "93.184.215.14"];
        assert_eq!(kept(&guarded(ResolvePolicy::NotLinkLocal), "h", &inside), inside);
        assert_eq!(kept(&guarded(ResolvePolicy::NotLinkLocal), "h", &["fe80::1", "10.0.0.6"]), ["10.0.0.6"]);
        assert_eq!(kept(&guarded(ResolvePolicy::Anywhere), "h", &["fe80::1"]), ["fe80::1"]);
    }

    /// In every notation.
    const METADATA: [&str; 12] = [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::a9fe:a9fe",
    ];

    #[test]
    fn metadata_services_are_refused_to_everybody_unless_named() {
        for metadata in METADATA {
            for names in
                [ResolvePolicy::Anywhere, ResolvePolicy::Registry, ResolvePolicy::NotLinkLocal, ResolvePolicy::Public]
            {
                assert_eq!(kept(&guarded(names), "h", &[metadata]), [""; 0], "{metadata}");
                let named = AddressFilter { metadata: vec![canonical(metadata.parse().unwrap())], ..guarded(names) };
                assert_eq!(kept(&named, "h", &[metadata]), [metadata]);
            }
            let host = if metadata.contains(':') { format!("[{metadata}]") } else { metadata.to_owned() };
            let to = url(&format!("http://{host}/latest"));
            let address: IpAddr = metadata.parse().unwrap();
            for home in [NetworkScope::Public, NetworkScope::Private, NetworkScope::LinkLocal, NetworkScope::Loopback] {
                let from = url("http://10.0.0.5:5000/");
                let error = validate_url(&from, to.clone(), home, PRIVATE, "redirect").unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Insecure);
                assert!(error.hint().unwrap().contains("allow_metadata"), "{error}");
                let named = AllowedAddresses { private: false, metadata: &[address] };
                assert!(validate_url(&from, to.clone(), home, named, "redirect").is_ok(), "{metadata}");
            }
            assert!(refuse_metadata(&to, PRIVATE, "x").is_err());
        }
    }

    #[test]
    fn addresses_that_fake_ip_resolvers_give_count_as_public() {
        for fake in ["198.18.0.1", "198.19.255.254"] {
            assert_eq!(network_scope(fake.parse().unwrap()), NetworkScope::Public);
            assert_eq!(kept(&guarded(ResolvePolicy::Public), "h", &[fake]), [fake]);
        }
        for near in ["198.17.0.1", "198.20.0.1"] {
            assert_eq!(network_scope(near.parse().unwrap()), NetworkScope::Public, "nor do these need a rule");
        }
    }

    #[test]
    fn a_registry_seen_at_a_public_address_no_longer_resolves_to_private_ones() {
        let both = ["127.0.0.1", "93.184.215.14"];
        let home = guarded(ResolvePolicy::Registry);
        assert_eq!(kept(&home, "r.example", &both), both, "nothing is known of it");
        home.host_scopes.record("r.example", NetworkScope::Loopback);
        assert_eq!(kept(&home, "r.example", &both), both);
        home.host_scopes.record("r.example", NetworkScope::Public);
        home.host_scopes.record("r.example", NetworkScope::Loopback);
        assert_eq!(kept(&home, "r.example", &both), ["93.184.215.14"]);
        assert_eq!(kept(&home, "r.example", &["127.0.0.1"]), [""; 0]);
        assert_eq!(kept(&home, "other.example", &both), both);
    }

    #[test]
    fn a_private_registry_may_redirect_to_private_but_not_link_local_addresses() {
        let from = "http://10.0.0.5:5000/";
        assert_eq!(refusal_kind(from, "http://10.0.0.6:9000/x", NetworkScope::Private), None);
        assert_eq!(refusal_kind(from, "http://[fe80::2]/x", NetworkScope::Private), Some(ErrorKind::Insecure));
        assert!(
            validate_url(&url(from), url("http://[fe80::2]/x"), NetworkScope::Private, PRIVATE, "redirect").is_ok()
        );
    }

    #[test]
    fn https_is_never_downgraded_but_http_to_the_same_host_is_upgraded() {
        let from = "https://registry.example.com/v2/";
        assert_eq!(refusal_kind(from, "http://cdn.example.com/x", NetworkScope::Public), Some(ErrorKind::Insecure));
        let same = validate_url(
            &url(from),
            url("http://registry.example.com/v2/x?y=1"),
            NetworkScope::Public,
            NOTHING,
            "redirect",
        );
        assert_eq!(same.unwrap().as_str(), "https://registry.example.com/v2/x?y=1");
        let other_port = "https://registry.example.com:5443/v2/";
        let same = validate_url(
            &url(other_port),
            url("http://registry.example.com:5443/v2/x?y=1"),
            NetworkScope::Public,
            NOTHING,
            "upload location",
        );
        assert_eq!(same.unwrap().as_str(), "https://registry.example.com:5443/v2/x?y=1");
        assert_eq!(
            refusal_kind(other_port, "http://registry.example.com:5000/x", NetworkScope::Public),
            Some(ErrorKind::Insecure)
        );
        assert_eq!(refusal_kind(from, "ftp://registry.example.com/x", NetworkScope::Public), Some(ErrorKind::Insecure));
    }

    #[test]
    fn errors_do_not_show_signed_queries() {
        let error = validate_url(
            &url("https://a.example.com/"),
            url("http://b.example.com/blob?X-Signature=secret"),
            NetworkScope::Public,
            NOTHING,
            "redirect",
        );
        let text = error.unwrap_err().to_string();
        assert!(!text.contains("secret") && text.contains("http://b.example.com"), "{text}");
    }
}
