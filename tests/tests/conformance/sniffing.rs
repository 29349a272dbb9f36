//! Plain HTTP on the port of gRPC, with TLS and without.

use std::net::SocketAddr;
use std::sync::Arc;

use meshd_store::{AuthConfig, ServerTls, Store, StoreError, StoreOptions};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::certificates::Authority;
use super::embedded::Embedded;

async fn get(address: SocketAddr, path: &str) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), path).await.unwrap()
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn version_and_health_share_the_port_with_grpc() {
    let embedded = Embedded::start(StoreOptions::default(), None).await;
    let version = get(embedded.address, "/version").await;
    assert!(version.starts_with("HTTP/1.1 200 OK\r\n"), "{version}");
    assert!(version.contains("\"etcdserver\":\"3.5.0\""), "{version}");
    let health = get(embedded.address, "/health").await;
    assert!(health.contains("\"health\":\"true\""), "{health}");
    assert!(get(embedded.address, "/nowhere").await.starts_with("HTTP/1.1 404"));
    let mut client = etcd_client::Client::connect([embedded.address.to_string()], None).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    embedded.stop().await;
}

#[tokio::test]
async fn version_and_health_need_a_client_certificate_with_tls() {
    let authority = Authority::new();
    let options = StoreOptions { auth: AuthConfig::standard("west", ["east"]), ..StoreOptions::default() };
    let embedded = Embedded::start(options, Some(authority.server())).await;
    let user = authority.issue("remote-east");
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let fetch = |path| get_encrypted(embedded.address, &authority, Some(&user), protocols.clone(), path);
        let version = fetch("/version").await.unwrap();
        assert!(version.starts_with("HTTP/1.1 200 OK\r\n") && version.contains("etcdserver"), "{version}");
        let health = fetch("/health").await.unwrap();
        assert!(health.contains("\"health\":\"true\""), "{health}");
    }
    let refused = get_encrypted(embedded.address, &authority, None, vec![], "/health").await;
    assert!(refused.is_err(), "a client without certificate is refused: {refused:?}");
    embedded.stop().await;
}

async fn get_encrypted(
    address: SocketAddr,
    authority: &Authority,
    user: Option<&(String, String)>,
    protocols: Vec<Vec<u8>>,
    path: &str,
) -> std::io::Result<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.ca_pem.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match user {
        None => builder.with_no_client_auth(),
        Some((cert_pem, key_pem)) => {
            let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = protocols;
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    exchange(stream, path).await
}

#[tokio::test]
async fn only_loopback_is_served_in_the_clear() {
    let (store, _) = Store::open(StoreOptions::default()).unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = store.serve(listener, None, std::future::pending()).await.unwrap_err();
    assert!(matches!(refused, StoreError::PlaintextNotLoopback { .. }), "{refused}");
    store.close().await;
}

#[tokio::test]
async fn bad_certificates_are_named() {
    let authority = Authority::new();
    let good = authority.server();
    let bad = [
        ServerTls { cert_pem: b"nothing".to_vec(), ..good.clone() },
        ServerTls { key_pem: Vec::new(), ..good.clone() },
        ServerTls { client_ca_pem: Vec::new(), ..good.clone() },
        ServerTls { key_pem: authority.issue("other").1.into_bytes(), ..good.clone() },
    ];
    let (store, _) = Store::open(StoreOptions::default()).unwrap();
    for tls in &bad {
        assert!(matches!(store.reload_tls(tls), Err(StoreError::Tls(_))));
    }
    store.reload_tls(&good).unwrap();
    store.close().await;
}
