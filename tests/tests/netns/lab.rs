//! The lab itself: what comes up, what is separate, and that nothing stays.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lab::{Error, Lab, Options, Topology, catalog};
use nix::sys::signal::Signal;

/// How long any single condition may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bringing the west/east lab up without its daemons, on a machine that does nothing else, takes under 3 s.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// Two nodes and a pod: a switch, a direct link, a file, a daemon, an environment.
const SMALL: &str = r#"
name: small
topology:
  defaults: {kind: linux, env: {GREETING: hello}}
  nodes:
    fabric: {kind: bridge}
    a:
      cmd: sh -c 'echo $$ >> /run/starts; echo started $GREETING; exec sleep 1000'
      binds: ["greeting.txt:/etc/small/greeting.txt:ro"]
      exec:
        - ip address add 192.0.2.1/24 dev eth0
        - ip route add 198.51.100.10 dev pod
    b:
      env: {GREETING: howdy}
      exec:
        - ip address add 192.0.2.2/24 dev eth0
        - ip route add 198.51.100.10 via 192.0.2.1
    a-pod:
      labels: {meshd.lab/role: pod}
      exec:
        - ip address add 198.51.100.10/32 dev eth0
        - ip route add 192.0.2.1 dev eth0
        - ip route add default via 192.0.2.1
  links:
    - endpoints: ["a:eth0", "fabric:a"]
    - endpoints: ["b:eth0", "fabric:b"]
    - {type: veth, mtu: 1400, endpoints: [{node: a, interface: pod}, {node: a-pod, interface: eth0, mac: "02:00:00:00:00:0a"}]}
"#;

/// A topology file of the test's own, and a name for a lab that no other test has.
struct Small {
    folder: tempfile::TempDir,
    name: String,
}

impl Small {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("greeting.txt"), "from the host\n").unwrap();
        fs::write(folder.path().join("small.clab.yml"), SMALL).unwrap();
        Self { folder, name: format!("small-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("small.clab.yml")
    }

    fn options(&self) -> Options {
        Options { name: Some(self.name.clone()), ..Options::default() }
    }

    fn up(&self) -> Lab {
        Lab::up_topology(&Topology::load(&self.path()).unwrap(), &self.options()).unwrap()
    }
}

/// What a lab could leave behind in the namespaces of the host.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    links: String,
    addresses: String,
    routes: String,
    rules: String,
    named_namespaces: String,
    mounts: Vec<String>,
    folders: Vec<PathBuf>,
    groups: Vec<PathBuf>,
    processes: Vec<i32>,
}

impl Host {
    /// What is there now; folders, groups and processes only as far as they carry the lab's name.
    fn now(name: &str) -> Self {
        let ip = |arguments: &[&str]| {
            let output = Command::new("ip").args(arguments).output().unwrap();
            assert!(output.status.success(), "ip {arguments:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let private = ["/var/lib/meshd", "/etc/meshd", "/etc/small"].map(PathBuf::from);
        Self {
            links: ip(&["-o", "link"]),
            addresses: ip(&["-o", "address"]),
            routes: ip(&["route", "show", "table", "all"]),
            rules: ip(&["rule"]),
            named_namespaces: ip(&["netns"]),
            mounts: mounts.lines().map(str::to_owned).collect(),
            folders: [Path::new("/run/meshd-lab").join(name)]
                .into_iter()
                .chain(private)
                .filter(|path| path.exists())
                .collect(),
            groups: ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .map(|mount| Path::new(mount).join("meshd-lab").join(name))
                .into_iter()
                .filter(|path| path.exists())
                .collect(),
            processes: processes_of(name),
        }
    }
}

/// Processes with the lab's mark in their environment.
fn processes_of(name: &str) -> Vec<i32> {
    let mark = format!("MESHD_LAB={name}");
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_marked).collect()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The `lab` command, built beside this test.
fn lab_command() -> Command {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("lab");
    assert!(binary.is_file(), "{} is missing; build it with: cargo build --package lab", binary.display());
    Command::new(binary)
}

fn run_lab(arguments: &[&str]) -> std::process::Output {
    lab_command().args(arguments).output().unwrap()
}

#[test]
fn nodes_reach_each_other_and_only_each_other() {
    tests::need_root();
    let small = Small::new();
    let lab = small.up();
    let (b, pod) = (lab.node("b").unwrap(), lab.node("a-pod").unwrap());
    // Two hops: the pod's echo starts with 64 and node a takes one off.
    let ping = b.exec(&["ping", "-c1", "-W5", "198.51.100.10"]).unwrap().ok().unwrap();
    assert!(ping.contains("ttl=63"), "{ping}");
    let links = pod.exec(&["ip", "-j", "link"]).unwrap().json().unwrap();
    let eth0 = links.as_array().unwrap().iter().find(|link| link["ifname"] == "eth0").unwrap();
    assert_eq!((&eth0["mtu"], &eth0["address"]), (&1400.into(), &"02:00:00:00:00:0a".into()));
    let bridge = lab.node("fabric").unwrap().exec(&["ip", "-j", "link", "show", "master", "fabric"]).unwrap();
    assert_eq!(bridge.json().unwrap().as_array().unwrap().len(), 2);
    let unknown = lab.node("c").unwrap_err().to_string();
    assert!(unknown.contains("it has a, a-pod, b, fabric"), "{unknown}");
}

#[test]
fn each_node_has_its_own_world() {
    tests::need_root();
    let small = Small::new();
    let lab = small.up();
    let (a, b) = (lab.node("a").unwrap(), lab.node("b").unwrap());
    let say = |node: &lab::Node, line: &str| node.exec(&["sh", "-c", line]).unwrap().ok().unwrap().trim().to_owned();
    assert_eq!((say(&a, "hostname"), say(&b, "hostname")), ("a".to_owned(), "b".to_owned()));
    assert_eq!((say(&a, "echo $GREETING"), say(&b, "echo $GREETING")), ("hello".to_owned(), "howdy".to_owned()));
    assert_eq!(say(&a, "cat /etc/small/greeting.txt"), "from the host");
    assert!(!a.exec(&["sh", "-c", "echo changed > /etc/small/greeting.txt"]).unwrap().success());
    assert!(!b.exec(&["test", "-e", "/etc/small"]).unwrap().success());
    for folder in ["/run", "/var/lib/meshd", "/sys/fs/bpf"] {
        say(&a, &format!("mkdir {folder}/mine"));
        assert!(!b.exec(&["test", "-e", &format!("{folder}/mine")]).unwrap().success(), "{folder}");
        assert!(!Path::new(folder).join("mine").exists(), "{folder}");
    }
    assert_eq!(say(&a, "ls /sys/class/net"), "eth0\nlo\npod");
    assert!(say(&a, "cat /proc/self/cgroup").contains(&format!("/meshd-lab/{}/a", small.name)));
    assert_eq!(say(&a, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/rp_filter"), "1\n2");
    assert_eq!(say(&lab.node("a-pod").unwrap(), "cat /proc/sys/net/ipv4/ip_forward"), "0");
    // Code of the test itself also gets in.
    let bound = a.within(|| UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 1), 7)).is_ok()).unwrap();
    assert!(bound);
    assert!(UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 1), 7)).is_err());
}

#[test]
fn daemons_start_stop_and_are_remembered() {
    tests::need_root();
    let small = Small::new();
    let lab = small.up();
    let daemon = lab.node("a").unwrap().daemon("sh").unwrap();
    let first = daemon.pid().unwrap();
    assert!(matches!(daemon.start(), Err(Error::AlreadyRuns { pid, .. }) if pid == first));
    wait_for("the first line in the log", || daemon.log().unwrap() == "started hello\n");
    daemon.kill9().unwrap();
    assert_eq!(daemon.pid(), None);
    assert!(!Path::new(&format!("/proc/{first}")).exists(), "a zombie stays");
    assert!(matches!(daemon.signal(Signal::SIGHUP), Err(Error::NotRunning { .. })));
    daemon.start().unwrap();
    wait_for("the second line in the log", || daemon.log().unwrap() == "started hello\nstarted hello\n");
    // Another process sees the same daemon, and what the node kept in memory outlives it.
    let other = Lab::open(&small.name).unwrap().node("a").unwrap();
    assert_eq!(other.daemon("sh").unwrap().pid(), daemon.pid());
    other.daemon("sh").unwrap().restart().unwrap();
    wait_for("three starts", || other.exec(&["cat", "/run/starts"]).unwrap().ok().unwrap().lines().count() == 3);
    daemon.stop().unwrap();
    assert!(!daemon.is_running());
    assert!(matches!(lab.node("b").unwrap().daemon("sh"), Err(Error::NoDaemon { .. })));
}

#[test]
fn commands_report_how_they_ended() {
    tests::need_root();
    let small = Small::new();
    let lab = small.up();
    let b = lab.node("b").unwrap();
    let failed = b.exec(&["sh", "-c", "echo no >&2; exit 3"]).unwrap();
    assert_eq!((failed.status.code(), failed.stderr.as_str()), (Some(3), "no\n"));
    assert!(failed.ok().unwrap_err().to_string().contains("in b ended with exit status: 3: no"));
    assert!(matches!(b.exec(&["no-such-program"]), Err(Error::Start { .. })));
    let mut ping = b.spawn(&["ping", "-n", "-i", "0.01", "192.0.2.1"]).unwrap();
    wait_for("answers", || ping.so_far().unwrap().contains("icmp_seq=5"));
    assert!(ping.is_running().unwrap());
    let ended = ping.stop(Signal::SIGINT, DEADLINE).unwrap().ok().unwrap();
    assert!(ended.contains(" 0% packet loss"), "{ended}");
    let endless = b.spawn(&["sleep", "1000"]).unwrap();
    assert!(matches!(endless.finish(Duration::from_millis(10)), Err(Error::Deadline { .. })));
    let run = |command: &[&str]| run_lab(&[&["exec", small.name.as_str(), "b", "--"], command].concat());
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["hostname"]).stdout, b"b\n");
}

#[test]
fn two_labs_of_one_topology_do_not_meet() {
    tests::need_root();
    let (one, two) = (Small::new(), Small::new());
    let (first, second) = (one.up(), two.up());
    assert!(matches!(
        Lab::up_topology(&Topology::load(&one.path()).unwrap(), &one.options()),
        Err(Error::AlreadyUp { .. })
    ));
    for lab in [&first, &second] {
        lab.node("a").unwrap().exec(&["ping", "-c1", "-W5", "192.0.2.2"]).unwrap().ok().unwrap();
    }
    let listed = Lab::list();
    assert!(listed.contains(&one.name) && listed.contains(&two.name), "{listed:?}");
    first.down().unwrap();
    second.node("a").unwrap().exec(&["ping", "-c1", "-W5", "192.0.2.2"]).unwrap().ok().unwrap();
    assert!(processes_of(&one.name).is_empty());
}

#[test]
fn nothing_stays_after_down() {
    tests::need_root();
    let small = Small::new();
    let before = Host::now(&small.name);
    let lab = small.up();
    let node = lab.node("b").unwrap();
    // Programs that nobody remembers: one detached, one that ignores signals.
    node.exec(&["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"]).unwrap().ok().unwrap();
    node.exec(&["sh", "-c", "(trap '' TERM HUP INT; sleep 1000 >/dev/null 2>&1) >/dev/null 2>&1 &"])
        .unwrap()
        .ok()
        .unwrap();
    assert!(processes_of(&small.name).len() >= 6);
    assert_eq!(Host::now(&small.name).links, before.links, "a link is in the host's namespace");
    lab.down().unwrap();
    assert_eq!(Host::now(&small.name), before);
    assert!(matches!(Lab::down_by_name(&small.name), Err(Error::NotUp { .. })));
}

#[test]
fn nothing_stays_of_a_lab_that_does_not_come_up() {
    tests::need_root();
    let small = Small::new();
    let before = Host::now(&small.name);
    for (good, bad) in [
        ("192.0.2.2/24 dev eth0", "192.0.2.2/24 dev eth9"),
        ("greeting.txt:", "missing.txt:"),
        ("/etc/small/greeting.txt", "/small/greeting.txt"),
    ] {
        let broken = SMALL.replace(good, bad);
        assert_ne!(broken, SMALL);
        let topology = Topology::parse(&broken, small.folder.path().to_owned()).unwrap();
        let error = Lab::up_topology(&topology, &small.options()).unwrap_err();
        let Error::Up { cleanup, .. } = &error else { panic!("{error:?}") };
        assert!(cleanup.is_empty(), "{cleanup:?}");
        let message = lab::chain(&error);
        assert!(
            message.contains(bad.split_once(' ').map_or("missing.txt", |(_, link)| link)) || bad.contains("txt"),
            "{message}"
        );
        assert_eq!(Host::now(&small.name), before, "{message}");
    }
}

/// A `lab up` that can be killed at a chosen moment.
fn start_up(small: &Small) -> Child {
    lab_command()
        .args(["up", small.path().to_str().unwrap(), "--name", &small.name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn down_works_after_up_was_killed_at_any_moment() {
    tests::need_root();
    let small = Small::new();
    let before = Host::now(&small.name);
    let folder = Path::new("/run/meshd-lab").join(&small.name);
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("the folder", &|| folder.exists()),
        ("the first process", &|| !processes_of(&small.name).is_empty()),
        ("the record", &|| folder.join("lab.json").exists()),
        ("the daemon", &|| folder.join("nodes/a/log/sh.log").exists()),
    ];
    for (moment, reached) in moments {
        let mut up = start_up(&small);
        wait_for(moment, reached);
        up.kill().unwrap();
        up.wait().unwrap();
        let down = run_lab(&["down", &small.name]);
        assert!(down.status.success(), "killed at {moment}: {}", String::from_utf8_lossy(&down.stderr));
        wait_for("zombies to be reaped", || processes_of(&small.name).is_empty());
        assert_eq!(Host::now(&small.name), before, "killed at {moment}");
    }
}

#[test]
fn without_control_groups_the_recorded_processes_are_ended() {
    tests::need_root();
    let small = Small::new();
    let before = Host::now(&small.name);
    let binary = lab_command().get_program().to_owned();
    let script = format!(
        "for mount in $(awk '$3 == \"cgroup2\" {{print $2}}' /proc/mounts); do umount -l $mount; done
         set -e
         {lab} up {path} --name {name} > /dev/null
         {lab} exec {name} a -- ping -c1 -W5 192.0.2.2 > /dev/null
         {lab} down {name}",
        lab = binary.display(),
        path = small.path().display(),
        name = small.name
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for("zombies to be reaped", || processes_of(&small.name).is_empty());
    assert_eq!(Host::now(&small.name), before);
}

#[test]
fn west_and_east_come_up_with_links_addresses_and_certificates() {
    tests::need_root();
    let name = format!("west-east-{}", std::process::id());
    let before = Host::now(&name);
    let started = Instant::now();
    let lab =
        Lab::up("west-east", &Options { name: Some(name.clone()), daemons: false, ..Options::default() }).unwrap();
    let took = started.elapsed();
    println!("west-east is up after {} ms", took.as_millis());
    assert!(took < UP_WITHIN, "{took:?}");
    let client = lab.node("west-worker-client").unwrap();
    let ping = |address: &str| client.exec(&["ping", "-c1", "-W5", address]).unwrap();
    assert!(ping("10.0.1.10").ok().unwrap().contains("ttl=63"));
    for address in ["172.18.0.2", "172.18.0.3", "172.18.0.4", "172.18.0.5"] {
        lab.node("west-worker").unwrap().exec(&["ping", "-c1", "-W5", address]).unwrap().ok().unwrap();
    }
    // Nobody knows the PodCIDRs of anybody else yet.
    let unknown = lab.node("west-worker").unwrap().exec(&["ip", "route", "get", "10.1.1.10"]).unwrap();
    assert!(unknown.stderr.contains("unreachable"), "{unknown:?}");
    for (node, file) in [
        ("west-control-plane", "server.key"),
        ("west-worker", "node.crt"),
        ("east-worker", "remote.crt"),
        ("east-worker", "ca.crt"),
    ] {
        let path = format!("/etc/meshd/pki/{file}");
        lab.node(node).unwrap().exec(&["test", "-s", &path]).unwrap().ok().unwrap();
    }
    assert!(lab.daemons("meshd").len() == 4 && lab.daemons("meshd").iter().all(|daemon| !daemon.is_running()));
    lab.down().unwrap();
    assert_eq!(Host::now(&name), before);
}

#[test]
fn every_topology_can_be_found_by_name() {
    let names: Vec<String> = catalog::list().into_iter().map(|(name, _)| name).collect();
    for name in ["single-l2-ipv6", "west-east", "west-east-etcd"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
        assert_eq!(catalog::load(name).unwrap().name, name);
    }
}

#[test]
fn every_configuration_of_a_node_is_accepted() {
    tests::need_root();
    for topology in ["west-east", "west-east-etcd", "single-l2-ipv6"] {
        let name = format!("check-{topology}-{}", std::process::id());
        let options = Options { name: Some(name), daemons: false, ..Options::default() };
        let lab = Lab::up(topology, &options).unwrap();
        let nodes: Vec<lab::Node> = lab.nodes().into_iter().filter(|node| node.daemon("meshd").is_ok()).collect();
        assert_eq!(nodes.len(), 4);
        for node in nodes {
            node.exec(&["meshd", "check", "/etc/meshd/meshd.yaml"]).unwrap().ok().unwrap();
        }
    }
}

#[test]
fn real_etcd_lets_peers_read_and_nodes_write() {
    tests::need_root();
    let name = format!("etcd-{}", std::process::id());
    let lab = Lab::up("west-east-etcd", &Options { name: Some(name), ..Options::default() }).unwrap();
    let etcdctl = |user: &str, server: &str, arguments: &[&str]| {
        let (certificate, key) = (format!("/etc/meshd/pki/{user}.crt"), format!("/etc/meshd/pki/{user}.key"));
        let endpoint = format!("https://{server}:2379");
        let fixed =
            ["--endpoints", &endpoint, "--cacert", "/etc/meshd/pki/ca.crt", "--cert", &certificate, "--key", &key];
        let command = [&["env", "ETCDCTL_API=3", "etcdctl"], &fixed[..], arguments].concat();
        lab.node("west-worker").unwrap().exec(&command).unwrap()
    };
    let (own, other) = ("172.18.0.6", "172.18.0.7");
    etcdctl("node", own, &["put", "cilium/state/ip/v1/default/10.0.1.99", "{}"]).ok().unwrap();
    let refused = etcdctl("node", own, &["put", "cilium/cache/x", "{}"]);
    assert!(refused.stderr.contains("permission denied"), "{refused:?}");
    etcdctl("remote", other, &["get", "--prefix", "cilium/state/"]).ok().unwrap();
    let refused = etcdctl("remote", other, &["put", "cilium/state/x", "{}"]);
    assert!(refused.stderr.contains("permission denied"), "{refused:?}");
    let refused = etcdctl("node", other, &["get", "cilium/state/x"]);
    assert!(!refused.success(), "{refused:?}");
    lab.down().unwrap();
}
