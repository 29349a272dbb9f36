use proptest::prelude::*;

use super::*;
use crate::wire::as_path::write_segments;

fn pattern(text: &str) -> AsPathPattern {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// Numbers of a sequence.
fn path(numbers: &[u32]) -> Vec<u8> {
    let numbers: Vec<Asn> = numbers.iter().copied().map(Asn).collect();
    write_segments([(SegmentKind::Sequence, numbers.as_slice())])
}

#[test]
fn patterns_of_routers_mean_what_they_mean_there() {
    for (text, matching, other) in [
        ("^$", &[&[][..]][..], &[&[1][..]][..]),
        ("_65001_", &[&[65_001], &[1, 65_001, 2], &[1, 65_001]], &[&[], &[650_011], &[1_165_001]]),
        ("^65001_", &[&[65_001], &[65_001, 2]], &[&[1, 65_001], &[650_010]]),
        ("_65001$", &[&[65_001], &[2, 65_001]], &[&[65_001, 1], &[165_001]]),
        ("^65001$", &[&[65_001]], &[&[65_001, 65_001], &[]]),
        ("65001", &[&[65_001], &[165_001, 3], &[650_012]], &[&[6_500], &[]]),
        ("^65001 .* 65002$", &[&[65_001, 7, 65_002], &[65_001, 7, 8, 65_002]], &[&[65_001, 65_002], &[65_001, 7]]),
        ("^65001( 65001)*$", &[&[65_001], &[65_001, 65_001, 65_001]], &[&[65_001, 65_002], &[]]),
        ("_(65001|65002)_", &[&[1, 65_002], &[65_001]], &[&[65_003]]),
        ("^[0-9]+$", &[&[1], &[65_001]], &[&[1, 2], &[]]),
        ("^6500[1-3]_6[^5]+$", &[&[65_002, 64], &[65_003, 67]], &[&[65_004, 64], &[65_002, 65]]),
        ("^[0-9]+( [0-9]+){2}$", &[&[1, 2, 3]], &[&[1, 2], &[1, 2, 3, 4]]),
        ("^[0-9]+( [0-9]+){0,1}$", &[&[1], &[1, 2]], &[&[1, 2, 3], &[]]),
        ("^(\\d+ ){3,}\\d+$", &[&[1, 2, 3, 4], &[1, 2, 3, 4, 5]], &[&[1, 2, 3]]),
        (".*", &[&[], &[1, 2]], &[]),
        ("", &[&[], &[1, 2]], &[]),
        ("(1|)2?_$", &[&[12], &[5, 2], &[], &[3]], &[]),
        ("^_*1$", &[&[1]], &[&[2, 1]]),
        ("_1_2_", &[&[1, 2], &[0, 1, 2, 3]], &[&[1, 3, 2], &[12]]),
        ("_1__2_", &[], &[&[1, 2]]),
    ] {
        for numbers in matching {
            assert!(pattern(text).matches(AsPath::of_canonical(&path(numbers))), "{text} {numbers:?}");
        }
        for numbers in other {
            assert!(!pattern(text).matches(AsPath::of_canonical(&path(numbers))), "{text} {numbers:?}");
        }
    }
}

#[test]
fn sets_and_confederations_are_matched_as_they_are_printed() {
    let numbers = |list: &[u32]| list.iter().copied().map(Asn).collect::<Vec<_>>();
    let (confed, plain, set) = (numbers(&[65_100]), numbers(&[1, 2]), numbers(&[7, 8]));
    let value = write_segments([
        (SegmentKind::ConfedSequence, confed.as_slice()),
        (SegmentKind::Sequence, plain.as_slice()),
        (SegmentKind::Set, set.as_slice()),
    ]);
    let path = AsPath::of_canonical(&value);
    assert_eq!(path.to_string(), "(65100) 1 2 {7 8}");
    for (text, expected) in [
        ("_7_", true),
        ("_8$", false),
        ("_8_$", true),
        ("\\{7 8\\}$", true),
        ("[{]7", true),
        ("^\\(65100\\)_1_", true),
        ("^65100_", false),
        ("^_65100_", true),
        ("^1_", false),
        ("[]}]$", true),
    ] {
        assert_eq!(pattern(text).matches(path), expected, "{text}");
        assert_eq!(pattern(text).matches_text(path), expected, "{text} as text");
    }
}

#[test]
fn wrong_patterns_say_what_and_where() {
    for (text, reason, position) in [
        ("(1", "this `(` is not closed", 1),
        ("1)", "this `)` closes nothing", 2),
        ("[1", "this `[` is not closed", 1),
        ("*1", "nothing to repeat", 1),
        ("1|+", "nothing to repeat", 3),
        ("1\\", "nothing after the backslash", 2),
        ("AS1", "an AS path has digits, spaces and brackets only", 1),
        ("[a-z]", "a range goes from one digit to a larger one", 2),
        ("[9-0]", "a range goes from one digit to a larger one", 2),
        ("1{2,1}", "write {2}, {2,} or {2,4}; for a brace of an AS_SET write \\{", 2),
        ("1{65}", "write {2}, {2,} or {2,4}; for a brace of an AS_SET write \\{", 2),
        ("1{", "write {2}, {2,} or {2,4}; for a brace of an AS_SET write \\{", 2),
        ("((1{60}){60})", "the pattern is too large", 1),
        (&"(".repeat(40), "too many groups in each other", 33),
        (&format!("1{}", "*".repeat(40)), "too many repetitions of one thing", 34),
        (&"1".repeat(513), "a pattern has at most 512 characters", 513),
    ] {
        let error = text.parse::<AsPathPattern>().expect_err(text);
        assert_eq!((error.reason, error.position), (reason, position), "{text}");
    }
    // Every kind of group at its limit.
    let deep = format!("{}1{}", "(".repeat(32), ")".repeat(32));
    assert!(pattern(&deep).matches(AsPath::of_canonical(&path(&[1]))));
}

#[test]
fn a_pattern_that_would_go_back_for_ever_takes_no_time() {
    let long: Vec<u32> = (0..250).map(|_| 1_111_111_111).collect();
    assert!(!pattern("^((1*)*)*2$").matches(AsPath::of_canonical(&path(&long))));
    assert!(pattern("((1|11)* ?)*$").matches(AsPath::of_canonical(&path(&long))));
}

proptest! {
    #[test]
    fn common_forms_say_the_same_as_their_text(
        asn in prop_oneof![0u32..30, Just(65_001)],
        kinds in prop::collection::vec((1u8..=4, prop::collection::vec(0u32..30, 1..4)), 0..4),
    ) {
        let numbers: Vec<(SegmentKind, Vec<Asn>)> = kinds
            .into_iter()
            .filter_map(|(kind, list)| Some((SegmentKind::from_octet(kind)?, list.into_iter().map(Asn).collect())))
            .collect();
        let value = write_segments(numbers.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())));
        let path = AsPath::of_canonical(&value);
        for text in [format!("_{asn}_"), format!("^{asn}_"), format!("_{asn}$"), "^$".to_owned()] {
            let pattern: AsPathPattern = text.parse().expect("a pattern");
            prop_assert_ne!(pattern.form, Form::Other);
            prop_assert_eq!(pattern.matches(path), pattern.matches_text(path), "{} {}", text, path);
        }
    }

    #[test]
    fn nothing_panics(text in "[0-9 _^$.*+?|(){},\\[\\]\\\\-]{0,24}", numbers in prop::collection::vec(any::<u32>(), 0..6)) {
        if let Ok(pattern) = text.parse::<AsPathPattern>() {
            let value = path(&numbers);
            prop_assert_eq!(
                pattern.matches(AsPath::of_canonical(&value)),
                pattern.matches_text(AsPath::of_canonical(&value))
            );
        }
    }
}
