//! Reads certificates in common file formats.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Label of OpenSSL's own format, which adds trust settings to a certificate.
const TRUSTED: &str = "TRUSTED CERTIFICATE";
/// Old label of plain certificates.
const X509: &str = "X509 CERTIFICATE";

/// Converts the certificates of a file to PEM: keeps those in PEM, encodes one in DER. The error says what the file is
/// instead, and how to extract a certificate.
pub fn certificates_as_pem(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let text = String::from_utf8_lossy(&bytes);
    let labels: Vec<&str> =
        text.split("-----BEGIN ").skip(1).filter_map(|rest| rest.split_once("-----").map(|(label, _)| label)).collect();
    if labels.is_empty() {
        return pem_from_der(&bytes);
    }
    if labels.contains(&TRUSTED) {
        return Err(format!(
            "it holds a {TRUSTED}, OpenSSL's own form: `openssl x509 -in FILE -out ca.pem` makes a plain one"
        ));
    }
    if !labels.iter().any(|label| *label == "CERTIFICATE" || *label == X509) {
        return Err(format!("it holds {} and no CERTIFICATE", labels.join(", ")));
    }
    let pem = text.replace(&format!("-----BEGIN {X509}-----"), "-----BEGIN CERTIFICATE-----");
    let pem = pem.replace(&format!("-----END {X509}-----"), "-----END CERTIFICATE-----");
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        certificate.map_err(|error| format!("it is damaged: {error}"))?;
    }
    Ok(pem.into_bytes())
}

fn pem_from_der(bytes: &[u8]) -> Result<Vec<u8>, String> {
    match bytes {
        [] => return Err("it is empty".to_owned()),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err("it is a text in UTF-16: save it as UTF-8, or as ASCII".to_owned());
        }
        // A SEQUENCE (X.690, 8.9), the start of all these formats.
        [0x30, ..] => {}
        _ => return Err("it is neither PEM, which begins with -----BEGIN CERTIFICATE-----, nor DER".to_owned()),
    }
    if webpki::anchor_from_trusted_cert(&CertificateDer::from(bytes)).is_err() {
        return Err(
            "it is DER, but no certificate; `openssl pkcs12 -in FILE -nokeys` takes the certificates out of a PKCS#12 \
                    file, `openssl pkcs7 -inform DER -in FILE -print_certs` out of one of PKCS#7"
                .to_owned(),
        );
    }
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in STANDARD.encode(bytes).as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    Ok(pem.into_bytes())
}
