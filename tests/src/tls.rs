//! Certificates for loopback servers, and the single place that selects the TLS provider.

use std::sync::{Arc, Once};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

/// Installs ring as the process's TLS provider. Idempotent.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another crate of the same process may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A certificate authority for tests.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    /// Key of a self-signed server certificate, if the authority's certificate is also its servers'.
    key: Option<Vec<u8>>,
    /// Validity of its server certificates, as (year, month, day).
    validity: Option<[(i32, u8, u8); 2]>,
    /// Whether its servers send its own certificate.
    is_sent: bool,
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// The key, PKCS#8.
    pub key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// Creates an authority.
    pub fn new() -> Self {
        Self::make(CertificateParams::new(Vec::new()).expect("no names are valid names"), false)
    }

    /// Creates a self-signed server certificate for localhost, as `openssl req -x509` does.
    pub fn self_signed() -> Self {
        Self::make(CertificateParams::new(vec!["localhost".to_owned()]).expect("localhost is a name"), true)
    }

    fn make(mut params: CertificateParams, serves: bool) -> Self {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("ring makes a key");
        let certificate = params.self_signed(&key).expect("the authority signs itself");
        let own_key = serves.then(|| key.serialize_der());
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            key: own_key,
            validity: None,
            is_sent: false,
        }
    }

    /// Creates an authority with this name.
    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.distinguished_name = common_name(name);
        Self::make(params, false)
    }

    /// Creates an intermediate authority signed by this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("ring makes a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { pem, der, issuer: Issuer::new(params, key), key: None, validity: None, is_sent: false }
    }

    /// Makes servers send the authority's certificate after theirs.
    #[must_use]
    pub fn with_ca_in_chain(self) -> Self {
        Self { is_sent: true, ..self }
    }

    /// Sets the validity of server certificates (year, month, day).
    #[must_use]
    pub fn valid(self, from: (i32, u8, u8), until: (i32, u8, u8)) -> Self {
        Self { validity: Some([from, until]), ..self }
    }

    /// Returns its certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Returns its certificate in PEM, for clients to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a server certificate for 127.0.0.1, localhost and these host names.
    pub fn server(&self, hosts: &[&str]) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("localhost is a name");
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        for host in hosts {
            params.subject_alt_names.push(SanType::DnsName((*host).try_into().expect("a host name")));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name = common_name("a server of the tests");
        if let Some([from, until]) = self.validity {
            params.not_before = date_time_ymd(from.0, from.1, from.2);
            params.not_after = date_time_ymd(until.0, until.1, until.2);
        }
        self.issue(params)
    }

    /// Issues a client certificate.
    pub fn client(&self) -> Identity {
        let mut params = CertificateParams::new(vec!["client".to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("ring makes a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: std::iter::once(certificate.der().clone()).chain(self.is_sent.then(|| self.der.clone())).collect(),
            key: key.serialize_der(),
        }
    }

    /// Creates a TLS acceptor for loopback and `hosts`, with ALPN protocols; `demand_client` requires client
    /// certificates of this authority.
    pub fn acceptor(&self, hosts: &[&str], alpn: &[&str], demand_client: bool) -> tokio_rustls::TlsAcceptor {
        install_provider();
        let identity = self.server(hosts);
        let builder = rustls::ServerConfig::builder();
        let builder = if demand_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).expect("the authority's certificate is sound");
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("there is a root");
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = match &self.key {
            Some(key) => (vec![self.der.clone()], key.clone()),
            None => (identity.chain, identity.key),
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let mut config = builder.with_single_cert(chain, key).expect("key and certificate match");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
