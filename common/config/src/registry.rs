//! `registries:`: connection settings, credentials and limits of registries.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use super::reader::{SectionFields, ValueReader};
use super::schema_table::{CREDENTIAL, REGISTRY};
use super::yaml::{YamlNode, YamlValue};
use imgsync_oci::RegistryName;
use imgsync_oci::secret::Secret;
use imgsync_oci::secret_url::SecretUrl;
use imgsync_registry::providers::{self, CredentialSource, ListingMethod};

/// Settings of a registry. All are optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegistryConfig {
    /// User, with or without a password.
    pub username: Option<String>,
    /// Credential for pulling and pushing.
    pub credential: Option<CredentialConfig>,
    /// Where credentials come from, if there is no `credential`.
    pub credential_source: CredentialSource,
    /// Additional accounts, for pulling only.
    pub pull_credentials: Vec<CredentialConfig>,
    /// URL to use instead of the registry's own; disables its provider's API, unless `api` is set. http or https.
    pub endpoint: Option<Url>,
    /// Mirrors to pull from first, in this order. http or https.
    pub mirrors: Vec<Url>,
    /// API for listing repositories and tags.
    pub listing: ListingMethod,
    /// URL of the provider's API. http or https.
    pub api: Option<Url>,
    /// http, https, socks5 or socks5h.
    pub proxy: Option<SecretUrl>,
    /// `tls: off` is true, `tls: on` is false; `None` is the default ([`RegistryConfig::uses_plain_http`]).
    pub plain_http: Option<bool>,
    /// Certificates to trust besides the system's.
    pub ca: Vec<PemSource>,
    /// Client certificate and key.
    pub client_identity: Option<ClientIdentity>,
    /// Trusts any certificate.
    pub insecure: bool,
    /// Disables HTTP/2.
    pub http1: bool,
    /// Allows redirects and token services at private addresses.
    pub allow_private: bool,
    /// Cloud metadata addresses that the registry may resolve or redirect to.
    pub allow_metadata: Vec<IpAddr>,
    /// Rate limit.
    pub requests_per_second: Option<f64>,
    /// Limit on open requests.
    pub concurrency: Option<usize>,
    /// Part of the pull quota to leave unused.
    pub pull_reserve: Option<PullReserve>,
    /// Bandwidth limit in bytes per second, for each direction.
    pub bandwidth: Option<u64>,
    /// Name of the public IP address of this machine; anonymous requests are limited per name.
    pub egress: Option<String>,
    /// Creates missing ECR repositories and Harbor projects on push.
    pub create: bool,
    /// Chunk size of uploads in bytes.
    pub chunk_size: Option<u64>,
}

impl RegistryConfig {
    /// Returns whether to use plain HTTP. Settings of TLS imply TLS; `None` depends on the address (loopback is plain).
    pub fn uses_plain_http(&self) -> Option<bool> {
        let has_tls_settings = !self.ca.is_empty() || self.client_identity.is_some() || self.insecure;
        self.plain_http.or(has_tls_settings.then_some(false))
    }
}

/// A credential in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialConfig {
    /// User and password.
    Basic {
        /// The user.
        username: String,
        /// The password or access token.
        password: Secret,
    },
    /// A refresh token, for registries that issue them.
    IdentityToken(Secret),
}

/// Part of a pull quota to leave unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullReserve {
    /// A number of pulls.
    Count(u64),
    /// A percentage of the quota, up to 100.
    Percent(u8),
}

impl FromStr for PullReserve {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<PullReserve, String> {
        let reserve = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().filter(|percent| *percent <= 100).map(PullReserve::Percent),
            None => text.parse().ok().map(PullReserve::Count),
        };
        reserve.ok_or_else(|| format!("`{text}` is neither a number of pulls nor a percentage such as 5%"))
    }
}

impl fmt::Display for PullReserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PullReserve::Count(count) => write!(f, "{count}"),
            PullReserve::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// PEM-encoded certificates or a key.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// A file; a relative path is relative to the configuration file.
    File(PathBuf),
    /// Inline in the configuration. (A secret, since it may be a key.)
    Inline(Secret),
}

/// Displays the file name only if it clearly is one, else stars: a key without its first line looks like a file name,
/// too.
impl fmt::Display for PemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PemSource::File(path) if looks_like_path(&path.to_string_lossy()) => path.display().fmt(f),
            PemSource::File(_) => f.write_str("***"),
            PemSource::Inline(secret) => secret.fmt(f),
        }
    }
}

impl fmt::Debug for PemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether a text can only be a file name: it has a typical extension or starts like a path, and no segment
/// could be a line of PEM.
fn looks_like_path(text: &str) -> bool {
    let ending = text.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let begins = ["/", "./", "../"].iter().any(|begin| text.starts_with(begin));
    let is_short = |part: &str| part.contains('.') || part.len() <= MAX_SHOWN_SEGMENT_CHARS;
    (begins || ending.is_some_and(|ending| PEM_EXTENSIONS.contains(&ending.as_str())))
        && text.split('/').all(is_short)
        && !text.contains([' ', '\n', '=', '+'])
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate, with its chain.
    pub certificate: PemSource,
    /// Its key.
    pub key: PemSource,
}

const HTTP_SCHEMES: [&str; 2] = ["https", "http"];
const PROXY_SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];
/// Extensions of certificate and key files.
const PEM_EXTENSIONS: [&str; 8] = ["pem", "crt", "cer", "cert", "key", "p8", "chain", "bundle"];
/// Maximum length of a path segment without a dot that is shown: a line of PEM has 64 characters.
const MAX_SHOWN_SEGMENT_CHARS: usize = 48;

/// Reads the settings of a registry. `name` is the registry's, if it is valid.
pub(super) fn read(reader: &ValueReader, node: &YamlNode, name: Option<&RegistryName>) -> RegistryConfig {
    let Some(fields) = reader.fields(node, &REGISTRY) else { return RegistryConfig::default() };
    let url = |name| fields.get(name).and_then(|node| reader.url(node, &HTTP_SCHEMES));
    let flag = |name| fields.get(name).and_then(|node| reader.flag(node));
    let settings = RegistryConfig {
        username: fields.get("username").and_then(|node| reader.username(node)),
        credential: read_credential(reader, &fields, true),
        credential_source: read_credential_source(reader, &fields),
        pull_credentials: read_pull_credentials(reader, &fields),
        endpoint: url("endpoint"),
        mirrors: match fields.get("mirrors") {
            Some(node) => reader.one_or_many(node).iter().filter_map(|node| reader.url(node, &HTTP_SCHEMES)).collect(),
            None => Vec::new(),
        },
        listing: fields.get("listing").and_then(|node| reader.parse(node)).unwrap_or_default(),
        api: url("api"),
        proxy: fields.get("proxy").and_then(|node| reader.address(node, &PROXY_SCHEMES, true)),
        plain_http: fields.get("tls").and_then(|node| reader.on_off(node, "tls")).map(|tls| !tls),
        ca: fields.get("ca").map(|node| read_certificates(reader, node)).unwrap_or_default(),
        client_identity: read_client_identity(reader, &fields),
        insecure: flag("insecure").unwrap_or_default(),
        http1: flag("http1").unwrap_or_default(),
        allow_private: flag("allow_private").unwrap_or_default(),
        allow_metadata: match fields.get("allow_metadata") {
            Some(node) => {
                reader.one_or_many(node).iter().filter_map(|node| read_metadata_address(reader, node)).collect()
            }
            None => Vec::new(),
        },
        requests_per_second: fields.get("requests_per_second").and_then(|node| reader.positive_number(node)),
        concurrency: fields.get("concurrency").and_then(|node| reader.integer(node, 1..=10_000)),
        pull_reserve: fields.get("pull_reserve").and_then(|node| reader.parse(node)),
        bandwidth: fields.get("bandwidth").and_then(|node| reader.size(node)),
        egress: fields.get("egress").and_then(|node| reader.text(node)).map(str::to_owned),
        create: flag("create").unwrap_or_default(),
        chunk_size: fields.get("chunk").and_then(|node| reader.size(node)),
    };
    check_contradictions(reader, &fields, &settings);
    if let Some(name) = name
        && let Err(error) =
            providers::resolve_listing(name, settings.listing, settings.endpoint.as_ref(), settings.api.as_ref())
        && let Some(entry) = fields.entry("listing").or_else(|| fields.entry("api"))
    {
        reader.report(&entry.key_at, error);
    }
    settings
}

fn read_metadata_address(reader: &ValueReader, node: &YamlNode) -> Option<IpAddr> {
    let text = reader.text(node)?;
    let address = text.parse().ok();
    if address.is_none() {
        reader.report_value(node, format!("`{text}` is not an IP address such as 169.254.169.254"), None);
    }
    address
}

fn check_contradictions(reader: &ValueReader, fields: &SectionFields<'_>, settings: &RegistryConfig) {
    if settings.plain_http == Some(true) {
        for name in ["ca", "client_cert", "insecure"] {
            if let Some(entry) = fields.entry(name)
                && (name != "insecure" || settings.insecure)
            {
                reader.report(&entry.key_at, format!("`{name}` has no effect with `tls: off`"));
            }
        }
    }
    if settings.insecure
        && let Some(entry) = fields.entry("ca")
    {
        reader.report(&entry.key_at, "`ca` has no effect with `insecure`, which trusts any certificate");
    }
    if let (Some(endpoint), Some(plain), Some(node)) = (&settings.endpoint, settings.plain_http, fields.get("tls"))
        && (endpoint.scheme() == "http") != plain
    {
        let tls = if plain { "off" } else { "on" };
        reader.report(
            &node.at,
            format!("`tls: {tls}` contradicts `endpoint`, which begins with {}://", endpoint.scheme()),
        );
    }
}

/// Reads user and password, or a token. A user alone is valid if `user_alone` is set.
fn read_credential(reader: &ValueReader, fields: &SectionFields<'_>, user_alone: bool) -> Option<CredentialConfig> {
    let username = fields.get("username").and_then(|node| reader.username(node));
    let password = fields.get("password").map(|node| reader.secret(node));
    let token = fields.get("identity_token").map(|node| reader.secret(node));
    match (username, password, token) {
        (_, Some(_), Some(_)) => {
            if let Some(entry) = fields.entry("identity_token") {
                reader.report(&entry.key_at, "there is a `password` as well; write one of the two");
            }
            None
        }
        (Some(username), Some(password), None) => Some(CredentialConfig::Basic { username, password: password? }),
        (None, Some(_), None) => {
            if let (Some(entry), None) = (fields.entry("password"), fields.get("username")) {
                reader.report(&entry.key_at, "a `password` needs a `username`");
            }
            None
        }
        (_, None, Some(token)) => Some(CredentialConfig::IdentityToken(token?)),
        (_, None, None) => {
            if !user_alone && fields.get("username").is_none() {
                reader.report(&fields.at, "a credential is `username` and `password`, or `identity_token`");
            } else if !user_alone && let Some(entry) = fields.entry("username") {
                reader.report(&entry.key_at, "a `username` needs a `password` here");
            }
            None
        }
    }
}

/// Whether a value is a word, and not a list.
fn is_word(node: &YamlNode) -> bool {
    matches!(&node.value, YamlValue::Scalar(_))
}

/// Reads `credentials`, if it is a word: a list holds more accounts.
fn read_credential_source(reader: &ValueReader, fields: &SectionFields<'_>) -> CredentialSource {
    let Some(node) = fields.get("credentials").filter(|node| is_word(node)) else { return CredentialSource::default() };
    let source = reader.parse(node).unwrap_or_default();
    let other = ["username", "password", "identity_token"].into_iter().find(|name| fields.get(name).is_some());
    if let (Some(other), Some(entry), false) = (other, fields.entry("credentials"), source == CredentialSource::Auto) {
        reader.report(&entry.key_at, format!("`credentials: {source}` contradicts `{other}`; write one of the two"));
    }
    source
}

fn read_pull_credentials(reader: &ValueReader, fields: &SectionFields<'_>) -> Vec<CredentialConfig> {
    let Some(node) = fields.get("credentials").filter(|node| !is_word(node)) else { return Vec::new() };
    reader
        .list(node)
        .iter()
        .filter_map(|node| read_credential(reader, &reader.fields(node, &CREDENTIAL)?, false))
        .collect()
}

fn read_client_identity(reader: &ValueReader, fields: &SectionFields<'_>) -> Option<ClientIdentity> {
    let certificate = fields.get("client_cert").map(|node| read_pem(reader, node, "CERTIFICATE"));
    let key = fields.get("client_key").map(|node| read_pem(reader, node, "PRIVATE KEY"));
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity { certificate: certificate?, key: key? }),
        (None, None) => None,
        (present, _) => {
            let (name, other) =
                if present.is_some() { ("client_cert", "client_key") } else { ("client_key", "client_cert") };
            if let Some(entry) = fields.entry(name) {
                reader.report(&entry.key_at, format!("`{name}` needs `{other}`"));
            }
            None
        }
    }
}

/// Reads certificates to trust.
pub(super) fn read_certificates(reader: &ValueReader, node: &YamlNode) -> Vec<PemSource> {
    reader.one_or_many(node).iter().filter_map(|node| read_pem(reader, node, "CERTIFICATE")).collect()
}

fn read_pem(reader: &ValueReader, node: &YamlNode, label: &str) -> Option<PemSource> {
    let is_inline =
        matches!(&node.value, YamlValue::Scalar(scalar) if scalar.text.trim_start().starts_with("-----BEGIN"));
    if !is_inline {
        let text = reader.text(node)?;
        if !looks_like_path(text) {
            // A key without its first line, or a password.
            reader.mark_hidden(node);
        }
        if text.contains('\n') {
            reader.report(&node.at, "this is neither the name of a file nor PEM, which begins with -----BEGIN");
            return None;
        }
        return Some(PemSource::File(PathBuf::from(text)));
    }
    if label == "PRIVATE KEY" {
        reader.mark_secret(node);
    }
    let text = reader.text(node)?;
    // RSA and EC keys name their type before `PRIVATE KEY`.
    if !text.contains(&format!("{label}-----")) {
        reader.report(&node.at, format!("there is no {label} in this PEM"));
        return None;
    }
    Some(PemSource::Inline(Secret::new(text)))
}
