//! View of `registries`.

use std::ops::Not;

use serde::Serialize;

use super::super::{CredentialConfig, PullReserve, RegistryConfig, SecretUrl, StoreUrl};
use super::{MASK, YamlList, YamlNumber, YamlText, is_empty_list, yaml_list};
use imgsync_registry::providers::{CredentialSource, ListingMethod};

/// Address of a server. Shows that there is a login, but not the user: user and password are easily swapped.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum AddressView {
    /// Without a login.
    Url(YamlText),
    /// With a login.
    Login {
        url: YamlText,
        #[serde(flatten)]
        login: CredentialView,
    },
}

impl From<&SecretUrl> for AddressView {
    fn from(address: &SecretUrl) -> Self {
        AddressView::new(YamlText::new(address), address.login_parts())
    }
}

impl From<&StoreUrl> for AddressView {
    fn from(address: &StoreUrl) -> Self {
        AddressView::new(YamlText::new(address), address.login_parts())
    }
}

impl AddressView {
    fn new(url: YamlText, login_parts: (bool, bool)) -> AddressView {
        match login_parts {
            (false, false) => AddressView::Url(url),
            (username, password) => {
                let mask = |is_set: bool| is_set.then(|| YamlText::new(MASK));
                // A user alone is refused when it is read.
                let login = CredentialView {
                    username: mask(username),
                    password: mask(username || password),
                    identity_token: None,
                };
                AddressView::Login { url, login }
            }
        }
    }
}

/// View of a credential, masked.
#[derive(Default, Serialize)]
pub(super) struct CredentialView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity_token: Option<YamlText>,
}

impl From<&CredentialConfig> for CredentialView {
    fn from(credential: &CredentialConfig) -> Self {
        match credential {
            CredentialConfig::Basic { password, .. } => CredentialView {
                username: Some(YamlText::new(MASK)),
                password: Some(YamlText::new(password)),
                identity_token: None,
            },
            CredentialConfig::IdentityToken(token) => {
                CredentialView { identity_token: Some(YamlText::new(token)), ..CredentialView::default() }
            }
        }
    }
}

/// A source of credentials, or accounts.
#[derive(Serialize)]
#[serde(untagged)]
enum CredentialsView {
    Source(YamlText),
    Accounts(Vec<CredentialView>),
}

/// A number or a percentage.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum AmountView {
    Count(u64),
    Percent(YamlText),
}

impl From<PullReserve> for AmountView {
    fn from(reserve: PullReserve) -> Self {
        match reserve {
            PullReserve::Count(count) => AmountView::Count(count),
            PullReserve::Percent(_) => AmountView::Percent(YamlText::new(reserve)),
        }
    }
}

/// View of a registry.
#[derive(Serialize)]
pub(super) struct RegistryView {
    #[serde(flatten)]
    credential: CredentialView,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<CredentialsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    mirrors: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    listing: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<AddressView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    ca: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cert: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<YamlText>,
    #[serde(skip_serializing_if = "Not::not")]
    insecure: bool,
    #[serde(skip_serializing_if = "Not::not")]
    http1: bool,
    #[serde(skip_serializing_if = "Not::not")]
    allow_private: bool,
    #[serde(skip_serializing_if = "Not::not")]
    create: bool,
    #[serde(skip_serializing_if = "is_empty_list")]
    allow_metadata: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_second: Option<YamlNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull_reserve: Option<AmountView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk: Option<u64>,
}

impl From<&RegistryConfig> for RegistryView {
    fn from(settings: &RegistryConfig) -> Self {
        let credential = match &settings.credential {
            Some(credential) => credential.into(),
            None => CredentialView {
                username: settings.username.as_ref().map(|_| YamlText::new(MASK)),
                ..CredentialView::default()
            },
        };
        let identity = settings.client_identity.as_ref();
        RegistryView {
            credential,
            credentials: match settings.credential_source {
                CredentialSource::Auto if settings.pull_credentials.is_empty() => None,
                CredentialSource::Auto => Some(CredentialsView::Accounts(
                    settings.pull_credentials.iter().map(CredentialView::from).collect(),
                )),
                source => Some(CredentialsView::Source(YamlText::new(source))),
            },
            endpoint: settings.endpoint.as_ref().map(YamlText::new),
            mirrors: yaml_list(&settings.mirrors),
            listing: (settings.listing != ListingMethod::Auto).then(|| YamlText::new(settings.listing)),
            api: settings.api.as_ref().map(YamlText::new),
            proxy: settings.proxy.as_ref().map(AddressView::from),
            tls: settings.plain_http.map(|plain| YamlText::new(if plain { "off" } else { "on" })),
            ca: yaml_list(&settings.ca),
            client_cert: identity.map(|identity| YamlText::new(&identity.certificate)),
            client_key: identity.map(|identity| YamlText::new(&identity.key)),
            insecure: settings.insecure,
            http1: settings.http1,
            allow_private: settings.allow_private,
            create: settings.create,
            allow_metadata: yaml_list(&settings.allow_metadata),
            requests_per_second: settings.requests_per_second.map(YamlNumber::from),
            concurrency: settings.concurrency,
            pull_reserve: settings.pull_reserve.map(AmountView::from),
            bandwidth: settings.bandwidth,
            egress: settings.egress.as_ref().map(YamlText::new),
            chunk: settings.chunk_size,
        }
    }
}
