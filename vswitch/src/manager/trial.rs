//! Certificates for a trial, made here: an authority whose key is gone with this process, and what it signs.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};

use super::certificate::Credentials;

/// See the module documentation.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one, that nobody trusts yet.
    ///
    /// # Errors
    /// No randomness.
    pub fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Its own: by its name an authority is found, and what has the name of its issuer counts as signed by itself.
        let name = format!("trial {:016x}", RandomState::new().hash_one(0));
        params.distinguished_name.push(DnType::CommonName, name);
        let own = params.self_signed(&key).map_err(io::Error::other)?;
        Ok(Authority {
            pem: own.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Signs a certificate for this host that lists these URIs and is good to the end of `year`, and writes it into `dir`, with
    /// its key and with the authority's own: `NAME.pem`, `NAME.key`, `NAME-ca.pem`.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate; a file that cannot be written.
    pub fn issue(
        &self,
        dir: &Path,
        name: &str,
        host: &str,
        uris: &[&str],
        year: i32,
    ) -> io::Result<Credentials> {
        let mut params = CertificateParams::new([host.to_owned()]).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name);
        for uri in uris {
            let uri = (*uri).try_into().map_err(io::Error::other)?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let signed = params.signed_by(&key, &self.issuer);
        let signed = signed.map_err(io::Error::other)?;
        let file = |end: &str| dir.join(format!("{name}{end}"));
        let credentials = Credentials {
            ca: file("-ca.pem"),
            certificate: file(".pem"),
            key: file(".key"),
        };
        std::fs::write(&credentials.ca, &self.pem)?;
        std::fs::write(&credentials.certificate, signed.pem())?;
        std::fs::write(&credentials.key, key.serialize_pem())?;
        Ok(credentials)
    }
}
