//! TLS towards upstreams: always verified, TLS 1.2 or newer.
//!
//! Roots are the system's and the upstream's `ca` file. One configuration per upstream for the
//! whole process, so that its session cache is shared.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The system's root certificates; an unreadable store gives an empty one and a warning.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a system root certificate could not be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The client configuration for one upstream: `roots` and those of its `ca` file.
///
/// # Errors
/// A `ca` file that cannot be read or holds no certificate, told with its path.
pub fn client_config(roots: &RootCertStore, ca: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = roots.clone();
    if let Some(path) = ca {
        let told = |what: String| io::Error::other(format!("{}: {what}", path.display()));
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|error| told(error.to_string()))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| told(error.to_string()))?;
        if certificates.is_empty() {
            return Err(told("holds no PEM certificate".into()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| told(error.to_string()))?;
        }
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The one crypto provider of the process.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
