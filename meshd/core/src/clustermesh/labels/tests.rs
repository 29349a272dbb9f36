use super::*;

#[test]
fn label_text_becomes_canonical() {
    for (text, canonical) in [
        ("k8s:a=1;k8s:b=2;", "k8s:a=1;k8s:b=2;"),
        ("k8s:b=2;k8s:a=1;", "k8s:a=1;k8s:b=2;"),
        ("k8s:a=1", "k8s:a=1;"),
        (";;k8s:a=1;;", "k8s:a=1;"),
        ("reserved:host", "reserved:host=;"),
        ("k8s:a=b=c:d;", "k8s:a=b=c:d;"),
        ("any:b=1;k8s:a=1;", "k8s:a=1;any:b=1;"),
        ("", ""),
    ] {
        assert_eq!(&*parse(text, 10).unwrap().0, canonical, "{text}");
        assert_eq!(&*parse(canonical, 10).unwrap().0, canonical);
    }
}

#[test]
fn label_text_is_bounded() {
    let many: String = (0..11).map(|i| format!("k8s:l{i}=;")).collect();
    assert_eq!(parse(&many, 10), Err(Rejection::TooManyEntries { field: "labels", found: 11, limit: 10 }));
    let long = format!("k8s:a={};", "x".repeat(LABELS_TEXT_MAX));
    assert!(matches!(parse(&long, 10), Err(Rejection::Oversized { .. })));
    assert!(matches!(from_map([("a", &*long.replace([';', ':'], ""))]), Err(Rejection::Oversized { .. })));
}

#[test]
fn node_labels_sort_and_keep_the_last_of_equal_keys() {
    assert_eq!(&*from_map([("b", "2"), ("a", "1"), ("b", "3")]).unwrap().0, "a=1;b=3;");
    for bad in [("", "x"), ("a=b", ""), ("a:b", ""), ("a;b", ""), ("a", "x;y"), ("a", "\n")] {
        assert!(matches!(from_map([bad]), Err(Rejection::Label { .. })), "{bad:?}");
    }
}
