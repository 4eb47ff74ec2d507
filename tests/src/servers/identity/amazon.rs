//! Amazon's services: instance metadata (IMDSv2), the agent of containers, and STS.

use axum::http::Method;
use jiff::{Timestamp, ToSpan as _};
use serde_json::json;

use super::{Answer, Asked, IdentityGrants, json, text};

/// Name of the role of the instance.
const ROLE: &str = "mirror-role";
/// The role that a web identity assumes.
const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/mirror";
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
    if asked.field("Action") != "AssumeRoleWithWebIdentity" {
        return error(400, "InvalidAction", "Could not find operation for version 2011-06-15");
    }
    if !asked.header("authorization").is_empty() {
        return error(400, "InvalidQueryParameter", "this operation is not signed");
    }
    let name = asked.field("RoleSessionName");
    if !(2..=64).contains(&name.len()) {
        return error(400, "ValidationError", "roleSessionName");
    }
    if asked.field("WebIdentityToken") != grants.workload_token {
        return error(400, "InvalidIdentityToken", "Incorrect token audience");
    }
    if asked.refuses || asked.field("RoleArn") != ROLE_ARN {
        return error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    }
    let (id, secret, token) = grants.keys;
    let body = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}\
         </SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{}</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        expiration(grants)
    );
    let (status, _, body) = text(200, body);
    (status, vec![("content-type", "text/xml".to_owned())], body)
}
