//! A throw-away certificate authority and a server certificate under it.
//!
//! Owns key and certificate making and the simulator's rustls configuration. Refuses nothing but
//! names that are no DNS names or addresses. Invariant: keys live in memory only; the caller
//! decides what is written. Cost: two P-256 keys, well under a millisecond each.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A server certificate with the little CA that vouches for it.
#[derive(Clone)]
pub struct Certificate {
    /// The CA's certificate, PEM: what clients are told to trust.
    pub ca_pem: String,
    /// The server's chain, PEM, leaf first, without the CA itself.
    pub chain_pem: String,
    /// The server's private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

/// Why no certificate could be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A name is invalid, or the key could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The PEM text is no certificate or key.
    #[error("bad PEM text: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// Chain and key do not serve TLS.
    #[error("unusable certificate: {0}")]
    Use(#[from] tokio_rustls::rustls::Error),
}

/// Makes a new CA and a server certificate for `names` (DNS names or IP addresses).
///
/// Key usages and key identifiers are all there: strict verifiers (Python 3.13) look for them.
///
/// # Errors
/// A name that is neither a DNS name nor an address.
pub fn make_certificate(names: &[&str]) -> Result<Certificate, CertificateError> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Tidegate simulator CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let owned: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut leaf = CertificateParams::new(owned)?;
    leaf.distinguished_name.push(DnType::CommonName, "Tidegate simulator");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let chain_pem = leaf.signed_by(&key, &issuer)?.pem();
    Ok(Certificate { ca_pem, chain_pem, key_pem: key.serialize_pem() })
}

/// The TLS acceptor for `certificate`, offering the given protocols by ALPN (RFC 7301).
pub(super) fn acceptor(
    certificate: &Certificate,
    h1: bool,
    h2: bool,
) -> Result<TlsAcceptor, CertificateError> {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs;

    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())?;
    // Named explicitly: the process may have no default provider, or several.
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain?, key)?;
    if h2 {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    if h1 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_certificate_serves() {
        let certificate = make_certificate(&["localhost", "127.0.0.1", "::1"]).unwrap();
        assert!(acceptor(&certificate, true, true).is_ok());
        assert!(!format!("{certificate:?}").contains("PRIVATE"));
    }

    #[test]
    fn chain_and_key_of_different_makers_are_refused() {
        let mut one = make_certificate(&["localhost"]).unwrap();
        one.key_pem = make_certificate(&["localhost"]).unwrap().key_pem;
        assert!(matches!(acceptor(&one, true, true), Err(CertificateError::Use(_))));
        one.key_pem.clear();
        assert!(matches!(acceptor(&one, true, true), Err(CertificateError::Pem(_))));
    }
}
