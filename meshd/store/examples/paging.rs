//! throwaway
use etcd_client::*;
use meshd_store::*;
use std::time::{Duration, Instant};
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (store, _) = Store::open(StoreOptions::default()).unwrap();
    tokio::spawn(async move { store.serve(listener, None, std::future::pending()).await });
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut child = std::process::Command::new("etcd")
        .args(["--log-level", "error", "--data-dir"])
        .arg(dir.path())
        .args([
            "--listen-client-urls",
            "http://127.0.0.1:32379",
            "--advertise-client-urls",
            "http://127.0.0.1:32379",
            "--listen-peer-urls",
            "http://127.0.0.1:32380",
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:32380",
            "--initial-cluster",
            "default=http://127.0.0.1:32380",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (name, url) in [("etcd", "127.0.0.1:32379".to_owned()), ("embedded", addr.to_string())] {
        let mut c = Client::connect([url], None).await.unwrap();
        for chunk in (0..25_000).collect::<Vec<_>>().chunks(100) {
            let ops: Vec<TxnOp> = chunk.iter().map(|i| TxnOp::put(format!("cilium/state/nodes/v1/east/node-{i:05}"), format!(r#"{{"Name":"node-{i:05}","Cluster":"east","IPAddresses":[{{"Type":"InternalIP","IP":"198.51.100.21"}},{{"Type":"CiliumInternalIP","IP":"10.7.21.1"}}],"IPv4AllocCIDR":{{"IP":"10.7.21.0","Mask":"////AA=="}},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":7,"Source":"local","EncryptionKey":0,"Labels":{{"kubernetes.io/os":"linux"}},"Annotations":null,"WireguardPubKey":"","BootID":""}}"#), None)).collect();
            c.txn(Txn::new().and_then(ops)).await.unwrap();
        }
        for limit in [100i64, 256, 500, 1000, 2000, 5000] {
            let mut best = Duration::MAX;
            let mut all = Vec::new();
            let mut biggest = 0usize;
            for _ in 0..7 {
                let t = Instant::now();
                let mut from: Vec<u8> = b"cilium/state/nodes/v1/east/".to_vec();
                let mut rev = 0;
                let mut n = 0;
                loop {
                    let o = GetOptions::new()
                        .with_range("cilium/state/nodes/v1/east0")
                        .with_limit(limit)
                        .with_revision(rev);
                    let a = c.kv_client().max_decoding_message_size(64 << 20).get(from.clone(), Some(o)).await.unwrap();
                    rev = a.header().unwrap().revision();
                    n += a.kvs().len();
                    biggest = biggest.max(a.kvs().iter().map(|k| k.key().len() + k.value().len()).sum());
                    if !a.more() {
                        break;
                    }
                    from = a.kvs().last().unwrap().key().to_vec();
                    from.push(0);
                }
                assert_eq!(n, 25000);
                best = best.min(t.elapsed());
                all.push(t.elapsed().as_millis());
            }
            all.sort();
            println!("{name} limit {limit}: best {best:?} median {} ms page {} KiB", all[3], biggest >> 10);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
