//! `hooks:`: notifications of registries that `imgsync serve` receives at `/hooks/NAME`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::HeaderName;

use super::Rule;
use super::reader::{SectionFields, ValueReader};
use super::rule::RuleSource;
use super::schema_table::HOOK;
use super::yaml::{YamlNode, YamlValue};
use imgsync_oci::RegistryName;
use imgsync_oci::secret::Secret;

/// Minimum length of a secret in characters: whoever knows it can make imgsync ask the registry.
const MIN_SECRET_CHARS: usize = 16;
/// Maximum length of a name in characters.
const MAX_NAME_CHARS: usize = 64;
/// Query parameter that carries the secret of senders that can set no header.
pub const SECRET_PARAMETER: &str = "secret";

/// A hook: the notifications of one registry.
#[derive(Clone, Debug, PartialEq)]
pub struct HookConfig {
    /// The registry, by the name that rules use.
    pub registry: RegistryName,
    /// Shape of the notifications.
    pub kind: HookKind,
    /// How the sender proves itself.
    pub auth: HookAuth,
    /// Names of the rules that it may trigger; if empty, all that read from the registry.
    pub rules: Vec<String>,
}

/// Shape of notifications, named after their sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookKind {
    /// Notifications of distribution (docker-registry), and of all that speak them.
    Distribution,
    /// Harbor, default payload and CloudEvents.
    Harbor,
    /// Docker Hub.
    DockerHub,
    /// Quay.
    Quay,
    /// GitHub packages.
    GitHub,
    /// The registry of a GitLab installation.
    GitLab,
    /// Azure Container Registry.
    Acr,
    /// Google Artifact Registry, by a push subscription of Pub/Sub.
    ArtifactRegistry,
    /// Amazon ECR, by EventBridge.
    Ecr,
    /// zot.
    Zot,
    /// Gitea and Forgejo.
    Gitea,
    /// `{"image": "…"}`, for programs of one's own.
    Generic,
}

impl HookKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [HookKind; 12] = [
        HookKind::Distribution,
        HookKind::Harbor,
        HookKind::DockerHub,
        HookKind::Quay,
        HookKind::GitHub,
        HookKind::GitLab,
        HookKind::Acr,
        HookKind::ArtifactRegistry,
        HookKind::Ecr,
        HookKind::Zot,
        HookKind::Gitea,
        HookKind::Generic,
    ];

    /// Returns the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            HookKind::Distribution => "distribution",
            HookKind::Harbor => "harbor",
            HookKind::DockerHub => "docker-hub",
            HookKind::Quay => "quay",
            HookKind::GitHub => "github",
            HookKind::GitLab => "gitlab",
            HookKind::Acr => "acr",
            HookKind::ArtifactRegistry => "artifact-registry",
            HookKind::Ecr => "ecr",
            HookKind::Zot => "zot",
            HookKind::Gitea => "gitea",
            HookKind::Generic => "generic",
        }
    }

    /// Returns how its senders prove themselves, unless the configuration says otherwise: the best that they can do.
    fn default_method(self) -> HookAuthMethod {
        match self {
            HookKind::GitHub | HookKind::Gitea => HookAuthMethod::Hmac,
            HookKind::DockerHub | HookKind::Quay | HookKind::ArtifactRegistry => HookAuthMethod::Query,
            HookKind::Distribution
            | HookKind::Harbor
            | HookKind::GitLab
            | HookKind::Acr
            | HookKind::Ecr
            | HookKind::Zot
            | HookKind::Generic => HookAuthMethod::Header,
        }
    }

    /// Returns the header of its signature.
    fn signature_header(self) -> HeaderName {
        match self {
            HookKind::Gitea => HeaderName::from_static("x-gitea-signature"),
            _ => HeaderName::from_static("x-hub-signature-256"),
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HookKind {
    type Err = String;

    fn from_str(text: &str) -> Result<HookKind, String> {
        HookKind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = HookKind::ALL.into_iter().map(HookKind::as_str).collect();
            format!("`{text}` is not a kind of hook: write one of {}", all.join(", "))
        })
    }
}

/// How the sender of a notification proves itself.
#[derive(Clone, Debug, PartialEq)]
pub enum HookAuth {
    /// HMAC-SHA256 of the body, in hexadecimal digits, in this header; with or without `sha256=` before it.
    Hmac {
        /// The header.
        header: HeaderName,
        /// The key.
        secret: Secret,
    },
    /// This header has the secret as its value, alone or after `Bearer `.
    Header {
        /// The header.
        header: HeaderName,
        /// The value.
        secret: Secret,
    },
    /// The secret is the password of basic authentication, of any user.
    Basic {
        /// The password.
        secret: Secret,
    },
    /// The secret is in the query of the URL, `?secret=…`.
    Query {
        /// The value.
        secret: Secret,
    },
    /// Not at all: only for senders on the same machine.
    None,
}

/// The ways of [`HookAuth`], without their secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HookAuthMethod {
    Hmac,
    Header,
    Basic,
    Query,
    None,
}

impl FromStr for HookAuthMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<HookAuthMethod, String> {
        match text {
            "hmac" => Ok(HookAuthMethod::Hmac),
            "header" => Ok(HookAuthMethod::Header),
            "basic" => Ok(HookAuthMethod::Basic),
            "query" => Ok(HookAuthMethod::Query),
            "none" => Ok(HookAuthMethod::None),
            _ => Err(format!("`{text}` is none of hmac, header, basic, query and none")),
        }
    }
}

impl HookAuth {
    /// Returns the word in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            HookAuth::Hmac { .. } => "hmac",
            HookAuth::Header { .. } => "header",
            HookAuth::Basic { .. } => "basic",
            HookAuth::Query { .. } => "query",
            HookAuth::None => "none",
        }
    }

    /// Describes where the sender shows its secret.
    pub fn describe(&self) -> String {
        match self {
            HookAuth::Hmac { header, .. } => format!("signature in {header}"),
            HookAuth::Header { header, .. } => format!("secret in {header}"),
            HookAuth::Basic { .. } => "secret as the password of basic authentication".to_owned(),
            HookAuth::Query { .. } => format!("secret at the end of the URL: ?{SECRET_PARAMETER}=…"),
            HookAuth::None => "no secret".to_owned(),
        }
    }

    /// Returns the header that carries the proof, if the configuration can name one.
    pub fn header(&self) -> Option<&HeaderName> {
        match self {
            HookAuth::Hmac { header, .. } | HookAuth::Header { header, .. } => Some(header),
            HookAuth::Basic { .. } | HookAuth::Query { .. } | HookAuth::None => None,
        }
    }

    /// Returns the secret, if there is one.
    pub fn secret(&self) -> Option<&Secret> {
        match self {
            HookAuth::Hmac { secret, .. }
            | HookAuth::Header { secret, .. }
            | HookAuth::Basic { secret }
            | HookAuth::Query { secret } => Some(secret),
            HookAuth::None => None,
        }
    }
}

/// Returns why hooks without a secret cannot be served on an address; `None` if they can.
pub fn unprotected_hook(hooks: &BTreeMap<String, HookConfig>, address: SocketAddr) -> Option<String> {
    let (name, _) = hooks.iter().find(|(_, hook)| hook.auth == HookAuth::None)?;
    (!address.ip().is_loopback())
        .then(|| format!("the hook {name} has no secret, and {address} is reachable from other machines"))
}

/// Reads `hooks`. `listen` is the address of `serve`, if it is configured.
pub(super) fn read(
    reader: &ValueReader,
    node: &YamlNode,
    rules: &[Rule],
    listen: Option<SocketAddr>,
) -> BTreeMap<String, HookConfig> {
    let entries = match &node.value {
        YamlValue::Map(entries) => entries.as_slice(),
        YamlValue::Null | YamlValue::Invalid => &[],
        _ => {
            reader.report(&node.at, format!("`hooks` is a mapping of names, and this is {}", node.type_name()));
            &[]
        }
    };
    let mut hooks = BTreeMap::new();
    for entry in entries {
        let is_name =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
        let is_valid = !entry.key.is_empty() && entry.key.len() <= MAX_NAME_CHARS && entry.key.bytes().all(is_name);
        if !is_valid {
            let hint = format!("it is a part of the URL: up to {MAX_NAME_CHARS} of a-z, 0-9, `-`, `_` and `.`");
            reader.report_with_hint(&entry.key_at, "this is not a name of a hook", hint);
        }
        if let Some(hook) = read_hook(reader, &entry.value, rules, listen)
            && is_valid
        {
            hooks.insert(entry.key.clone(), hook);
        }
    }
    hooks
}

fn read_hook(reader: &ValueReader, node: &YamlNode, rules: &[Rule], listen: Option<SocketAddr>) -> Option<HookConfig> {
    let fields = reader.fields(node, &HOOK)?;
    for name in ["registry", "kind"] {
        if fields.get(name).is_none() && !fields.has_misspelt(name) {
            reader.report(&fields.at, format!("`{name}` is missing"));
        }
    }
    let registry = fields.get("registry").and_then(|node| reader.parse::<RegistryName>(node));
    let kind = fields.get("kind").and_then(|node| reader.parse::<HookKind>(node));
    let auth = read_auth(reader, &fields, kind, listen);
    let named = fields.get("rules").map(|node| read_rules(reader, node, rules, registry.as_ref())).unwrap_or_default();
    let hook = HookConfig { registry: registry?, kind: kind?, auth: auth?, rules: named };
    let may_read = |rule: &Rule| match &rule.source {
        RuleSource::Repositories(pattern) => *pattern.registry() == hook.registry,
        // The sources of presets are known elsewhere.
        // So are the registries of images in files.
        RuleSource::Preset(_) | RuleSource::Images(_) => true,
        RuleSource::Digests(source) => source.registry == hook.registry,
        RuleSource::Layout(_) | RuleSource::Archive(..) => false,
    };
    // What is wrong with the rules themselves is reported there.
    if fields.get("rules").is_none() && !rules.is_empty() && !rules.iter().any(may_read) {
        let hint = "write the registry as the rules write it in `from`; the sender's own name for itself may differ";
        let at = fields.get("registry").map_or(&fields.at, |node| &node.at);
        reader.report_with_hint(at, format!("no rule reads from {}", hook.registry), hint);
    }
    Some(hook)
}

fn read_auth(
    reader: &ValueReader,
    fields: &SectionFields<'_>,
    kind: Option<HookKind>,
    listen: Option<SocketAddr>,
) -> Option<HookAuth> {
    let method = match fields.get("auth") {
        Some(node) => reader.parse::<HookAuthMethod>(node)?,
        None => kind?.default_method(),
    };
    let header = match fields.get("header") {
        Some(node) => {
            if !matches!(method, HookAuthMethod::Hmac | HookAuthMethod::Header) {
                reader.report(&node.at, "`header` is for `auth: hmac` and `auth: header`");
            }
            let text = reader.text(node)?;
            match text.parse::<HeaderName>() {
                Ok(header) => Some(header),
                Err(_) => {
                    reader.report_value(node, format!("`{text}` is not the name of a header"), None);
                    return None;
                }
            }
        }
        None => None,
    };
    let secret = match fields.get("secret") {
        Some(node) => Some(read_secret(reader, node)?),
        None => None,
    };
    if method == HookAuthMethod::None {
        let node = fields.get("auth");
        let at = node.map_or(&fields.at, |node| &node.at);
        if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
            let why = format!("a hook without a secret cannot be served on {listen}: other machines reach it");
            reader.report_with_hint(at, why, "write a `secret`; `openssl rand -hex 32` makes one");
            return None;
        }
        if secret.is_some() {
            reader.report(at, "`auth: none` and a `secret` contradict each other");
            return None;
        }
        return Some(HookAuth::None);
    }
    let Some(secret) = secret else {
        let hint = "whoever knows it can make imgsync look for images: `openssl rand -hex 32` makes one; it is another \
                    than `serve: {token: …}`";
        if !fields.has_misspelt("secret") {
            reader.report_with_hint(&fields.at, "`secret` is missing", hint);
        }
        return None;
    };
    let authorization = HeaderName::from_static("authorization");
    Some(match method {
        HookAuthMethod::Hmac => {
            let usual = kind.map_or(HookKind::Generic.signature_header(), HookKind::signature_header);
            HookAuth::Hmac { header: header.unwrap_or(usual), secret }
        }
        HookAuthMethod::Header => HookAuth::Header { header: header.unwrap_or(authorization), secret },
        HookAuthMethod::Basic => HookAuth::Basic { secret },
        HookAuthMethod::Query => HookAuth::Query { secret },
        HookAuthMethod::None => HookAuth::None,
    })
}

fn read_secret(reader: &ValueReader, node: &YamlNode) -> Option<Secret> {
    let secret = reader.secret(node)?;
    let text = secret.expose();
    if text.chars().count() < MIN_SECRET_CHARS {
        let hint = "`openssl rand -hex 32` makes one";
        let why = format!("a secret of fewer than {MIN_SECRET_CHARS} characters can be guessed");
        reader.report_with_hint(&node.at, why, hint);
        return None;
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        reader.report(&node.at, "a secret has no spaces at its ends, and no line breaks");
        return None;
    }
    Some(secret)
}

fn read_rules(reader: &ValueReader, node: &YamlNode, rules: &[Rule], registry: Option<&RegistryName>) -> Vec<String> {
    let mut named = Vec::new();
    for item in reader.one_or_many(node) {
        let Some(name) = reader.text(item) else { continue };
        let Some(rule) = rules.iter().find(|rule| rule.title() == name) else {
            let all: Vec<String> = rules.iter().take(10).map(Rule::title).collect();
            let hint = if all.is_empty() {
                "there are no rules".to_owned()
            } else {
                format!("the rules are {}", all.join(", "))
            };
            reader.report_value(item, format!("no rule has the name `{name}`"), Some(hint));
            continue;
        };
        let read = match &rule.source {
            RuleSource::Repositories(pattern) => Some(pattern.registry()),
            RuleSource::Digests(source) => Some(&source.registry),
            RuleSource::Preset(_) | RuleSource::Images(_) | RuleSource::Layout(_) | RuleSource::Archive(..) => None,
        };
        if let (Some(read), Some(registry)) = (read, registry)
            && read != registry
        {
            reader.report_value(item, format!("the rule `{name}` reads from {read}, not from {registry}"), None);
            continue;
        }
        if rule.source.is_local() {
            let why = format!("the rule `{name}` does not read from a registry, of which a hook can tell");
            reader.report_value(item, why, None);
            continue;
        }
        named.push(name.to_owned());
    }
    named
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigFile};
    use super::{HookAuth, HookKind};

    const RULES: &str =
        "rules: [{name: apps, from: r.example/apps/**, to: t.example}, {from: s.example/a, to: t.example}]\n";

    fn read(hooks: &str) -> Result<Config, String> {
        let text = format!("{RULES}hooks:\n{hooks}\n");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    #[test]
    fn hooks_are_read_and_shown_without_their_secrets() {
        let config = read(
            "  pushes: {registry: r.example, kind: distribution, secret: hush-hush-hush-hush, rules: apps}
  signed: {registry: r.example, kind: generic, auth: hmac, secret: hush-hush-hush-hush}
  hub: {registry: s.example, kind: docker-hub, secret: hush-hush-hush-hush}
  local: {registry: s.example, kind: zot, auth: none}",
        )
        .unwrap();
        let hook = &config.hooks["pushes"];
        assert_eq!((hook.kind, hook.rules.as_slice()), (HookKind::Distribution, &["apps".to_owned()][..]));
        assert_eq!(hook.auth.header().unwrap(), "authorization");
        assert_eq!(config.hooks["signed"].auth.header().unwrap(), "x-hub-signature-256");
        assert_eq!(config.hooks["signed"].auth.describe(), "signature in x-hub-signature-256");
        assert_eq!(config.hooks["hub"].auth.describe(), "secret at the end of the URL: ?secret=…");
        assert!(matches!(config.hooks["hub"].auth, HookAuth::Query { .. }));
        let shown = config.to_yaml_redacted();
        assert!(shown.contains("kind: docker-hub") && !shown.contains("hush"), "{shown}");
        assert!(shown.contains("header: x-hub-signature-256") && shown.contains("rules: [apps]"), "{shown}");
    }

    #[test]
    fn what_is_wrong_with_a_hook_is_said_with_its_line_and_without_its_secret() {
        for (written, wanted) in [
            ("  a: {registry: r.example, kind: distribution}", "`secret` is missing"),
            ("  a: {registry: r.example, kind: distribution, secret: hush}", "can be guessed"),
            ("  a: {registry: r.example, kind: docker, secret: hush-hush-hush-hush}", "is not a kind of hook"),
            ("  a: {kind: zot, secret: hush-hush-hush-hush}", "`registry` is missing"),
            ("  a: {registry: x.example, kind: zot, secret: hush-hush-hush-hush}", "no rule reads from x.example"),
            (
                "  a: {registry: r.example, kind: zot, secret: hush-hush-hush-hush, rules: b}",
                "no rule has the name `b`",
            ),
            ("  a: {registry: s.example, kind: zot, secret: hush-hush-hush-hush, rules: apps}", "reads from r.example"),
            ("  a: {registry: r.example, kind: zot, auth: none, secret: hush-hush-hush-hush}", "contradict"),
            ("  a/b: {registry: r.example, kind: zot, secret: hush-hush-hush-hush}", "not a name of a hook"),
            ("  a: {registry: r.example, kind: zot, auth: query, header: x, secret: hush-hush-hush-hush}", "is for"),
            ("  a: {registry: r.example, kind: zot, header: 'x y', secret: hush-hush-hush-hush}", "name of a header"),
            ("  a: {registry: r.example, kind: zot, auth: none}\nserve: {listen: '0.0.0.0:80'}", "without a secret"),
        ] {
            let said = read(written).unwrap_err();
            assert!(said.contains(wanted) && said.contains("c.yaml:3") && !said.contains("hush"), "{said}");
        }
    }
}
