use super::*;

#[test]
fn masks_follow_the_contract() {
    for (prefix, mask) in [
        ("10.7.21.0/24", "////AA=="),
        ("10.7.0.0/16", "//8AAA=="),
        ("10.0.0.0/8", "/wAAAA=="),
        ("fd00:1::/64", "//////////8AAAAAAAAAAA=="),
        ("fd00:1::/48", "////////AAAAAAAAAAAAAA=="),
        ("10.0.0.1/32", "/////w=="),
        ("0.0.0.0/0", "AAAAAA=="),
    ] {
        let prefix: IpNet = prefix.parse().unwrap();
        assert_eq!(mask_text(prefix), mask);
        assert_eq!(prefix_from_mask("Mask", prefix.addr(), mask), Ok(prefix));
    }
}

#[test]
fn the_two_ways_to_find_a_special_range_agree() {
    for text in [
        "0.1.2.3",
        "10.0.0.1",
        "127.1.1.1",
        "169.254.0.1",
        "169.255.0.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "::ffff:1.2.3.4",
        "fd00::1",
    ] {
        let ip: IpAddr = text.parse().unwrap();
        let listed = SPECIAL.iter().find(|(range, _)| range.contains(&ip)).map(|(_, special)| *special);
        assert_eq!(special_range(ip), listed, "{text}");
    }
}

#[test]
fn a_prefix_that_reaches_into_a_special_range_is_refused() {
    let refused = |text: &str| check_prefix("p", text.parse().unwrap()).unwrap_err().to_string();
    assert_eq!(refused("::fffe:0:0/95"), "p ::fffe:0:0/95 is in the IPv4-mapped IPv6 range");
    assert_eq!(refused("255.0.0.0/8"), "p 255.0.0.0/8 is in the broadcast range");
    assert_eq!(refused("fe80::/9"), "prefix fe80::/9 is too large: its length must be at least 16");
}
