//! TLS of all connections: the process-wide implementation, the trusted authorities, and certificates of `ca:` files.

mod certificates;
mod custom_ca;
mod dates;

use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;

use imgsync_oci::error::Result;

pub use certificates::certificates_as_pem;
pub use custom_ca::{SystemRoots, UNTRUSTED_AUTHORITY_HINT, UnknownAuthority, tls_config};
pub use dates::with_dates;

/// Installs the process-wide TLS implementation. No other code names it.
pub fn install_tls_provider() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // Fails only if one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Returns the system's trusted authorities, or Mozilla's if there are none (a bare container).
pub fn system_roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let native = rustls_native_certs::load_native_certs().certs;
        match native.is_empty() {
            false => native,
            true => webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec(),
        }
    })
}

/// Returns a TLS configuration for other servers than registries: trusts these certificates (PEM) besides the system's.
pub fn client_tls_config(own: &[Vec<u8>]) -> Result<rustls::ClientConfig> {
    install_tls_provider();
    custom_ca::tls_config(system_roots, own, None, true)
}
