//! Amazon's services: instance metadata (IMDSv2), the agent of containers, and STS.

use axum::http::Method;
use jiff::{Timestamp, ToSpan as _};
use ring::hmac;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Answer, Asked, IdentityGrants, json, text};

/// Name of the role of the instance.
const ROLE: &str = "mirror-role";
/// The role that a web identity assumes.
const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/mirror";
/// Region of the token service. It refuses signatures for another one.
const STS_REGION: &str = "eu-central-1";
/// What the trust policy of the role requires of other keys.
const EXTERNAL_ID: &str = "mirror-1";
const SESSION: &str = "AQAEAsession==";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

pub(super) fn answer(asked: &Asked<'_>, grants: &IdentityGrants) -> Option<Answer> {
    match (asked.method, asked.path) {
        (&Method::PUT, "/latest/api/token") => Some(session(asked)),
        (&Method::GET, path) if path.starts_with(ROLES) => Some(instance(asked, grants)),
        (&Method::GET, "/v1/credentials") => Some(container(asked, grants)),
        (&Method::POST, "/") => Some(sts(asked, grants)),
        _ => None,
    }
}

fn keys(grants: &IdentityGrants) -> serde_json::Value {
    let (id, secret, token) = grants.keys;
    json!({"AccessKeyId": id, "SecretAccessKey": secret, "Token": token, "Expiration": expiration(grants)})
}

fn expiration(grants: &IdentityGrants) -> String {
    let end = Timestamp::now() + (grants.lifetime as i64).seconds();
    end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn session(asked: &Asked<'_>) -> Answer {
    let seconds: Option<u32> = asked.header("x-aws-ec2-metadata-token-ttl-seconds").parse().ok();
    match seconds {
        _ if !asked.header("x-forwarded-for").is_empty() => text(403, "forbidden"),
        Some(1..=21600) => text(200, SESSION),
        _ => text(400, "bad request"),
    }
}

fn instance(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    if asked.header("x-aws-ec2-metadata-token") != SESSION {
        return text(401, "unauthorized");
    }
    match asked.path.strip_prefix(ROLES) {
        Some("") if asked.refuses => text(404, "not found"),
        Some("") => text(200, ROLE),
        Some(ROLE) => {
            let mut answer = keys(grants);
            answer["Code"] = json!("Success");
            answer["Type"] = json!("AWS-HMAC");
            json(200, &answer)
        }
        _ => text(404, "not found"),
    }
}

fn container(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    match asked.header("authorization") == grants.workload_token && !asked.refuses {
        true => json(200, &keys(grants)),
        false => {
            let message = "(AccessDeniedException): Unauthorized Exception! EKS does not have permissions to assume the associated role.";
            json(400, &json!({"code": "AccessDeniedException", "message": message}))
        }
    }
}

fn sts(asked: &Asked<'_>, grants: &IdentityGrants) -> Answer {
    let error = |status: u16, code: &str, message: &str| {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error><RequestId>1</RequestId></ErrorResponse>"
        );
        let (status, _, body) = text(status, body);
        (status, vec![("content-type", "text/xml".to_owned())], body)
    };
    if !asked.is_form() || asked.field("Version") != "2011-06-15" {
        return error(400, "InvalidAction", "Could not find operation");
    }
    let action = asked.field("Action");
    let is_signed = match action.as_str() {
        "AssumeRole" => true,
        "AssumeRoleWithWebIdentity" => false,
        _ => return error(400, "InvalidAction", "Could not find operation for version 2011-06-15"),
    };
    if is_signed && !asked.header("authorization").contains(&format!("/{STS_REGION}/sts/aws4_request,")) {
        return error(403, "SignatureDoesNotMatch", "Credential should be scoped to a valid region.");
    }
    if is_signed && !has_right_signature(asked, grants) {
        return error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match");
    }
    if !is_signed && !asked.header("authorization").is_empty() {
        return error(400, "InvalidQueryParameter", "this operation is not signed");
    }
    let name = asked.field("RoleSessionName");
    if !(2..=64).contains(&name.len()) {
        return error(400, "ValidationError", "roleSessionName");
    }
    if !is_signed && asked.field("WebIdentityToken") != grants.workload_token {
        return error(400, "InvalidIdentityToken", "Incorrect token audience");
    }
    let is_trusted = !is_signed || asked.field("ExternalId") == EXTERNAL_ID;
    if asked.refuses || !is_trusted || asked.field("RoleArn") != ROLE_ARN {
        return error(403, "AccessDenied", &format!("Not authorized to perform sts:{action}"));
    }
    let (id, secret, token) = grants.keys;
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>\
         <Expiration>{}</Expiration></Credentials></{action}Result></{action}Response>",
        expiration(grants)
    );
    let (status, _, body) = text(200, body);
    (status, vec![("content-type", "text/xml".to_owned())], body)
}

/// Checks a signature (Signature Version 4).
fn has_right_signature(asked: &Asked<'_>, grants: &IdentityGrants) -> bool {
    let (id, secret, session) = grants.keys;
    let given = asked.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").unwrap_or_default();
    let part =
        |name: &str| given.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    let (date, names) = (asked.header("x-amz-date"), part("SignedHeaders"));
    let Some(day) = date.get(..8) else { return false };
    let scope = format!("{day}/{STS_REGION}/sts/aws4_request");
    let mut canonical = "POST\n/\n\n".to_owned();
    for name in names.split(';') {
        canonical.push_str(&format!("{name}:{}\n", asked.header(name)));
    }
    canonical.push_str(&format!("\n{names}\n{}", hex::encode(Sha256::digest(asked.body))));
    let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
    let mac =
        |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec();
    let first = format!("AWS4{secret}").into_bytes();
    let key = [day, STS_REGION, "sts", "aws4_request"].iter().fold(first, |key, part| mac(&key, part));
    let right = hex::encode(mac(&key, &format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}")));
    part("Credential") == format!("{id}/{scope}")
        && asked.header("x-amz-security-token") == session
        && ["host", "x-amz-date", "x-amz-security-token"]
            .iter()
            .all(|name| names.split(';').any(|found| found == *name))
        && part("Signature") == right
}
