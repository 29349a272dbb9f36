//! What the store lets us read, and whether a live cluster writes it.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, TlsOptions};
use jiff::Timestamp;
use meshd_core::clustermesh::cluster_config::{self, AcceptedConfig, ConfigExpectations};
use meshd_core::clustermesh::heartbeat::{self, HEARTBEAT_TIMEOUT};
use meshd_core::clustermesh::keys::{self, Key};
use meshd_core::id::{ClusterId, ClusterName};
use meshd_core::observed::Kind;
use tonic::Code;

use super::Target;
use super::endpoint::Reached;
use super::files::OwnCertificate;
use super::report::{Diagnosis, Report};
use crate::config::Config;
use crate::config::error::chain;
use crate::config::model::TlsFiles;

/// How far clocks may be apart.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(10);
/// Most canaries that are read; a cluster writes six.
const CANARIES_MAX: i64 = 256;

/// What of this configuration the store is checked against.
struct Reader<'a> {
    target: &'a Target,
    own: Option<&'a OwnCertificate>,
    client: Client,
}

/// Reads what the daemon reads first; the cluster's id when its cluster-config is right.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    target: &Target,
    own: Option<&OwnCertificate>,
    reached: &Reached,
    taken: &[(ClusterName, ClusterId)],
    step: Duration,
) -> Option<ClusterId> {
    let client = match connect(target, reached, step).await {
        Ok(client) => client,
        Err(message) => {
            let cause = "the store answers HTTP but not gRPC; a proxy in between may not pass HTTP/2";
            report.fail(
                "access",
                reached.endpoint.to_string(),
                Diagnosis::new(message, cause, "connect to the store directly"),
            );
            return None;
        }
    };
    let mut reader = Reader { target, own, client };
    let beat = reader.get(report, keys::HEARTBEAT.as_bytes(), None).await?;
    let id = beat.header().map_or(0, |header| header.cluster_id());
    report.ok("access", keys::HEARTBEAT, format!("may be read; store id {id:x}"));
    clock(report, &beat, Timestamp::now());
    let found = reader.cluster_config(report, config, taken).await;
    match &found {
        Some(found) => reader.canaries(report, found).await,
        None => report.skip("canaries", target.cluster.as_str(), "needs a cluster-config"),
    }
    found.map(|found| found.id)
}

async fn connect(target: &Target, reached: &Reached, step: Duration) -> Result<Client, String> {
    let scheme = if reached.endpoint.is_tls() { "https" } else { "http" };
    let mut options = ConnectOptions::new().with_connect_timeout(step).with_timeout(step);
    if let Some(files) = target.tls.as_ref().filter(|_| reached.endpoint.is_tls()) {
        options = options.with_tls(tls_options(files, reached.endpoint.host())?);
    }
    let url = format!("{scheme}://{}", reached.address);
    Client::connect([url], Some(options)).await.map_err(|error| chain(&error))
}

fn tls_options(files: &TlsFiles, host: &str) -> Result<TlsOptions, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()))
    };
    Ok(TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&files.ca)?))
        .identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?))
        .domain_name(host))
}

impl Reader<'_> {
    /// Reads a key; `None` when that failed and is reported.
    async fn get(&mut self, report: &mut Report, key: &[u8], options: Option<GetOptions>) -> Option<GetResponse> {
        match self.client.get(key, options).await {
            Ok(response) => Some(response),
            Err(error) => {
                let name = String::from_utf8_lossy(key).into_owned();
                report.fail("access", name.clone(), self.denied(&name, &error));
                None
            }
        }
    }

    /// Why a read failed: a certificate of the wrong name, a user without the role, or something else.
    fn denied(&self, key: &str, error: &Error) -> Diagnosis {
        let Error::GRpcStatus(status) = error else {
            return Diagnosis::new(chain(error), "the connection failed", "try again; look at the log of the store");
        };
        let name = self.own.map_or("", |own| own.common_name.as_str());
        let detail = format!("reading {key} failed: {}", status.message());
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated
                if !self.target.readers.iter().any(|reader| reader == name) =>
            {
                Diagnosis::new(
                    detail,
                    format!(
                        "wrong CN: the certificate says {name:?}, stores know their readers as {}",
                        self.target.readers.join(" or ")
                    ),
                    format!(
                        "issue one with the right name: meshd cert issue --cn {} --client",
                        self.target.readers.last().map_or("remote", String::as_str)
                    ),
                )
            }
            Code::PermissionDenied | Code::Unauthenticated if self.target.own_store => Diagnosis::new(
                detail,
                format!("missing RBAC role: the store does not know the user {name}, or gives it no role for {key}"),
                format!(
                    "as root of that etcd: etcdctl user get {name}, and etcdctl role get of its role; the permissions nodes need are in docs/guides/real-etcd.md"
                ),
            ),
            Code::PermissionDenied | Code::Unauthenticated
                if key.starts_with(keys::CLUSTER_CONFIG_PREFIX) || key.starts_with(keys::SYNCED_PREFIX) =>
            {
                Diagnosis::new(
                    detail,
                    format!(
                        "missing RBAC role, or the store belongs to a cluster of another name: its readers may read only {}NAME of its own",
                        keys::CLUSTER_CONFIG_PREFIX
                    ),
                    format!(
                        "check that the other cluster calls itself {}, and the role of user {name} there",
                        self.target.cluster
                    ),
                )
            }
            Code::PermissionDenied | Code::Unauthenticated => Diagnosis::new(
                detail,
                format!(
                    "missing RBAC role: the store does not know the user {name}, or gives it no role that may read"
                ),
                format!(
                    "on the other side: etcdctl user add {name} --no-password; etcdctl user grant-role {name} remote (Cilium: list this cluster in clustermesh.config.clusters)"
                ),
            ),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Diagnosis::new(
                detail,
                "the store has no leader, is overloaded, or something in between drops HTTP/2",
                "on the other side: etcdctl endpoint status, and the log of the store",
            ),
            code => Diagnosis::new(
                format!("{detail} ({code:?})"),
                "the store refused the request",
                "look at the log of the store",
            ),
        }
    }

    async fn cluster_config(
        &mut self,
        report: &mut Report,
        config: &Config,
        taken: &[(ClusterName, ClusterId)],
    ) -> Option<AcceptedConfig> {
        let cluster = self.target.cluster.clone();
        let key = Key::cluster_config(&cluster).to_string();
        let response = self.get(report, key.as_bytes(), None).await?;
        let Some(value) = response.kvs().first().map(etcd_client::KeyValue::value) else {
            report.fail(
                "cluster_config",
                &key,
                Diagnosis::new(
                    format!("the store holds no cluster-config of {cluster}"),
                    "absent cluster-config: the other cluster calls itself differently, has clustermesh switched off, or its writer has not run yet",
                    format!("compare the names; on the other side: etcdctl get --prefix {} --keys-only", keys::CLUSTER_CONFIG_PREFIX),
                ),
            );
            return None;
        };
        let expected = ConfigExpectations {
            cluster,
            own_cluster: config.cluster.name.clone(),
            own_id: config.cluster.id,
            max_clusters: config.cluster.max_clusters,
            taken: taken.to_vec(),
        };
        match cluster_config::accept(&expected, value) {
            Ok(accepted) => {
                report.ok(
                    "cluster_config",
                    &key,
                    format!("cluster id {}, {} form", accepted.id, accepted.keyspace.word()),
                );
                Some(accepted)
            }
            Err(refusal) => {
                let hint = "change the id or the mode of one of the two clusters";
                report.fail(
                    "cluster_config",
                    &key,
                    Diagnosis::new(refusal.to_string(), "the two clusters do not fit together", hint),
                );
                None
            }
        }
    }

    async fn canaries(&mut self, report: &mut Report, found: &AcceptedConfig) {
        let cluster = self.target.cluster.clone();
        let prefix = keys::canary_prefix(&cluster);
        if !found.canaries {
            report.ok("canaries", &prefix, "this cluster does not use them");
            return;
        }
        let options = GetOptions::new().with_prefix().with_keys_only().with_limit(CANARIES_MAX);
        let Some(response) = self.get(report, prefix.as_bytes(), Some(options)).await else { return };
        let there: Vec<String> =
            response.kvs().iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned()).collect();
        let missing: Vec<String> = Kind::ALL
            .into_iter()
            .map(|kind| Key::canary(found.keyspace, &cluster, found.key_kind(kind)).to_string())
            .filter(|key| !there.contains(key))
            .collect();
        if missing.is_empty() {
            report.ok("canaries", &prefix, "all there");
        } else {
            report.fail(
                "canaries",
                &prefix,
                Diagnosis::new(
                    format!("missing: {}", missing.join(", ")),
                    "absent canary: the other cluster has not published its first complete list, for instance after its store was lost",
                    "wait for its writers; on the other side look at the log of the clustermesh writer (meshd status there)",
                ),
            );
        }
    }
}

/// Compares the time in the heartbeat with this node's clock.
fn clock(report: &mut Report, beat: &GetResponse, now: Timestamp) {
    let diagnosis = match beat.kvs().first().map(etcd_client::KeyValue::value) {
        None => Err(Diagnosis::new(
            "there is no heartbeat",
            "the other cluster's writer is not running; readers will reconnect again and again",
            "on the other side: is meshd (or clustermesh-apiserver) running?",
        )),
        Some(value) => judge(value, now),
    };
    match diagnosis {
        Ok(detail) => report.ok("clock", keys::HEARTBEAT, detail),
        Err(diagnosis) => report.fail("clock", keys::HEARTBEAT, diagnosis),
    }
}

fn judge(value: &[u8], now: Timestamp) -> Result<String, Diagnosis> {
    let Some(beat) = heartbeat::parse(value) else {
        // Readers do not depend on the text, so this alone is no failure.
        return Ok("the heartbeat is not a time, clocks cannot be compared".to_owned());
    };
    let ahead_s = beat.as_second() - now.as_second();
    let tolerance_s = i64::try_from(CLOCK_TOLERANCE.as_secs()).unwrap_or(i64::MAX);
    let silence_s = i64::try_from(HEARTBEAT_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
    if ahead_s > tolerance_s {
        return Err(Diagnosis::new(
            format!("the heartbeat is {ahead_s} s in the future"),
            "clock skew: this node's clock is behind, or the other side's is ahead",
            "compare `date -u` on both sides; run an NTP client (timedatectl)",
        ));
    }
    if -ahead_s > silence_s + tolerance_s {
        return Err(Diagnosis::new(
            format!(
                "the heartbeat is {} s old, it should be renewed every {} s",
                -ahead_s,
                heartbeat::HEARTBEAT_PERIOD.as_secs()
            ),
            "clock skew: this node's clock is ahead; or the other side's writer has stopped",
            "compare `date -u` on both sides; if they agree, look at the writer of the other side",
        ));
    }
    Ok(format!("the heartbeat is {} s old", (-ahead_s).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_tell_about_clocks() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for (beat, words) in [
            ("2026-11-20T11:59:30Z", "30 s old"),
            ("2026-11-20T12:00:05Z", "0 s old"),
            ("2026-11-20T11:58:00Z", "120 s old"),
            ("soon", "not a time"),
        ] {
            let detail = judge(beat.as_bytes(), now).unwrap();
            assert!(detail.contains(words), "{beat}: {detail}");
        }
        for (beat, words) in [("2026-11-20T13:00:00Z", "3600 s in the future"), ("2026-11-20T11:00:00Z", "3600 s old")]
        {
            let diagnosis = judge(beat.as_bytes(), now).unwrap_err();
            assert!(diagnosis.detail.contains(words) && diagnosis.cause.contains("clock skew"), "{diagnosis:?}");
        }
    }
}
