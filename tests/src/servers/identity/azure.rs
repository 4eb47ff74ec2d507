//! Azure's services: instance metadata, and the token service of Entra.

use axum::http::Method;
use jiff::Timestamp;
use serde_json::json;

use super::{Answer, Asked, IdentityGrants, json};

/// Secret of the managed identity of an app.
pub const APP_SECRET: &str = "853b9a84-app-secret";

const RESOURCE: &str = "https://containerregistry.azure.net";
/// Resource of tokens that Google's services exchange.
const FEDERATION_RESOURCE: &str = "api://federation";

pub(super) fn answer(asked: &Asked<'_>, grants: &IdentityGrants) -> Option<Answer> {
    match (asked.method, asked.path) {
        (&Method::GET, "/metadata/identity/oauth2/token") => Some(metadata(asked, grants)),
        (&Method::GET, "/msi/token") => Some(app(asked, grants)),
        (&Method::POST, "/tenant-1/oauth2/v2.0/token") => Some(entra(asked, grants)),
        _ => None,
    }
}

fn refusal(status: u16, code: &str, description: &str) -> Answer {
    json(status, &json!({"error": code, "error_description": description}))
}

fn metadata(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    if !asked.header("metadata").eq_ignore_ascii_case("true") || !asked.header("x-forwarded-for").is_empty() {
        return refusal(400, "invalid_request", "Required metadata header not specified");
    }
    if asked.parameter("api-version") != "2018-02-01" {
        return refusal(400, "bad_request_102", "The specified version is not available");
    }
    let client = asked.parameter("client_id");
    if asked.refuses || grants.client_id.is_some_and(|wanted| wanted != client) {
        return refusal(400, "invalid_request", "Identity not found");
    }
    let resource = asked.parameter("resource");
    let token = match resource.as_str() {
        RESOURCE => grants.access_token,
        FEDERATION_RESOURCE => grants.workload_token,
        _ => return unknown_resource(),
    };
    // Numbers are strings there.
    let seconds = grants.lifetime.to_string();
    json(200, &json!({"access_token": token, "expires_in": seconds, "resource": resource, "token_type": "Bearer"}))
}

fn unknown_resource() -> Answer {
    refusal(400, "invalid_resource", "AADSTS500011: The resource principal was not found in the tenant")
}

/// The service of App Service, Functions and Container Apps.
fn app(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    if asked.header("x-identity-header") != APP_SECRET {
        return json(401, &json!({"statusCode": 401, "message": "X-IDENTITY-HEADER is not valid"}));
    }
    if asked.parameter("api-version") != "2019-08-01" {
        return json(400, &json!({"statusCode": 400, "message": "Unsupported api-version"}));
    }
    let client = asked.parameter("client_id");
    if asked.refuses || grants.client_id.is_some_and(|wanted| wanted != client) {
        return json(
            400,
            &json!({"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found"}),
        );
    }
    if asked.parameter("resource") != RESOURCE {
        return unknown_resource();
    }
    let ends = Timestamp::now().as_second() + grants.lifetime as i64;
    json(
        200,
        &json!({
            "access_token": grants.access_token, "expires_on": ends.to_string(), "resource": RESOURCE,
            "token_type": "Bearer", "client_id": client,
        }),
    )
}

fn entra(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    let right = [
        ("grant_type", "client_credentials"),
        ("scope", "https://containerregistry.azure.net/.default"),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
    ];
    if let Some((wrong, _)) = right.iter().find(|(name, value)| asked.field(name) != *value) {
        return refusal(400, "invalid_request", &format!("AADSTS900144: The request body must contain: '{wrong}'."));
    }
    if asked.refuses || grants.client_id.is_some_and(|wanted| wanted != asked.field("client_id")) {
        return refusal(400, "unauthorized_client", "AADSTS700016: Application was not found in the directory");
    }
    if !asked.is_form() || asked.field("client_assertion") != grants.workload_token {
        return refusal(401, "invalid_client", "AADSTS700211: No matching federated identity record found");
    }
    json(200, &json!({"access_token": grants.access_token, "expires_in": grants.lifetime, "token_type": "Bearer"}))
}
