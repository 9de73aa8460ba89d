//! Certificates: who may speak for which switches and rules, and the files they are in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use webpki::EndEntityCert;

const SWITCH: &str = "vswitch://switch/";
const RULE: &str = "vswitch://rule/";
const PERSON: &str = "vswitch://person/";
/// Stands for all of a kind.
const ALL: &str = "*";

/// What a certificate lists: URIs in its subject alternative names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed(Vec<String>);

impl Listed {
    /// What this one lists; nothing, if it cannot be read.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let read = EndEntityCert::try_from(certificate);
        Listed(read.map_or_else(
            |_unreadable| Vec::new(),
            |c| c.valid_uri_names().map(str::to_owned).collect(),
        ))
    }

    /// Whether its owner may speak for this switch, or as it.
    #[must_use]
    pub fn has_switch(&self, name: &str) -> bool {
        self.has(SWITCH, name)
    }

    /// Whether its owner may answer questions of this rule.
    #[must_use]
    pub fn has_rule(&self, name: &str) -> bool {
        self.has(RULE, name)
    }

    /// Whose it is, if it is one person's.
    #[must_use]
    pub fn person(&self) -> Option<&str> {
        let mut people = self.0.iter().filter_map(|uri| uri.strip_prefix(PERSON));
        let person = people.next()?;
        people.next().is_none().then_some(person)
    }

    fn has(&self, kind: &str, name: &str) -> bool {
        let mut listed = self.0.iter().filter_map(|uri| uri.strip_prefix(kind));
        listed.any(|listed| listed == ALL || listed == name)
    }
}

/// Files in PEM: whom to trust, who we are, and the proof of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// Certificates of the authority.
    pub ca: PathBuf,
    /// Our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error("cannot use {}: {what}; name a file in PEM that this user may read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// They do not go together.
    #[error("{} and its key cannot be used: {source}; see that they belong together", path.display())]
    Together {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let wrong = |what: String| CredentialsError::File {
        path: path.to_owned(),
        what,
    };
    let all = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?;
    let all: Result<Vec<_>, _> = all.collect();
    let all = all.map_err(|e| wrong(e.to_string()))?;
    if all.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(all)
}

impl Credentials {
    fn roots(&self) -> Result<RootCertStore, CredentialsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca)? {
            roots.add(root).map_err(|e| CredentialsError::File {
                path: self.ca.clone(),
                what: e.to_string(),
            })?;
        }
        Ok(roots)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, CredentialsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key);
        key.map_err(|e| CredentialsError::File {
            path: self.key.clone(),
            what: e.to_string(),
        })
    }

    fn together(&self, source: rustls::Error) -> CredentialsError {
        CredentialsError::Together {
            path: self.certificate.clone(),
            source,
        }
    }

    /// A client of HTTP/2 that shows its certificate, and trusts only what this authority signed.
    ///
    /// # Errors
    /// [`CredentialsError`]: which file, and why.
    pub fn client(&self) -> Result<Arc<ClientConfig>, CredentialsError> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| self.together(e))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificates(&self.certificate)?, self.key()?)
            .map_err(|e| self.together(e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// A server of HTTP/1.1 whose clients must show a certificate that this authority signed.
    ///
    /// # Errors
    /// [`CredentialsError`]: which file, and why.
    pub fn server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::clone(&provider),
        );
        let clients = clients.build().map_err(|e| CredentialsError::File {
            path: self.ca.clone(),
            what: e.to_string(),
        })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| self.together(e))?
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(&self.certificate)?, self.key()?)
            .map_err(|e| self.together(e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::Listed;

    #[test]
    fn what_is_listed_is_listed_and_nothing_else() {
        let listed = |uris: &[&str]| Listed(uris.iter().map(|u| (*u).to_owned()).collect());
        let some = listed(&[
            "vswitch://switch/host-1",
            "vswitch://rule/web",
            "https://x/",
        ]);
        assert!(some.has_switch("host-1") && some.has_rule("web"));
        assert!(!some.has_switch("host-10") && !some.has_switch("web") && !some.has_rule("*"));
        let all = listed(&["vswitch://switch/*"]);
        assert!(all.has_switch("any") && !all.has_rule("any"));
        assert_eq!(all.person(), None);
        let ann = "vswitch://person/ann";
        assert_eq!(listed(&["vswitch://rule/web", ann]).person(), Some("ann"));
        assert_eq!(listed(&[ann, "vswitch://person/bob"]).person(), None);
        assert_eq!(Listed::of(&vec![1, 2, 3].into()), Listed::default());
    }
}
