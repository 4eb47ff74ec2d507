//! Credentials of a listing API, and the token that some exchange them for.

use std::time::Instant;

use ::http::HeaderValue;

use super::{CredentialUse, ProviderApi, TokenExchange};
use crate::auth::{Authorization, basic_header};
use crate::credentials::Credential;
use crate::{is_loopback, ssrf};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::secret::Secret;

/// Result of exchanging a credential for a token.
#[derive(Debug, Default)]
pub(super) enum LoginState {
    #[default]
    None,
    LoggedIn(Credential, Authorization),
    /// Refused credentials are not sent again: too many failures lock an account.
    Refused(Credential, String),
}

/// An authorization, and whether it is a token that can expire.
#[derive(Debug, Clone)]
pub(super) struct ApiAuthorization {
    pub(super) authorization: Authorization,
    pub(super) can_expire: bool,
}

impl ProviderApi {
    /// Returns the authorization to send. `stale` was refused and is not used again.
    pub(super) async fn get_authorization(
        &self,
        stale: Option<&Authorization>,
        operation: &str,
    ) -> Result<Option<ApiAuthorization>> {
        let Some(credential) = self.registry_side.find_credential(self.credential_index()).await? else {
            return Ok(None);
        };
        let Credential::Basic { username, password } = &credential else { return Ok(None) };
        self.require_tls(operation)?;
        let header = match self.state.listing.credential_use(username) {
            CredentialUse::Unaccepted => return Ok(None),
            CredentialUse::Basic => basic_header(username, password)?,
            CredentialUse::Bearer => bearer(password, operation)?,
            CredentialUse::Exchange(exchange) => {
                let authorization = self.log_in(exchange, &credential, (username, password), stale).await?;
                return Ok(Some(ApiAuthorization { authorization, can_expire: true }));
            }
        };
        let authorization = Authorization { header, since: Instant::now(), with_credentials: true };
        Ok(Some(ApiAuthorization { authorization, can_expire: false }))
    }

    /// Refuses to send a password over plain HTTP if the registry uses TLS, except to this machine.
    pub(super) fn require_tls(&self, operation: &str) -> Result<()> {
        let (api, registry) = (&self.api_side.registry.base, &self.registry_side.registry.base);
        let is_here = api.host_str().is_some_and(is_loopback);
        if api.scheme() == "http" && registry.scheme() == "https" && !is_here {
            let detail = format!("credentials would be sent over plain HTTP to {}", ssrf::origin(api));
            return Err(Error::new(ErrorKind::Insecure, operation, detail)
                .with_hint(format!("write `api:` of {} with https://", self.registry())));
        }
        Ok(())
    }

    /// Exchanges a credential for a token, once for all requests until the token is stale.
    async fn log_in(
        &self,
        exchange: &dyn TokenExchange,
        credential: &Credential,
        (username, password): (&str, &Secret),
        stale: Option<&Authorization>,
    ) -> Result<Authorization> {
        let operation = format!("logging in at {} for {}", ssrf::origin(&self.api_side.registry.base), self.registry());
        let mut login = self.state.login.lock().await;
        match &*login {
            LoginState::LoggedIn(with, authorization)
                if with == credential && stale.is_none_or(|stale| stale.since < authorization.since) =>
            {
                return Ok(authorization.clone());
            }
            LoginState::Refused(with, detail) if with == credential => return Err(self.login_error(&operation, detail)),
            _ => {}
        }
        match self.api_side.with_retries(|| exchange.request_token(self, username, password, &operation)).await {
            Ok(token) => {
                let authorization = Authorization {
                    header: bearer(&token, &operation)?,
                    since: Instant::now(),
                    with_credentials: true,
                };
                *login = LoginState::LoggedIn(credential.clone(), authorization.clone());
                Ok(authorization)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Refused) => {
                *login = LoginState::Refused(credential.clone(), error.message().to_owned());
                Err(self.login_error(&operation, error.message()))
            }
            Err(error) => Err(error),
        }
    }

    fn login_error(&self, operation: &str, detail: &str) -> Error {
        Error::new(ErrorKind::Denied, operation, detail)
            .with_registry(&self.api_side.registry.name)
            .with_hint(self.denied_hint(true))
    }
}

fn bearer(token: &Secret, operation: &str) -> Result<HeaderValue> {
    token.keep_masked();
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
        Error::new(ErrorKind::Invalid, operation, "the token holds characters that no header can carry")
    })?;
    header.set_sensitive(true);
    Ok(header)
}
