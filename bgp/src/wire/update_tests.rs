use super::*;

#[test]
fn the_empty_update_is_end_of_rib() {
    let context = Context {
        kind: PeerKind::External,
        asn4: true,
        refuse_as_sets: false,
        families: PerFamily {
            ipv4: FamilyContext { enabled: true, ..FamilyContext::default() },
            ..PerFamily::default()
        },
    };
    let mut scratch = Vec::new();
    let update = decode(&[0; 4], &context, &mut scratch).expect("well-formed");
    assert_eq!(update.end_of_rib, Some(Family::Ipv4Unicast));
}
