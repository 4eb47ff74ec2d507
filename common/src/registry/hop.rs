//! Where a registry may send us: redirects, token services, upload locations, next pages.
//!
//! A registry is trusted with requests to itself, not with where on the network we connect (CVE-2020-15157 and its
//! kind): never from https to http, never from a public host to loopback, link-local or private addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::error::{Class, Error, Result};

/// What kind of network an address is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Public,
    Private,
    LinkLocal,
    Loopback,
}

pub(crate) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            match () {
                () if v4.is_loopback() || v4.is_unspecified() => Reach::Loopback,
                () if v4.is_link_local() => Reach::LinkLocal,
                // RFC 1918, and the shared space of carriers (RFC 6598).
                () if v4.is_private() || (a == 100 && (64..128).contains(&b)) => Reach::Private,
                () => Reach::Public,
            }
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => reach(IpAddr::V4(v4)),
            None if v6.is_loopback() || v6.is_unspecified() => Reach::Loopback,
            // Addresses of IPv4 behind a translator (RFC 6052) and by 6to4 (RFC 3056).
            None if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => embedded(v6.segments()[6], v6.segments()[7]),
            None if v6.segments()[0] == 0x2002 => embedded(v6.segments()[1], v6.segments()[2]),
            None if (v6.segments()[0] & 0xffc0) == 0xfe80 => Reach::LinkLocal,
            None if (v6.segments()[0] & 0xfe00) == 0xfc00 => Reach::Private,
            None => Reach::Public,
        },
    }
}

fn embedded(high: u16, low: u16) -> Reach {
    reach(IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))))
}

/// What can be told of a URL's host without asking the network.
pub(crate) fn literal_reach(url: &Url) -> Option<Reach> {
    match url.host()? {
        Host::Ipv4(address) => Some(reach(IpAddr::V4(address))),
        Host::Ipv6(address) => Some(reach(IpAddr::V6(address))),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            (name == "localhost" || name.ends_with(".localhost")).then_some(Reach::Loopback)
        }
    }
}

/// Which network a registry's own host is in. A name that does not resolve here (a proxy may know it) counts as public.
pub(crate) async fn reach_of(url: &Url) -> Reach {
    if let Some(reach) = literal_reach(url) {
        return reach;
    }
    let Some(Host::Domain(name)) = url.host() else { return Reach::Public };
    let port = url.port_or_known_default().unwrap_or(443);
    match tokio::net::lookup_host((name, port)).await {
        Ok(addresses) => reach_of_all(addresses.map(|address| address.ip())),
        Err(_) => Reach::Public,
    }
}

/// One public address makes a host public: whoever answers there may not lead inside.
fn reach_of_all(addresses: impl Iterator<Item = IpAddr>) -> Reach {
    addresses.map(reach).min().unwrap_or(Reach::Public)
}

/// Whether two URLs are of one origin: scheme, host and port.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Checks a hop and gives the URL to go to. `home` is the network that the registry itself is in. `what` names the kind
/// of hop for the error: "redirect", "token service", "upload location".
pub(crate) fn check(from: &Url, to: Url, home: Reach, allow_private: bool, what: &str) -> Result<Url> {
    let tried = || format!("following the {what} of {} to {}", origin(from), origin(&to));
    let mut next = to.clone();
    if !matches!(to.scheme(), "http" | "https") || to.host().is_none() {
        return Err(Error::new(Class::Insecure, tried(), format!("`{}` is no scheme for a registry", to.scheme())));
    }
    if from.scheme() == "https" && to.scheme() == "http" {
        // A proxy that ends TLS and forgets to say so makes its registry answer with its own name and http.
        let same_port = to.port().is_some() && to.port() == from.port();
        if from.host() == to.host() && (same_port || matches!(to.port(), None | Some(80 | 443))) {
            let _ = next.set_scheme("https");
            let _ = next.set_port(from.port());
        } else {
            return Err(Error::new(Class::Insecure, tried(), "it leads from https to http")
                .hint("the registry, or a proxy before it, is set up wrong; tell who runs it"));
        }
    }
    let there = literal_reach(&next).unwrap_or(Reach::Public);
    let forbidden = match there {
        Reach::Public => false,
        Reach::LinkLocal => home != Reach::LinkLocal,
        Reach::Private | Reach::Loopback => home == Reach::Public,
    };
    if forbidden && !allow_private {
        return Err(private_address(tried(), from));
    }
    Ok(next)
}

fn private_address(tried: String, from: &Url) -> Error {
    let registry = match (from.host_str(), from.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "it".to_owned(),
    };
    Error::new(
        Class::Insecure,
        tried,
        "it leads to a private, link-local or loopback address, which the registry itself does not have",
    )
    .hint(format!("if that is meant, set `allow_private: true` for {registry} under `registries`"))
}

/// Scheme, host and port, which is what an error may name: paths and queries can hold signatures.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Where names may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Names {
    /// The user has said so.
    Anywhere,
    /// From a private registry: within, but not to the metadata service of a cloud.
    NotLinkLocal,
    /// From a public registry.
    Public,
}

impl Names {
    fn may_lead_to(self, address: IpAddr) -> bool {
        match self {
            Names::Anywhere => true,
            Names::NotLinkLocal => reach(address) != Reach::LinkLocal,
            Names::Public => reach(address) == Reach::Public,
        }
    }
}

/// Resolves names and gives only addresses that they may lead to, so that a name cannot lead where a literal address may
/// not. Proxies are excepted: they were chosen by the user, and mostly stand on private addresses. What a proxy resolves
/// itself is not seen here: then the literal check alone holds.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// The hosts of the proxies, in lower case.
    pub proxies: Vec<String>,
    /// Where all others may lead.
    pub names: Names,
}

/// Why [`Guarded`] gave nothing.
#[derive(Debug, thiserror::Error)]
#[error("{name} has private, link-local or loopback addresses only")]
pub(crate) struct NotPublic {
    name: String,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        let names = self.names;
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> =
                found.iter().copied().filter(|address| is_proxy || names.may_lead_to(address.ip())).collect();
            if public.is_empty() && !found.is_empty() {
                return Err(NotPublic { name }.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn class(from: &str, to: &str, home: Reach) -> Option<Class> {
        check(&url(from), url(to), home, false, "redirect").err().map(|error| error.class())
    }

    #[test]
    fn a_public_registry_may_not_lead_inside() {
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
            assert_eq!(class("https://registry.example.com/", to, Reach::Public), Some(Class::Insecure), "{to}");
        }
        assert_eq!(class("https://registry.example.com/", "https://cdn.example.com/x", Reach::Public), None);
    }

    #[tokio::test]
    async fn a_name_that_resolves_inside_is_refused_where_public_addresses_alone_are_allowed() {
        let resolver = Guarded { proxies: vec!["proxy.corp".to_owned()], names: Names::Public };
        let error = resolver.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.downcast_ref::<NotPublic>().is_some(), "{error}");
    }

    #[tokio::test]
    async fn a_proxy_may_stand_on_a_private_address() {
        let resolver = Guarded { proxies: vec!["localhost".to_owned()], names: Names::Public };
        assert!(resolver.resolve("LocalHost".parse().unwrap()).await.unwrap().count() > 0);
    }

    #[test]
    fn a_name_that_a_private_registry_gives_leads_within_but_not_to_the_metadata_address() {
        let may = |names: Names, address: &str| names.may_lead_to(address.parse().unwrap());
        for inside in ["10.0.0.6", "127.0.0.1", "93.184.215.14"] {
            assert!(may(Names::NotLinkLocal, inside), "{inside}");
        }
        for metadata in ["169.254.169.254", "fe80::1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"] {
            assert!(!may(Names::NotLinkLocal, metadata) && !may(Names::Public, metadata), "{metadata}");
            assert!(may(Names::Anywhere, metadata), "{metadata}");
        }
    }

    #[test]
    fn one_public_address_makes_a_host_public() {
        let of = |addresses: &[&str]| reach_of_all(addresses.iter().map(|address| address.parse().unwrap()));
        assert_eq!(of(&["10.0.0.1", "93.184.215.14"]), Reach::Public);
        assert_eq!(of(&["127.0.0.1", "10.0.0.1"]), Reach::Private);
        assert_eq!(of(&["::1", "127.0.0.1"]), Reach::Loopback);
        assert_eq!(of(&[]), Reach::Public);
    }

    #[test]
    fn a_private_registry_may_lead_within_but_not_to_the_metadata_address() {
        let from = "http://10.0.0.5:5000/";
        assert_eq!(class(from, "http://10.0.0.6:9000/x", Reach::Private), None);
        assert_eq!(class(from, "http://169.254.169.254/x", Reach::Private), Some(Class::Insecure));
        assert!(check(&url(from), url("http://169.254.169.254/x"), Reach::Private, true, "redirect").is_ok());
    }

    #[test]
    fn https_never_becomes_http_but_a_forgetful_proxy_is_understood() {
        let from = "https://registry.example.com/v2/";
        assert_eq!(class(from, "http://cdn.example.com/x", Reach::Public), Some(Class::Insecure));
        let same = check(&url(from), url("http://registry.example.com/v2/x?y=1"), Reach::Public, false, "redirect");
        assert_eq!(same.unwrap().as_str(), "https://registry.example.com/v2/x?y=1");
        let other_port = "https://registry.example.com:5443/v2/";
        let same = check(
            &url(other_port),
            url("http://registry.example.com:5443/v2/x?y=1"),
            Reach::Public,
            false,
            "upload location",
        );
        assert_eq!(same.unwrap().as_str(), "https://registry.example.com:5443/v2/x?y=1");
        assert_eq!(class(other_port, "http://registry.example.com:5000/x", Reach::Public), Some(Class::Insecure));
        assert_eq!(class(from, "ftp://registry.example.com/x", Reach::Public), Some(Class::Insecure));
    }

    #[test]
    fn errors_do_not_show_signed_queries() {
        let error = check(
            &url("https://a.example.com/"),
            url("http://b.example.com/blob?X-Signature=secret"),
            Reach::Public,
            false,
            "redirect",
        );
        let text = error.unwrap_err().to_string();
        assert!(!text.contains("secret") && text.contains("http://b.example.com"), "{text}");
    }
}
