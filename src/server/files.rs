//! The certificates and keys that a configuration names, read and made ready for use.
//!
//! Invariant: all of them or none; every one that is no good is told.

use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};

use crate::config::{Config, Scheme};
use crate::gateway::terms::Terms;
use crate::server::tls;
use crate::upstream::tls::{ClientTls, system_roots};

/// See the module.
pub struct Files {
    /// TLS of each upstream, in the order of the configuration.
    pub upstreams: Vec<Arc<ClientTls>>,
    /// TLS of the client listeners.
    pub server: Option<Arc<ServerConfig>>,
}

/// Certificates, keys or CA files that are no good: each with its key, its path and why. Never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Unusable(pub Vec<String>);

impl Files {
    /// Reads what `config` names. An upstream that trusts the same certificates as the one of its
    /// name in `before` keeps that one's TLS, and with it its sessions.
    ///
    /// # Errors
    /// All that are no good.
    pub fn read(config: &Config, before: Option<&Terms>) -> Result<Files, Unusable> {
        let https =
            config.upstreams.iter().any(|u| u.urls.iter().any(|u| u.scheme == Scheme::Https));
        let roots = if https { system_roots() } else { RootCertStore::empty() };
        let mut faults = Vec::new();
        let mut upstreams = Vec::new();
        for (n, upstream) in config.upstreams.iter().enumerate() {
            let before = before.and_then(|before| before.tls_named(&upstream.name));
            match ClientTls::new(&roots, upstream.ca.as_deref(), before) {
                Ok(tls) => upstreams.push(tls),
                Err(error) => faults.push(format!("upstream[{n}].ca: {error}")),
            }
        }
        let server = match config.server.tls.as_ref().map(tls::server_config).transpose() {
            Ok(server) => server,
            Err(error) => {
                faults.push(format!("server.tls: {error}"));
                None
            }
        };
        if faults.is_empty() { Ok(Files { upstreams, server }) } else { Err(Unusable(faults)) }
    }
}
