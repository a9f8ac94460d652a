//! Authorities and certificates, as our side and as foreign programs want them.

use nbd_io::{ClientTls, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::fs;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority for tests");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        // QEMU wants the second, though TLS 1.3 has no use for it.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            key,
        }
    }

    pub(crate) fn server(&self) -> Identity {
        self.issue("server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(crate) fn client(&self) -> Identity {
        self.issue("client", ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server_tls(&self) -> ServerTls {
        let server = self.server();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified =
            CertifiedKey::from_der(vec![server.certificate.clone()], server.der(), &provider);
        let resolver = Arc::new(SingleCertAndKey::from(certified.unwrap()));
        ServerTls::new(self.0.der(), resolver).unwrap()
    }

    /// A client that believes this authority and has that certificate.
    pub(crate) fn client_tls(&self, client: &Identity) -> ClientTls {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![client.certificate.clone()], client.der())
            .unwrap();
        ClientTls {
            config: Arc::new(config),
            server: ServerName::try_from("localhost").unwrap(),
        }
    }

    /// The files that libnbd, nbdkit and QEMU look for.
    pub(crate) fn files(&self, dir: &Path, client: &Identity) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("ca-cert.pem"), self.0.pem()).unwrap();
        for (name, identity) in [("client", client), ("server", &self.server())] {
            fs::write(dir.join(format!("{name}-cert.pem")), &identity.pem).unwrap();
            let key = identity.key.serialize_pem();
            fs::write(dir.join(format!("{name}-key.pem")), key).unwrap();
        }
    }
}

impl Identity {
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}
