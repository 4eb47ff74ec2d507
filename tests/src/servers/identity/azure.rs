//! Azure's services: instance metadata, and the token service of Entra.

use axum::http::Method;
use serde_json::json;

use super::{Answer, Asked, IdentityGrants, json};

const RESOURCE: &str = "https://containerregistry.azure.net";

pub(super) fn answer(asked: &Asked<'_>, grants: &IdentityGrants) -> Option<Answer> {
    match (asked.method, asked.path) {
        (&Method::GET, "/metadata/identity/oauth2/token") => Some(metadata(asked, grants)),
        (&Method::POST, "/tenant-1/oauth2/v2.0/token") => Some(entra(asked, grants)),
        _ => None,
    }
}

fn refusal(status: u16, code: &str, description: &str) -> Answer {
    json(status, &json!({"error": code, "error_description": description}))
}

fn metadata(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    if asked.header("metadata") != "true" || !asked.header("x-forwarded-for").is_empty() {
        return refusal(400, "invalid_request", "Required metadata header not specified");
    }
    if asked.parameter("api-version") != "2018-02-01" {
        return refusal(400, "bad_request_102", "The specified version is not available");
    }
    let client = asked.parameter("client_id");
    if asked.refuses || grants.client_id.is_some_and(|wanted| wanted != client) {
        return refusal(400, "invalid_request", "Identity not found");
    }
    if asked.parameter("resource") != RESOURCE {
        return refusal(400, "invalid_resource", "AADSTS500011: The resource principal was not found in the tenant");
    }
    // Numbers are strings there.
    let seconds = grants.lifetime.to_string();
    json(
        200,
        &json!({"access_token": grants.access_token, "expires_in": seconds, "resource": RESOURCE, "token_type": "Bearer"}),
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
