//! Services to JSON shapes.

use std::net::SocketAddr;

use meshd_core::{
    desired::{Backend, BackendState as DesiredState, Service, ServicePort},
    observed::{Protocol, ServiceName},
};

use super::view::{BackendState, BackendView, ServiceBackendView, ServiceView};
use crate::pipeline::Snapshot;

/// Services of our own cluster, one view per frontend; one per port without frontend.
#[must_use]
pub fn services(snapshot: &Snapshot, wanted: Option<&str>) -> Vec<ServiceView> {
    let mut views = Vec::new();
    for (name, service) in snapshot.desired.services.iter().filter(|(name, _)| is_wanted(name, wanted)) {
        for port in &service.ports {
            let view = |frontend: Option<String>, backends| ServiceView {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                frontend,
                kind: service.kind.word().to_owned(),
                affinity: service.affinity.word().to_owned(),
                backends,
            };
            if port.frontends.is_empty() {
                views.push(view(None, port.backends.iter().map(backend).collect()));
            }
            for frontend in &port.frontends {
                let at = SocketAddr::new(frontend.address, frontend.port);
                let text = format!("{at}/{}", protocol(port.protocol));
                views.push(view(Some(text), port.backends_of(frontend).map(backend).collect()));
            }
        }
    }
    views
}

/// Backends of services of our own cluster, one view per service, port and backend.
#[must_use]
pub fn backends(snapshot: &Snapshot, wanted: Option<&str>) -> Vec<ServiceBackendView> {
    let mut views = Vec::new();
    for (name, service) in snapshot.desired.services.iter().filter(|(name, _)| is_wanted(name, wanted)) {
        for port in &service.ports {
            views.extend(port.backends.iter().map(|backend| whole(name, service, port, backend)));
        }
    }
    views
}

fn whole(name: &ServiceName, service: &Service, port: &ServicePort, backend: &Backend) -> ServiceBackendView {
    ServiceBackendView {
        namespace: name.namespace.to_string(),
        service: name.name.to_string(),
        port_name: port.name.to_string(),
        protocol: protocol(port.protocol).to_owned(),
        affinity: service.affinity.word().to_owned(),
        address: backend.address,
        port: backend.port,
        cluster: backend.cluster.to_string(),
        node_address: backend.node,
        state: state(backend.state),
        preferred: backend.preferred,
        used: backend.used,
        weight: backend.weight,
        local: backend.local,
        zone: backend.zone.as_deref().map(str::to_owned),
        near: backend.near,
    }
}

fn backend(backend: &Backend) -> BackendView {
    BackendView {
        address: backend.address,
        port: backend.port,
        cluster: backend.cluster.to_string(),
        state: state(backend.state),
        preferred: backend.preferred,
    }
}

/// By its name, or by namespace and name.
fn is_wanted(name: &ServiceName, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| match wanted.split_once('/') {
        Some((namespace, wanted)) => *name.namespace == *namespace && *name.name == *wanted,
        None => *name.name == *wanted,
    })
}

fn state(state: DesiredState) -> BackendState {
    match state {
        DesiredState::Active => BackendState::Active,
        DesiredState::Terminating => BackendState::Terminating,
        DesiredState::Unreachable => BackendState::Unreachable,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Any => "any",
        Protocol::None => "none",
    }
}

#[cfg(test)]
mod tests {
    use meshd_core::{
        desired::{Frontend, FrontendKind},
        observed::Affinity,
    };

    use super::*;

    #[test]
    fn a_service_is_a_row_for_each_frontend_with_the_backends_of_its_family() {
        let backend = |address: &str, state, used| Backend {
            address: address.parse().unwrap(),
            port: 8080,
            cluster: "east".parse().unwrap(),
            node: None,
            state,
            preferred: true,
            used,
            weight: 100,
            local: false,
            zone: None,
            near: false,
        };
        let frontend =
            |address: &str| Frontend { address: address.parse().unwrap(), port: 80, kind: FrontendKind::ClusterIp };
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            frontends: [frontend("10.2.0.80"), frontend("fd02::80")].into(),
            backends: [
                backend("10.1.0.10", DesiredState::Active, true),
                backend("fd01::10", DesiredState::Unreachable, false),
            ]
            .into(),
        };
        let service = Service { affinity: Affinity::Remote, ..Service::with_ports([port]) };
        let mut snapshot = Snapshot::default();
        let name = ServiceName { namespace: "default".into(), name: "web".into() };
        snapshot.desired.services.upsert(name, service.into());
        let rows = serde_json::to_value(services(&snapshot, Some("default/web"))).unwrap();
        let expected = serde_json::json!([
            {"namespace": "default", "name": "web", "frontend": "10.2.0.80:80/tcp", "type": "ClusterIP", "affinity": "remote",
             "backends": [{"address": "10.1.0.10", "port": 8080, "cluster": "east", "state": "active", "preferred": true}]},
            {"namespace": "default", "name": "web", "frontend": "[fd02::80]:80/tcp", "type": "ClusterIP", "affinity": "remote",
             "backends": [{"address": "fd01::10", "port": 8080, "cluster": "east", "state": "unreachable", "preferred": true}]},
        ]);
        assert_eq!(rows, expected);
        let used: Vec<bool> = backends(&snapshot, Some("web")).iter().map(|row| row.used).collect();
        assert_eq!(used, [true, false]);
        assert!(services(&snapshot, Some("other/web")).is_empty() && backends(&snapshot, Some("w")).is_empty());
    }
}
