//! Certificates that a user names by `ca:`, beside the system's.
//!
//! What `openssl req -x509` makes is an authority and a server's certificate in one, and many private registries have such a
//! one. webpki refuses it as a server's (RFC 5280, 4.2.1.9); the programs that people come from take it where it is named, and
//! so does this.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::error::{Class, Error, Result};

/// How TLS is spoken where these are trusted as well as the system's. `identity`: a client certificate and its key, as PEM.
pub(crate) fn trusting(
    system: &[CertificateDer<'static>],
    own: &[Vec<u8>],
    identity: Option<&str>,
    http1: bool,
) -> Result<ClientConfig> {
    let invalid = |what: &str, why: String| Error::new(Class::Invalid, format!("setting up connections: {what}"), why);
    let mut named = Vec::new();
    for pem in own {
        let before = named.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            named.push(certificate.map_err(|error| invalid("`ca`", error.to_string()))?);
        }
        if named.len() == before {
            return Err(invalid("`ca`", "it holds no certificate in PEM".to_owned()));
        }
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.iter().cloned());
    for certificate in &named {
        roots.add(certificate.clone()).map_err(|error| invalid("`ca`", error.to_string()))?;
    }
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build();
    let verifier = verifier.map_err(|error| invalid("`ca`", error.to_string()))?;
    let config =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Trusting { verifier, named }));
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(pem) => {
            let what = "`client_cert` and `client_key`";
            let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| invalid(what, error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
            let key = key.map_err(|error| invalid(what, error.to_string()))?;
            config.with_client_auth_cert(chain, key).map_err(|error| invalid(what, error.to_string()))?
        }
    };
    let protocols: &[&[u8]] = if http1 { &[b"http/1.1"] } else { &[b"h2", b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// webpki's checks; a named certificate may be the server's own besides.
#[derive(Debug)]
struct Trusting {
    verifier: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // By then its time was found to be right.
            Err(error) if is_of_an_authority(&error) && self.named.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whether all that is wrong with a server's certificate is that it may sign others.
fn is_of_an_authority(error: &TlsError) -> bool {
    let TlsError::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error else { return false };
    inner.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}
