//! `etcdctl`, Debian's, against the embedded store over mutual TLS.

use std::process::Stdio;
use std::time::Duration;

use meshd_store::{AuthConfig, StoreOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::certificates::{Authority, Pair};
use super::embedded::Embedded;

/// How long one command may take.
const DEADLINE: Duration = Duration::from_secs(30);

struct Ctl {
    authority: Authority,
    embedded: Embedded,
}

struct Output {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Ctl {
    async fn start() -> Self {
        let authority = Authority::new();
        let options = StoreOptions {
            auth: AuthConfig::standard("west", ["east"]),
            member_name: "west-control-plane".to_owned(),
            ..StoreOptions::default()
        };
        let embedded = Embedded::start(options, Some(authority.server())).await;
        Self { authority, embedded }
    }

    fn user(&self, common_name: &str) -> Pair {
        self.authority.issue_files(common_name)
    }

    fn command(&self, user: &Pair, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(format!("https://{}", self.embedded.address))
            .arg("--cacert")
            .arg(self.authority.ca())
            .arg("--cert")
            .arg(&user.cert)
            .arg("--key")
            .arg(&user.key)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, user: &Pair, arguments: &[&str]) -> Output {
        self.run_with_input(user, arguments, "").await
    }

    async fn run_with_input(&self, user: &Pair, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(user, arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("etcdctl does not start: install the package etcd-client");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
        Output {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn succeeds(&self, user: &Pair, arguments: &[&str]) -> String {
        let output = self.run(user, arguments).await;
        assert!(output.success, "{arguments:?}: {} {}", output.stdout, output.stderr);
        output.stdout
    }

    async fn denied(&self, user: &Pair, arguments: &[&str]) {
        let output = self.run(user, arguments).await;
        assert!(!output.success, "{arguments:?} is allowed: {}", output.stdout);
        assert!(output.stderr.contains("permission denied"), "{arguments:?}: {}", output.stderr);
    }

    /// Starts a command that prints until it is dropped.
    fn follow(&self, user: &Pair, arguments: &[&str]) -> Follow {
        let mut child = self.command(user, arguments).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Follow { _child: child, lines }
    }
}

struct Follow {
    _child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follow {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(DEADLINE, self.lines.read_line(&mut line)).await.unwrap().unwrap();
        line.trim_end().to_owned()
    }
}

#[tokio::test]
async fn keys_and_transactions() {
    let ctl = Ctl::start().await;
    let admin = ctl.user("admin-west");
    assert_eq!(ctl.succeeds(&admin, &["put", "cilium/a", "1"]).await, "OK\n");
    ctl.succeeds(&admin, &["put", "cilium/b", "2"]).await;
    ctl.succeeds(&admin, &["put", "other", "3"]).await;
    assert_eq!(ctl.succeeds(&admin, &["get", "--prefix", "cilium/"]).await, "cilium/a\n1\ncilium/b\n2\n");
    assert_eq!(
        ctl.succeeds(&admin, &["get", "--from-key", "", "--keys-only"]).await,
        "cilium/a\n\ncilium/b\n\nother\n\n"
    );
    let program = "value(\"cilium/a\") = \"1\"\n\nput cilium/c yes\nget cilium/a\n\nput cilium/c no\n\n";
    let txn = ctl.run_with_input(&admin, &["txn"], program).await;
    assert!(txn.success && txn.stdout.contains("SUCCESS"), "{} {}", txn.stdout, txn.stderr);
    assert_eq!(ctl.succeeds(&admin, &["get", "--print-value-only", "cilium/c"]).await, "yes\n");
    assert_eq!(ctl.succeeds(&admin, &["del", "--prefix", "cilium/"]).await, "3\n");
    assert_eq!(ctl.succeeds(&admin, &["compact", "5"]).await, "compacted revision 5\n");
    let past = ctl.run(&admin, &["get", "--rev", "2", "cilium/a"]).await;
    assert!(past.stderr.contains("required revision has been compacted"), "{}", past.stderr);
    ctl.embedded.stop().await;
}

#[tokio::test]
async fn watches() {
    let ctl = Ctl::start().await;
    let admin = ctl.user("admin-west");
    ctl.succeeds(&admin, &["put", "k/1", "old"]).await;
    let mut watch = ctl.follow(&admin, &["watch", "--prefix", "k/", "--rev", "1", "--prev-kv"]);
    for expected in ["PUT", "k/1", "old"] {
        assert_eq!(watch.line().await, expected);
    }
    ctl.succeeds(&admin, &["put", "k/1", "new"]).await;
    for expected in ["PUT", "k/1", "old", "k/1", "new"] {
        assert_eq!(watch.line().await, expected);
    }
    ctl.succeeds(&admin, &["del", "k/1"]).await;
    for expected in ["DELETE", "k/1", "new", "k/1", ""] {
        assert_eq!(watch.line().await, expected);
    }
    drop(watch);
    ctl.embedded.stop().await;
}

#[tokio::test]
async fn leases() {
    let ctl = Ctl::start().await;
    let admin = ctl.user("admin-west");
    let granted = ctl.succeeds(&admin, &["lease", "grant", "100"]).await;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert!(granted.contains("granted with TTL(100s)"), "{granted}");
    ctl.succeeds(&admin, &["put", "--lease", &id, "leased", "x"]).await;
    let left = ctl.succeeds(&admin, &["lease", "timetolive", "--keys", &id]).await;
    assert!(left.contains("granted with TTL(100s)") && left.contains("attached keys([leased])"), "{left}");
    let alive = ctl.succeeds(&admin, &["lease", "keep-alive", "--once", &id]).await;
    assert!(alive.contains("keepalived with TTL(100)"), "{alive}");
    assert!(ctl.succeeds(&admin, &["lease", "list"]).await.contains(&id));
    assert!(ctl.succeeds(&admin, &["lease", "revoke", &id]).await.contains("revoked"));
    assert_eq!(ctl.succeeds(&admin, &["get", "leased"]).await, "");
    let gone = ctl.succeeds(&admin, &["lease", "timetolive", &id]).await;
    assert!(gone.contains("already expired"), "{gone}");
    ctl.embedded.stop().await;
}

#[tokio::test]
async fn status_members_users_and_roles() {
    let ctl = Ctl::start().await;
    let admin = ctl.user("admin-west");
    let status = ctl.succeeds(&admin, &["endpoint", "status"]).await;
    assert!(status.contains("3.5.0") && status.contains("true"), "{status}");
    let health = ctl.run(&admin, &["endpoint", "health"]).await;
    assert!(
        health.success && format!("{}{}", health.stdout, health.stderr).contains("is healthy"),
        "{}",
        health.stderr
    );
    let members = ctl.succeeds(&admin, &["member", "list"]).await;
    assert!(members.contains("started, west-control-plane"), "{members}");
    assert_eq!(ctl.succeeds(&admin, &["alarm", "list"]).await, "");
    assert_eq!(ctl.succeeds(&admin, &["role", "list"]).await, "local\nnode\nremote\nroot\n");
    let role = ctl.succeeds(&admin, &["role", "get", "remote"]).await;
    assert!(role.contains("cilium/cluster-config/west"), "{role}");
    assert!(role.contains("[cilium/state/, cilium/state0) (prefix cilium/state/)"), "{role}");
    let users = ctl.succeeds(&admin, &["user", "list"]).await;
    assert_eq!(users, "admin-west\nlocal-west\nnode-west\nremote\nremote-east\nroot\n");
    assert!(ctl.succeeds(&admin, &["user", "get", "remote-east"]).await.contains("Roles: remote"));
    let refused = ctl.run(&admin, &["role", "add", "mine"]).await;
    assert!(!refused.success && refused.stderr.contains("come from its configuration"), "{}", refused.stderr);
    ctl.embedded.stop().await;
}

#[tokio::test]
async fn permissions_follow_the_common_name() {
    let ctl = Ctl::start().await;
    let [admin, remote, node, stranger] =
        ["admin-west", "remote-east", "node-west", "mallory"].map(|common_name| ctl.user(common_name));
    ctl.succeeds(&admin, &["put", "cilium/state/nodes/v1/west/a", "{}"]).await;
    ctl.succeeds(&admin, &["put", "cilium/cluster-config/west", "{}"]).await;
    ctl.succeeds(&admin, &["put", "cilium/cluster-config/east", "{}"]).await;

    let nodes = ctl.succeeds(&remote, &["get", "--prefix", "--keys-only", "cilium/state/nodes/v1/west/"]).await;
    assert_eq!(nodes, "cilium/state/nodes/v1/west/a\n\n");
    ctl.succeeds(&remote, &["get", "cilium/cluster-config/west"]).await;
    ctl.denied(&remote, &["get", "cilium/cluster-config/east"]).await;
    ctl.denied(&remote, &["get", "--prefix", "cilium/cache/"]).await;
    ctl.denied(&remote, &["get", "--prefix", "cilium/"]).await;
    ctl.denied(&remote, &["put", "cilium/state/nodes/v1/west/a", "x"]).await;
    ctl.denied(&remote, &["del", "cilium/state/nodes/v1/west/a"]).await;
    ctl.denied(&remote, &["lease", "grant", "10"]).await;
    ctl.denied(&remote, &["compact", "2"]).await;
    ctl.denied(&remote, &["user", "list"]).await;
    ctl.denied(&remote, &["role", "get", "root"]).await;
    ctl.succeeds(&remote, &["role", "get", "remote"]).await;
    ctl.succeeds(&remote, &["endpoint", "status"]).await;
    let watch = ctl.run(&remote, &["watch", "--prefix", "cilium/cache/"]).await;
    assert!(watch.stderr.contains("permission denied"), "{}{}", watch.stdout, watch.stderr);
    let program = "value(\"cilium/cluster-config/east\") = \"{}\"\n\nget cilium/cluster-config/west\n\n\n\n";
    let txn = ctl.run_with_input(&remote, &["txn"], program).await;
    assert!(txn.stderr.contains("permission denied"), "a compare is a read: {} {}", txn.stdout, txn.stderr);

    ctl.succeeds(&node, &["put", "cilium/state/nodes/v1/west/b", "{}"]).await;
    ctl.denied(&node, &["put", "cilium/cluster-config/west", "{}"]).await;
    ctl.denied(&node, &["put", "cilium/state/nodes/v1/east/b", "{}"]).await;
    ctl.denied(&node, &["compact", "2"]).await;
    // A lease that carries somebody else's key could delete it.
    let granted = ctl.succeeds(&admin, &["lease", "grant", "100"]).await;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    ctl.succeeds(&admin, &["put", "--lease", &id, "cilium/.heartbeat", "now"]).await;
    ctl.denied(&node, &["lease", "revoke", &id]).await;
    ctl.denied(&node, &["put", "--lease", &id, "cilium/state/nodes/v1/west/b", "{}"]).await;

    ctl.denied(&stranger, &["get", "cilium/.heartbeat"]).await;
    let elsewhere = Authority::new().issue_files("admin-west");
    let foreign = ctl.run(&elsewhere, &["--command-timeout", "2s", "get", "cilium/.heartbeat"]).await;
    assert!(!foreign.success, "another authority's certificate is refused");
    ctl.embedded.stop().await;
}
