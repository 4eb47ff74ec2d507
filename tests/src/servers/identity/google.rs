//! Google's services: the metadata server, the token service of keys, the exchange of federated tokens, and the
//! impersonation of service accounts.

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{Timestamp, ToSpan as _};
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::{Answer, Asked, IdentityGrants, json, text};

/// Service account of the tests.
pub const SERVICE_ACCOUNT: &str = "mirror@project.iam.gserviceaccount.com";
/// Its key, which exists in these tests alone.
pub const SERVICE_ACCOUNT_KEY: &str = include_str!("service_account_key.pem");

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const FEDERATED: &str = "ya29.federated";
const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/ci";

pub(super) fn answer(asked: &Asked<'_>, grants: &IdentityGrants) -> Option<Answer> {
    let impersonation = format!("/v1/projects/-/serviceAccounts/{SERVICE_ACCOUNT}:generateAccessToken");
    match (asked.method, asked.path) {
        (&Method::GET, "/computeMetadata/v1/instance/service-accounts/default/token") => Some(metadata(asked, grants)),
        (&Method::POST, "/token") => Some(key(asked, grants)),
        (&Method::POST, "/v1/token") => Some(exchange(asked, grants)),
        (&Method::POST, path) if path == impersonation => Some(impersonate(asked, grants)),
        _ => None,
    }
}

fn token(asked: &Asked<'_>, grants: &IdentityGrants) -> Value {
    let text = match grants.every_token_differs {
        true => format!("{}-{}", grants.access_token, asked.number),
        false => grants.access_token.to_owned(),
    };
    json!({"access_token": text, "expires_in": grants.lifetime, "token_type": "Bearer"})
}

fn metadata(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    let (status, mut headers, body) = match asked.header("metadata-flavor") == "Google" {
        false => text(403, "Missing Metadata-Flavor:Google header."),
        true if !asked.header("x-forwarded-for").is_empty() => text(403, "X-Forwarded-For is not allowed"),
        true if asked.refuses => text(404, "the service account does not exist"),
        true => json(200, &token(asked, grants)),
    };
    headers.push(("metadata-flavor", "Google".to_owned()));
    (status, headers, body)
}

fn refusal(status: u16, code: &str, description: &str) -> Answer {
    json(status, &json!({"error": code, "error_description": description}))
}

/// Checks an assertion (RFC 7523) and its signature.
fn key(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    if !asked.is_form() || asked.field("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
        return refusal(400, "unsupported_grant_type", "Invalid grant_type");
    }
    let assertion = asked.field("assertion");
    match check_assertion(&assertion, &format!("{}/token", asked.origin)) {
        _ if asked.refuses => refusal(400, "invalid_grant", "Invalid grant: account not found"),
        Some(()) => json(200, &token(asked, grants)),
        None => refusal(400, "invalid_grant", "Invalid JWT Signature."),
    }
}

fn check_assertion(assertion: &str, audience: &str) -> Option<()> {
    let (signed, signature) = assertion.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
    let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(SERVICE_ACCOUNT_KEY.as_bytes()).ok()?;
    let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?;
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref());
    public.verify(signed.as_bytes(), &decode(signature)?).ok()?;
    let (issued, ends, now) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?, Timestamp::now().as_second());
    let is_now = (now - 60..=now + 1).contains(&issued) && ends > now && ends - issued <= 3600;
    let is_right = header["alg"] == "RS256"
        && header["kid"] == "key-1"
        && claims["iss"] == SERVICE_ACCOUNT
        && claims["aud"] == audience
        && claims["scope"] == SCOPE;
    (is_now && is_right).then_some(())
}

/// Exchanges a federated token (RFC 8693).
fn exchange(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    let right = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("audience", AUDIENCE),
        ("scope", SCOPE),
    ];
    if let Some((wrong, _)) = right.iter().find(|(name, value)| asked.field(name) != *value) {
        return refusal(400, "invalid_request", &format!("Invalid value for \"{wrong}\"."));
    }
    if !asked.is_form() || asked.field("subject_token") != grants.workload_token || asked.refuses {
        return refusal(403, "unauthorized_client", "The given credential is rejected by the attribute condition.");
    }
    let mut answer = token(asked, grants);
    answer["access_token"] = json!(FEDERATED);
    answer["issued_token_type"] = json!("urn:ietf:params:oauth:token-type:access_token");
    json(200, &answer)
}

fn impersonate(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    let body: Value = serde_json::from_str(asked.body).unwrap_or_default();
    if asked.header("authorization") != format!("Bearer {FEDERATED}")
        || asked.header("content-type") != "application/json"
    {
        return json(
            401,
            &json!({"error": {"code": 401, "message": "invalid credentials", "status": "UNAUTHENTICATED"}}),
        );
    }
    if body["scope"] != json!([SCOPE]) {
        return json(400, &json!({"error": {"code": 400, "message": "scope", "status": "INVALID_ARGUMENT"}}));
    }
    let end = Timestamp::now() + (grants.lifetime as i64).seconds();
    let end = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json(200, &json!({"accessToken": grants.access_token, "expireTime": end}))
}
