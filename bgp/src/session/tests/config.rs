//! Which changes the peer has to learn of, and which configurations make no sense.

use super::{super::*, config};
use crate::{Asn, RouterId, wire::capability::Role};

#[test]
fn each_field_ends_the_session_or_does_not() {
    type Change = fn(&mut SessionConfig);
    let cases: &[(Option<&str>, Change)] = &[
        (Some("AS"), |it| it.local_as = Asn(1)),
        (Some("local AS"), |it| it.local_as_override = Some(Asn(1))),
        (Some("confederation"), |it| {
            it.confederation = Some(Confederation { identifier: Asn(1), members: [].into() });
        }),
        (Some("remote AS"), |it| it.remote_as = RemoteAs::External),
        (Some("router identifier"), |it| it.router_id = RouterId(9)),
        (Some("hold time"), |it| it.hold_time_s = 9),
        (Some("minimum hold time"), |it| it.hold_time_min_s = 9),
        (None, |it| it.keepalive_s = Some(1)),
        (None, |it| it.send_hold = SendHold::Off),
        (None, |it| it.connect_retry *= 2),
        (None, |it| it.delay_open = Some(it.connect_retry)),
        (None, |it| it.passive = true),
        (None, |it| it.damping.enabled = false),
        (None, |it| it.prefix_limit_restart.ipv4 = Some(it.connect_retry)),
        (Some("extended messages"), |it| it.extended_message = false),
        (Some("route refresh"), |it| it.route_refresh = false),
        (Some("enhanced route refresh"), |it| it.enhanced_refresh = false),
        (Some("graceful restart"), |it| it.graceful_restart = None),
        (Some("graceful restart"), |it| restart(it).restart_time_s = 1),
        (Some("graceful restart"), |it| restart(it).notification = false),
        (Some("graceful restart"), |it| restart(it).helper_only = true),
        (None, |it| restart(it).stale_path_time *= 2),
        (Some("role"), |it| it.role = Some(RoleConfig { role: Role::Peer, strict: false })),
        (Some("host name"), |it| it.host_name = Some(HostName { host: String::new(), domain: String::new() })),
        (Some("address families"), |it| it.families.ipv4 = None),
        (Some("add-path"), |it| ipv6(it).add_path_receive = true),
        (Some("add-path"), |it| ipv6(it).add_path_send = true),
        (Some("extended next hop"), |it| ipv6(it).extended_next_hop = true),
        (Some("graceful restart"), |it| ipv6(it).restart = false),
        (Some("long-lived graceful restart"), |it| ipv6(it).stale_time_s = Some(1)),
    ];
    for (number, (expected, change)) in cases.iter().enumerate() {
        let mut changed = config();
        change(&mut changed);
        assert_ne!(changed, config(), "case {number} changes nothing");
        assert_eq!(config().wire_differs(&changed), *expected, "case {number}");
        assert_eq!(changed.wire_differs(&config()), *expected, "case {number}, the other way round");
    }
    assert_eq!(config().wire_differs(&config()), None);
}

fn restart(config: &mut SessionConfig) -> &mut RestartConfig {
    config.graceful_restart.as_mut().expect("graceful restart is on")
}

fn ipv6(config: &mut SessionConfig) -> &mut FamilyConfig {
    config.families.ipv6.as_mut().expect("IPv6 is on")
}

#[test]
fn nonsense_is_named() {
    type Change = fn(&mut SessionConfig);
    let cases: &[(ConfigError, Change)] = &[
        (ConfigError::ZeroAs, |it| it.local_as = Asn(0)),
        (ConfigError::ZeroAs, |it| it.remote_as = RemoteAs::Number(Asn(0))),
        (ConfigError::ZeroAs, |it| it.local_as_override = Some(Asn(0))),
        (ConfigError::ZeroRouterId, |it| it.router_id = RouterId(0)),
        (ConfigError::HoldTime(2), |it| it.hold_time_s = 2),
        (ConfigError::MinimumHoldTime { minimum: 91, offered: 90 }, |it| it.hold_time_min_s = 91),
        (ConfigError::NoFamily, |it| it.families = crate::PerFamily::default()),
        (ConfigError::LocalAsIsRemote(Asn(65_002)), |it| it.local_as_override = Some(Asn(65_002))),
        (ConfigError::RestartTime(4_096), |it| restart(it).restart_time_s = 4_096),
        (ConfigError::StaleTime(1 << 24), |it| ipv6(it).stale_time_s = Some(1 << 24)),
        (ConfigError::LongLivedAlone, |it| {
            ipv6(it).stale_time_s = Some(1);
            it.graceful_restart = None;
        }),
        (ConfigError::InternalRole, |it| {
            it.remote_as = RemoteAs::Internal;
            it.role = Some(RoleConfig { role: Role::Peer, strict: false });
        }),
    ];
    assert_eq!(config().validate(), Ok(()));
    for (expected, change) in cases {
        let mut changed = config();
        change(&mut changed);
        assert_eq!(changed.validate(), Err(*expected));
    }
}
