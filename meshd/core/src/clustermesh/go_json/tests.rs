use super::*;

go_record! {
    Sample {
        name: Text<'de> = "Name",
        number: u8 = "Number",
        list: List<u8, 2> = "List",
        map: Entries<'de, u8, 2> = "Map",
    }
}

fn sample(text: &str) -> Result<Sample<'_>, Rejection> {
    read(text.as_bytes())
}

#[test]
fn names_match_without_regard_to_case_and_null_leaves_the_default() {
    for (text, name, number) in [
        (r#"{"Name":"a","Number":1}"#, "a", 1),
        (r#"{"NAME":"a","number":1,"other":{"Name":"b"}}"#, "a", 1),
        (r#"{"Name":null,"Number":null}"#, "", 0),
        (r#"{"Name":"a","Name":"b"}"#, "b", 0),
        (r#"{"Name":"a","name":null}"#, "a", 0),
        (r#"{"\u004eame":"\u0061"}"#, "a", 0),
        ("{}", "", 0),
    ] {
        let read = sample(text).unwrap();
        assert_eq!((&*read.name, read.number), (name, number), "{text}");
    }
}

#[test]
fn what_go_refuses_is_refused_with_its_position() {
    for (text, line, column) in [
        ("", 1, 0),
        ("[]", 1, 0),
        ("{} x", 1, 4),
        ("{\n\"Number\":256}", 2, 12),
        (r#"{"Number":1.5}"#, 1, 13),
        (r#"{"Number":"1"}"#, 1, 13),
        (r#"{"Name":1}"#, 1, 9),
        ("{\"Name\":\"\u{1}\"}", 1, 10),
    ] {
        let Err(Rejection::Json { line: l, column: c, problem }) = sample(text) else { panic!("{text}") };
        assert_eq!((l, c), (line, column), "{text}: {problem}");
        assert!(!problem.contains("at line") && !problem.is_empty(), "{problem}");
    }
}

#[test]
fn lists_and_maps_keep_a_bounded_part_and_count_the_rest() {
    let read = sample(r#"{"List":[1,2],"Map":{"a":1,"b":null}}"#).unwrap();
    assert_eq!(read.list.bounded("List").unwrap(), [1, 2]);
    assert_eq!(read.map.bounded("Map").unwrap().len(), 2);
    let read = sample(r#"{"List":[1,2,"x",{}],"Map":{"a":1,"b":2,"c":[]}}"#).unwrap();
    let too_many = |field, found| Err(Rejection::TooManyEntries { field, found, limit: 2 });
    assert_eq!(read.list.bounded("List"), too_many("List", 4));
    assert_eq!(read.map.bounded("Map").map(|_| &[0u8][..]), too_many("Map", 3));
}

#[test]
fn writing_escapes_what_go_escapes() {
    assert_eq!(
        write(&"a<b>&\u{2028}\u{2029}\"\n\u{1}é"),
        "\"a\\u003cb\\u003e\\u0026\\u2028\\u2029\\\"\\n\\u0001é\"".as_bytes()
    );
}
