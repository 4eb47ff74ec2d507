//! TLS verification with the certificates of `ca:`, besides the system's.
//!
//! `openssl req -x509` creates a certificate that is an authority and a server's at once, and many private registries
//! use one. webpki refuses it as a server's (RFC 5280, 4.2.1.9); comparable programs accept it where it is configured,
//! and so does this verifier.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
};

use imgsync_oci::error::{Error, ErrorKind, Result};

/// Returns the system's trusted authorities.
pub type SystemRoots = fn() -> &'static [CertificateDer<'static>];

/// Hint for authorities that are not trusted.
pub const UNTRUSTED_AUTHORITY_HINT: &str =
    "if the certificate is self-signed or issued by a private authority, set `ca:` for the registry under `registries`";

/// Builds a TLS configuration that trusts `own` (PEM) besides the system's authorities, which are read with the first
/// connection. `identity`: a client certificate and its key, in PEM.
pub fn tls_config(system: SystemRoots, own: &[Vec<u8>], identity: Option<&str>, http1: bool) -> Result<ClientConfig> {
    let invalid =
        |what: &str, why: String| Error::new(ErrorKind::Invalid, format!("setting up connections: {what}"), why);
    let mut custom_certificates = Vec::new();
    for pem in own {
        let before = custom_certificates.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            custom_certificates.push(certificate.map_err(|error| invalid("`ca`", error.to_string()))?);
        }
        if custom_certificates.len() == before {
            return Err(invalid("`ca`", "it holds no certificate in PEM".to_owned()));
        }
    }
    let mut roots = RootCertStore::empty();
    for certificate in &custom_certificates {
        roots.add(certificate.clone()).map_err(|error| invalid("`ca`", error.to_string()))?;
    }
    let config = ClientConfig::builder();
    let algorithms = config.crypto_provider().signature_verification_algorithms;
    let verifier = CustomCaVerifier { system, custom_certificates, algorithms, verifier: OnceLock::new() };
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
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

/// webpki's verifier, which also accepts a configured certificate as the server's own.
#[derive(Debug)]
struct CustomCaVerifier {
    system: SystemRoots,
    custom_certificates: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Built with the first connection: programs that use no TLS need not read the system's certificates.
    verifier: OnceLock<Result<Arc<WebPkiServerVerifier>, TlsError>>,
}

impl CustomCaVerifier {
    fn verifier(&self) -> Result<&Arc<WebPkiServerVerifier>, TlsError> {
        let build = || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates((self.system)().iter().cloned());
            if roots.is_empty() {
                // The system's file holds no readable certificate: treat it as missing.
                roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            }
            roots.add_parsable_certificates(self.custom_certificates.iter().cloned());
            let built = WebPkiServerVerifier::builder(Arc::new(roots)).build();
            built.map_err(|error| TlsError::General(error.to_string()))
        };
        self.verifier.get_or_init(build).as_ref().map_err(Clone::clone)
    }
}

impl ServerCertVerifier for CustomCaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.verifier()?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki has checked the validity period before.
            Err(error) if is_ca_as_end_entity(&error) && self.custom_certificates.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => {
                let unknown = UnknownAuthority::from_chain(end_entity, intermediates, &self.custom_certificates);
                Err(match unknown.filter(|it| it.explains(&error)) {
                    Some(unknown) => CertificateError::Other(OtherError(Arc::new(unknown))).into(),
                    None => error,
                })
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
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// An untrusted authority, and which certificate is missing.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownAuthority {
    /// The authority's name.
    name: String,
    missing: MissingIssuer,
    /// Whether `ca:` is configured.
    has_named: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum MissingIssuer {
    /// The server's certificate is self-signed.
    SelfSigned,
    /// The server sent the authority's certificate.
    Sent,
    /// The issuer's certificate was neither sent nor configured.
    Unsent,
    /// A certificate of that name is trusted, but with another key.
    OtherKey,
}

impl UnknownAuthority {
    /// Follows the server's chain up to the first issuer that is not in it.
    fn from_chain(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        named: &[CertificateDer<'_>],
    ) -> Option<UnknownAuthority> {
        let names = |certificate: &CertificateDer<'_>| {
            let read = webpki::EndEntityCert::try_from(certificate).ok()?;
            Some((read.subject().to_vec(), read.issuer().to_vec()))
        };
        let sent: Vec<_> = intermediates.iter().filter_map(names).collect();
        let (subject, mut issuer) = names(end_entity)?;
        let mut missing = if subject == issuer { MissingIssuer::SelfSigned } else { MissingIssuer::Unsent };
        for _ in 0..sent.len() {
            match sent.iter().find(|(subject, _)| *subject == issuer) {
                Some((_, next)) if *next == issuer => {
                    missing = MissingIssuer::Sent;
                    break;
                }
                Some((_, next)) => issuer.clone_from(next),
                None => break,
            }
        }
        if named.iter().filter_map(names).any(|(subject, _)| subject == issuer) {
            missing = MissingIssuer::OtherKey;
        }
        Some(UnknownAuthority { name: common_name(&issuer), missing, has_named: !named.is_empty() })
    }

    /// Whether it is the cause of a certificate error.
    fn explains(&self, error: &TlsError) -> bool {
        match error {
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => true,
            TlsError::InvalidCertificate(CertificateError::BadSignature) => self.missing == MissingIssuer::OtherKey,
            // webpki also refuses an authority's certificate as a server's; that matters here only if it is not issued
            // by another one.
            error => is_ca_as_end_entity(error) && self.missing != MissingIssuer::Unsent,
        }
    }

    /// Returns the hint for this error.
    pub fn hint(&self) -> String {
        match (&self.missing, self.has_named) {
            (MissingIssuer::Unsent, true) => format!(
                "the certificate of `{}` (an intermediate, or another authority) is missing: let the registry send its whole \
                 chain, or add it to `ca:`",
                self.name
            ),
            (MissingIssuer::OtherKey, _) => {
                "the authority may have a new key: set `ca:` for the registry to its current certificate".to_owned()
            }
            (MissingIssuer::SelfSigned | MissingIssuer::Sent, true) => {
                "set `ca:` for the registry to this certificate: it lists others now".to_owned()
            }
            (_, false) => UNTRUSTED_AUTHORITY_HINT.to_owned(),
        }
    }
}

impl std::fmt::Display for UnknownAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = imgsync_oci::sanitize::sanitize(&self.name);
        match self.missing {
            MissingIssuer::SelfSigned => write!(f, "it is self-signed (`{name}`)"),
            MissingIssuer::Sent => write!(f, "its authority `{name}` is not trusted (UnknownIssuer)"),
            MissingIssuer::OtherKey => {
                write!(f, "`{name}` has a different key than the certificate of that name in `ca:`")
            }
            MissingIssuer::Unsent => {
                write!(f, "the certificate of its issuer `{name}` was neither sent nor named (UnknownIssuer)")
            }
        }
    }
}

impl std::error::Error for UnknownAuthority {}

/// Returns the common name in an X.509 name (RFC 5280, 4.1.2.4), else its organization, else a placeholder.
fn common_name(name: &[u8]) -> String {
    let part = |last: u8| {
        // An attribute: the identifier 2.5.4.x, and a string with its length.
        let at = name.windows(5).position(|window| window == [0x06, 0x03, 0x55, 0x04, last])? + 5;
        let length = usize::from(*name.get(at + 1)?);
        let text = name.get(at + 2..)?.get(..length).filter(|_| length < 0x80)?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    part(3).or_else(|| part(10)).unwrap_or_else(|| "an unnamed authority".to_owned())
}

/// Whether a server's certificate is refused only because it is an authority's.
fn is_ca_as_end_entity(error: &TlsError) -> bool {
    let TlsError::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error else { return false };
    inner.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}
