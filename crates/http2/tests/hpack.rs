//! Header compression, beside the examples of its RFC and beside the encoder of the `h2` crate's family.

use buttress_http2::hpack::{Decoder, Encoder, Head, Malformed};
use proptest::prelude::*;

const MAX: usize = 16 * 1024;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn texts(head: &Head) -> Vec<String> {
    head.iter().map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii())).collect()
}

/// What blocks that follow each other on one connection say, and the size of the table after each.
fn check(blocks: &[(&str, &[&str], usize)]) {
    let (mut decoder, mut head) = (Decoder::default(), Head::default());
    for (block, fields, size) in blocks {
        decoder.decode(&bytes(block), &mut head, MAX).unwrap();
        assert_eq!((texts(&head), decoder.size()), (fields.iter().map(ToString::to_string).collect(), *size));
    }
}

#[test]
fn single_fields_as_in_appendix_c_2() {
    check(&[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", &["custom-key: custom-header"], 55)]);
    check(&[("040c 2f73 616d 706c 652f 7061 7468", &[":path: /sample/path"], 0)]);
    check(&[("1008 7061 7373 776f 7264 0673 6563 7265 74", &["password: secret"], 0)]);
    check(&[("82", &[":method: GET"], 0)]);
}

const FIRST: &[&str] = &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
const SECOND: &[&str] =
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"];
const THIRD: &[&str] = &[
    ":method: GET",
    ":scheme: https",
    ":path: /index.html",
    ":authority: www.example.com",
    "custom-key: custom-value",
];

#[test]
fn requests_without_huffman_as_in_appendix_c_3() {
    check(&[
        ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST, 57),
        ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
        ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", THIRD, 164),
    ]);
}

#[test]
fn requests_with_huffman_as_in_appendix_c_4() {
    check(&[
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57),
        ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110),
        ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD, 164),
    ]);
}

/// Appendix C.6 wants a table of 256 bytes, so that entries leave it.
#[test]
fn responses_with_a_small_table_as_in_appendix_c_6() {
    let (mut decoder, mut head) = (Decoder::default(), Head::default());
    let first = "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
                 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
    decoder.decode(&bytes(first), &mut head, MAX).unwrap();
    let date = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    let location = "location: https://www.example.com";
    assert_eq!(texts(&head), [":status: 302", "cache-control: private", date, location]);
    assert_eq!(decoder.size(), 222);
    decoder.decode(&bytes("4883 640e ffc1 c0bf"), &mut head, MAX).unwrap();
    assert_eq!(texts(&head), [":status: 307", "cache-control: private", date, location]);
    assert_eq!(decoder.size(), 222);
    let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
                 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07";
    decoder.decode(&bytes(third), &mut head, MAX).unwrap();
    assert_eq!(
        texts(&head),
        [
            ":status: 200",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:22 GMT",
            location,
            "content-encoding: gzip",
            "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ]
    );
    assert_eq!(decoder.size(), 215);
}

#[test]
fn what_is_no_hpack_is_refused() {
    for (block, what) in [
        ("80", "an index of 0"),
        ("be", "an index behind both tables"),
        ("ff ff ff ff ff ff 0f", "a number that is too large"),
        ("ff", "a number that ends"),
        ("40 0a 63", "a text that ends"),
        ("82 20", "a change of size behind a field"),
        ("3f e2 1f", "a table that is larger than it may be"),
        ("00 81 ff 00", "padding of eight bits"),
        ("00 81 18 00", "padding with a bit that is not set"),
        ("00 84 ff ff ff ff 00", "the end of a text within it"),
    ] {
        let decoded = Decoder::default().decode(&bytes(block), &mut Head::default(), MAX);
        assert_eq!(decoded, Err(Malformed), "{what}");
    }
}

#[test]
fn a_head_that_is_too_large_is_cut_and_the_table_follows_all_the_same() {
    let (mut decoder, mut head) = (Decoder::default(), Head::default());
    let block = bytes("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d");
    decoder.decode(&block, &mut head, 100).unwrap();
    assert!(head.cut);
    assert_eq!(texts(&head), [":method: GET", ":scheme: http"]);
    assert_eq!(decoder.size(), 57, "the field that was left out is in the table");
    decoder.decode(&bytes("be"), &mut head, MAX).unwrap();
    assert!(!head.cut);
    assert_eq!(texts(&head), [":authority: www.example.com"]);
}

#[test]
fn a_block_that_comes_again_is_the_same_head_unless_it_changed_the_table() {
    let (mut decoder, mut head) = (Decoder::default(), Head::default());
    let inserts = bytes("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d");
    assert_eq!(decoder.decode(&inserts, &mut head, MAX), Ok(true));
    assert_eq!(decoder.decode(&inserts, &mut head, MAX), Ok(true), "it enters the field once more");
    assert_eq!(decoder.size(), 114);
    let plain = bytes("8286 84be");
    assert_eq!(decoder.decode(&plain, &mut head, MAX), Ok(true));
    assert_eq!(decoder.decode(&plain, &mut head, MAX), Ok(false));
    assert_eq!(texts(&head), FIRST);
    decoder.decode(&bytes("4003 6161 6101 62"), &mut head, MAX).unwrap();
    assert_eq!(decoder.decode(&plain, &mut head, MAX), Ok(true), "the same block names another field now");
    assert_eq!(texts(&head)[3], "aaa: b");
}

#[test]
fn repeated_fields_go_into_the_table_once_and_leave_it_when_the_peer_wants_it_small() {
    const REPEATED: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "0")];
    let (mut encoder, mut decoder, mut head) = (Encoder::new(REPEATED), Decoder::default(), Head::default());
    let mut lengths = Vec::new();
    for round in 0..4 {
        if round == 2 {
            encoder.resize(100);
        }
        for (name, value) in REPEATED {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(name.as_bytes(), value.as_bytes(), &mut block);
            decoder.decode(&block, &mut head, MAX).unwrap();
            assert_eq!(texts(&head), [format!("{name}: {value}")]);
            lengths.push(block.len());
        }
    }
    assert_eq!(lengths, [31, 15, 1, 1, 32, 15, 31, 15]);
    assert_eq!(decoder.size(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_encoded_is_decoded_and_a_huffman_code_is_one_text(
        heads in prop::collection::vec(prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..6), 1..5),
        noise in any::<Vec<u8>>(),
    ) {
        let (mut encoder, mut decoder, mut head) = (Encoder::new(&[("te", "trailers")]), Decoder::default(), Head::default());
        for fields in &heads {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(b"te", b"trailers", &mut block);
            fields.iter().for_each(|(name, value)| encoder.field(name, value, &mut block));
            decoder.decode(&block, &mut head, usize::MAX).unwrap();
            let said: Vec<_> = head.iter().skip(1).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(&said, fields);
        }
        buttress_http2::fuzz::fuzz_huffman(&noise);
        buttress_http2::fuzz::fuzz_hpack(&noise);
        buttress_http2::fuzz::fuzz_connection(&noise);
    }
}
