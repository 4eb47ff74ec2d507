//! AWS request signatures (IAM user guide, "Create a signed AWS API request"; Signature Version 4): HMAC-SHA256 over a
//! POST without a query. Amazon's library would add dozens of crates, and `reqsign-aws-v4`, the smallest other one, twelve.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::providers::identity::SigningKeys;

/// The signed parts of a request.
pub(super) struct SignableRequest<'a> {
    /// The path, with its leading slash and without anything to escape.
    pub(super) path: &'a str,
    /// Names in lower case, in alphabetical order.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

/// Returns the `Authorization` header of a POST. `date` is the value of `x-amz-date`: `20150830T123600Z`.
pub(super) fn authorization(
    request: &SignableRequest<'_>,
    keys: &SigningKeys,
    date: &str,
    region: &str,
    service: &str,
) -> String {
    let day = date.split('T').next().unwrap_or_default();
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = request.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let body = hex::encode(Sha256::digest(request.body));
    let canonical = format!("POST\n{}\n\n{lines}\n{names}\n{body}", request.path);
    let canonical = hex::encode(Sha256::digest(canonical));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
    let first = format!("AWS4{}", keys.secret.expose()).into_bytes();
    let key = [day, region, service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part));
    let signature = hex::encode(mac(&key, &to_sign));
    format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.id)
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC accepts keys of any length.
    #[allow(clippy::expect_used)]
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.chain_update(text).finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_oci::secret::Secret;

    #[test]
    fn it_is_what_amazons_test_suite_has() {
        let keys = SigningKeys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
            lifetime: None,
            origin: String::new(),
        };
        let date = "20150830T123600Z";
        let signed = |headers: &[(&str, &str)], body: &str| {
            let request = SignableRequest { path: "/", headers, body: body.as_bytes() };
            authorization(&request, &keys, date, "us-east-1", "service")
        };
        // aws-sig-v4-test-suite: post-vanilla, post-x-www-form-urlencoded.
        let host = ("host", "example.amazonaws.com");
        assert_eq!(
            signed(&[host, ("x-amz-date", date)], ""),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert!(
            signed(&[form, host, ("x-amz-date", date)], "Param1=value1")
                .ends_with("Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a")
        );
    }
}
