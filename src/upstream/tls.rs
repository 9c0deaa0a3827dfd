//! TLS towards upstreams: always verified, TLS 1.2 or newer.
//!
//! Roots are the system's and the upstream's `ca` file. One configuration per upstream for the
//! whole process, so that its session cache is shared; a reload that finds the same roots keeps it.

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

/// TLS towards one upstream.
pub struct ClientTls {
    /// What connections are made with.
    pub config: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
}

impl ClientTls {
    /// The TLS of an upstream that trusts `roots` and those of its `ca` file: `before` itself if that
    /// trusts the same.
    ///
    /// # Errors
    /// A `ca` file that cannot be read or holds no certificate, told with its path.
    pub fn new(
        roots: &RootCertStore,
        ca: Option<&Path>,
        before: Option<&Arc<ClientTls>>,
    ) -> io::Result<Arc<ClientTls>> {
        let roots = with_file(roots, ca)?;
        if let Some(before) = before.filter(|before| before.roots.roots == roots.roots) {
            return Ok(before.clone());
        }
        let roots = Arc::new(roots);
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        Ok(Arc::new(ClientTls { config: Arc::new(config), roots }))
    }
}

fn with_file(roots: &RootCertStore, ca: Option<&Path>) -> io::Result<RootCertStore> {
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
    Ok(roots)
}

/// The one crypto provider of the process.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
