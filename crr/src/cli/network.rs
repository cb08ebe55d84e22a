//! Page servers, as a dump, a round, a restore and the server itself are told of them. The flags are spelled as in CRIU.

use super::Usage;
use super::dirs::Dirs;
use crate::page_server::client::Server;
use crate::page_server::tls::Files;
use crate::store::{Destination, Source};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// How one speaks with the other.
#[derive(Debug, Args)]
pub(super) struct Security {
    /// Speak TLS with the page server or the dump; each asks the other for a certificate.
    #[arg(long, requires_all = ["tls_cacert", "tls_cert", "tls_key"])]
    tls: bool,

    /// Certificates of the authority that the other side's is from (PEM).
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cacert: Option<PathBuf>,

    /// The own certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cert: Option<PathBuf>,

    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_key: Option<PathBuf>,

    /// Without TLS over other networks than that of this machine alone: whoever is on the way can read and change page contents.
    #[arg(long, conflicts_with = "tls")]
    pub(super) insecure: bool,
}

impl Security {
    /// The files, if TLS is to be spoken.
    pub(super) fn tls(&self) -> Option<Files> {
        let (Some(authority), Some(certificate), Some(key)) =
            (&self.tls_cacert, &self.tls_cert, &self.tls_key)
        else {
            return None;
        };
        let files =
            Files { authority: authority.clone(), certificate: certificate.clone(), key: key.clone() };
        self.tls.then_some(files)
    }
}

/// Which page server.
#[derive(Debug, Args)]
pub(super) struct Pages {
    /// Have page contents go to a page server, or come from there, not in the directory.
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "")]
    page_server: Option<String>,

    /// Its address, if that is not said there.
    #[arg(long, requires = "page_server")]
    address: Option<String>,

    /// Its port, if that is not said there.
    #[arg(long, requires = "page_server")]
    port: Option<u16>,

    #[command(flatten)]
    security: Security,
}

impl Pages {
    /// Where a dump writes to.
    pub(super) fn destination(&self, dirs: &Dirs) -> Result<Destination> {
        Ok(match self.server(dirs)? {
            Some(server) => Destination::Server(dirs.images_dir().to_owned(), server),
            None => dirs.destination(),
        })
    }

    /// Where a restore reads from.
    pub(super) fn source(&self, dirs: &Dirs) -> Result<Source> {
        match self.server(dirs)? {
            Some(server) => Ok(Source::Server(dirs.images_dir().to_owned(), server)),
            None => dirs.source(),
        }
    }

    fn server(&self, dirs: &Dirs) -> Result<Option<Server>> {
        let Some(spelled) = &self.page_server else {
            if self.security.tls || self.security.insecure {
                return Err(Usage("--tls and --insecure are for a --page-server".to_owned()).into());
            }
            return Ok(None);
        };
        let wrong = |what: &str| Usage(format!("--page-server: {what}\n  hint: as in 10.0.0.2:9876"));
        let (host, port) = match (spelled.rsplit_once(':'), &self.address, self.port) {
            (Some((host, port)), None, None) => {
                (host, port.parse().map_err(|_| wrong(&format!("{port}: not a port")))?)
            }
            (None, Some(address), Some(port)) if spelled.is_empty() => (address.as_str(), port),
            _ => return Err(wrong("takes one address and one port").into()),
        };
        if dirs.is_stream() {
            return Err(Usage("--page-server: with -D - page contents are in the stream".to_owned()).into());
        }
        let (tls, insecure) = (self.security.tls(), self.security.insecure);
        Ok(Some(Server { host: host.to_owned(), port, tls, insecure }))
    }
}
