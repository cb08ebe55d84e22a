//! TLS with certificates on both sides: who has none of the given authority is neither a server nor a dump.

use super::line::{Line, Patient};
use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// The files, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authority that the other side's is from.
    pub authority: PathBuf,
    /// The own certificate, and those that it is from, up to the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(&self) -> Result<Credentials> {
        let [authority, certificate, key] = [&self.authority, &self.certificate, &self.key].map(Pem::read);
        Ok(Credentials { authority: authority?, certificate: certificate?, key: key? })
    }
}

/// What is in a file, and where it was, for messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pem {
    path: PathBuf,
    text: Vec<u8>,
}

impl Pem {
    fn read(path: &PathBuf) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.clone(), text })
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(&self.text).collect::<Result<_, _>>().with_context(|| self.name())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// What the files hold: a process that has another root directory, or is another program, can go on with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credentials {
    authority: Pem,
    certificate: Pem,
    key: Pem,
}

impl Credentials {
    fn authority(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in self.authority.certificates()? {
            roots.add(certificate).with_context(|| self.authority.name())?;
        }
        Ok(Arc::new(roots))
    }

    fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivateKeyDer::from_pem_slice(&self.key.text).with_context(|| self.key.name())?;
        Ok((self.certificate.certificates()?, key))
    }

    /// What a server needs.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.authority()?, Arc::clone(&provider));
        let (certificates, key) = self.own()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build().context("TLS")?)
            .with_single_cert(certificates, key)
            .with_context(|| self.certificate.name())?;
        // A dump takes whatever comes for an answer.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Speaks TLS over a connection to a server, which has to have a certificate for `host`.
    ///
    /// # Errors
    /// Names the file that cannot be used. The other side is looked at with what is said first.
    pub(super) fn connect(&self, host: &str, tcp: Patient) -> Result<Line> {
        let (certificates, key) = self.own()?;
        let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.authority()?)
            .with_client_auth_cert(certificates, key)
            .with_context(|| self.certificate.name())?;
        let name = ServerName::try_from(host.to_owned()).context("no name for a certificate")?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        Ok(Line::Client(Box::new(StreamOwned::new(connection, tcp))))
    }
}

/// Speaks TLS over a connection from a dump or a restore.
pub(super) fn accept(config: &Arc<ServerConfig>, tcp: Patient) -> Result<Line> {
    let connection = ServerConnection::new(Arc::clone(config))?;
    Ok(Line::Server(Box::new(StreamOwned::new(connection, tcp))))
}
