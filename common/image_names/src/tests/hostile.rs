//! Input that is broken, huge or meant to harm.

use std::fmt::Write as _;

use proptest::prelude::*;

use crate::{MAX_FILE_BYTES, scan_file};

#[test]
fn what_is_not_text_is_named() {
    for bytes in [&b"\x7fELF\x00\x01"[..], b"\x1f\x8b\x08\x00", b"a\0b", b"\xff\xfe\x00", b"image: \xff"] {
        let scan = scan_file("x.yaml", bytes);
        assert!(scan.found.is_empty());
        assert_eq!(scan.problems[0].reason, "it is not text", "{bytes:?}");
    }
    let scan = scan_file("x.yaml", &vec![b' '; MAX_FILE_BYTES + 1]);
    assert_eq!(scan.problems[0].reason, "it has more than 64 MiB, and is not read");
}

#[test]
fn text_of_windows_is_read() {
    let text = "kind: Pod\r\nspec: {containers: [{name: a, image: 'r.example/a:1'}]}\r\n";
    let utf16: Vec<u8> = std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    for bytes in [utf16, marked] {
        assert_eq!(scan_file("x.yaml", &bytes).found.len(), 1);
    }
}

#[test]
fn bombs_end_early_and_hide_no_other_document() {
    let mut bomb = "kind: Pod\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let alias = format!("*a{}", level - 1);
        _ = writeln!(bomb, "a{level}: &a{level} [{}]", [alias.as_str(); 10].join(", "));
    }
    bomb.push_str("---\nkind: Pod\nspec: {containers: [{name: a, image: 'r.example/a:1'}]}\n");
    let scan = scan_file("x.yaml", bomb.as_bytes());
    assert!(scan.problems[0].reason.contains("document 1 is not read: aliases add"), "{:?}", scan.problems);
    assert_eq!(scan.found.len(), 1);
    let mut args = "ARG A=xxxxxxxxxxxxxxxx\n".to_owned();
    (0..64).for_each(|_| args.push_str("ARG A=$A$A\n"));
    args.push_str("FROM $A\n");
    assert_eq!(scan_file("Dockerfile", args.as_bytes()).undecided.len(), 1);
    for nested in ["[", "{a: ", "- "] {
        let scan = scan_file("x.yaml", nested.repeat(200_000).as_bytes());
        assert!(!scan.problems.is_empty(), "{nested}");
    }
}

#[test]
fn ten_thousand_images_are_found() {
    let mut text = String::new();
    for number in 0..10_000 {
        _ = writeln!(
            text,
            "---\nkind: Pod\nmetadata: {{name: p{number}}}\nspec: {{containers: [{{name: a, image: 'r.example/a{number}:1'}}]}}"
        );
    }
    assert_eq!(scan_file("x.yaml", text.as_bytes()).found.len(), 10_000);
    let mut list = String::new();
    (0..250_000).for_each(|number| _ = writeln!(list, "r.example/a{number}:1"));
    let scan = scan_file("images.txt", list.as_bytes());
    assert_eq!(scan.found.len(), 200_000);
    assert!(scan.problems[0].reason.contains("the rest of it is not read"), "{:?}", scan.problems);
}

#[test]
fn json_that_is_not_yaml_has_the_same_limit_of_values() {
    let text = format!("[1]\t[{}0]", "0,".repeat(2_000_000));
    let scan = scan_file("x.json", text.as_bytes());
    assert!(scan.found.is_empty(), "{:?}", scan.found);
    assert!(
        scan.problems.iter().any(|problem| problem.reason.contains("more than 2000000 values")),
        "{:?}",
        scan.problems
    );
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let text = "kind: Pod\nmetadata: {name: \"\\e[2Jx\"}\nspec: {containers: [{name: a, image: \"\\e[31mA\"}]}\n";
    let scan = scan_file("\u{1b}[1m.yaml", text.as_bytes());
    let [undecided] = scan.undecided.as_slice() else { panic!("{:?}", scan.undecided) };
    let printed = format!("{} {} {}", undecided.text, undecided.reason, undecided.place);
    assert!(!printed.contains('\u{1b}'), "{printed:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_scan_panic(bytes: Vec<u8>, name in "(x.yaml|Dockerfile|images.txt|stdin)") {
        let _ = scan_file(&name, &bytes);
    }

    #[test]
    fn no_text_makes_the_scan_panic(text in "(FROM|ARG|image|kind|items|List|services|[ \n:{}$@&*<-]|---|\\PC){0,40}", name in "(x.yaml|Dockerfile|images.txt|stdin)") {
        let _ = scan_file(&name, text.as_bytes());
    }
}
