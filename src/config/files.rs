//! Reading the files that a configuration names: bounded, and with reasons an operator can act on.
//!
//! Refuses files above a fixed size, so that a path such as `/dev/zero` costs a message instead of
//! the memory. Invariant: no error made here shows content of the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Largest configuration or PEM file, bytes; the system's whole root store takes 0.3 MB.
const FILE_BYTES: u64 = 4 << 20;

/// Largest credential file, bytes.
pub(super) const CREDENTIAL_BYTES: u64 = 16 << 10;

/// The content of a file as text.
pub(super) fn text(path: &Path) -> Result<String, String> {
    String::from_utf8(bytes(path, FILE_BYTES)?).map_err(|_| "is not UTF-8 text".to_owned())
}

/// The content of a file of at most `most` bytes.
pub(super) fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > most => Err(format!("is larger than {most} bytes")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// Checks that a file holds at least one PEM certificate and no broken one.
pub(super) fn certificates(path: &Path) -> Result<(), String> {
    let pem = bytes(path, FILE_BYTES)?;
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|_| "holds a broken PEM certificate".to_owned())?;
        found = true;
    }
    if found { Ok(()) } else { Err("holds no PEM certificate".to_owned()) }
}

/// Checks that a file holds a PEM private key.
pub(super) fn private_key(path: &Path) -> Result<(), String> {
    let pem = bytes(path, FILE_BYTES)?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map(|_| ())
        .map_err(|_| "holds no PEM private key (PKCS#8, PKCS#1 or SEC1)".to_owned())
}
