//! What is refused before anything runs, and the words it is refused with.

use buttress_core::{Engine, Error, guest::Grants};
use expect_test::{Expect, expect};

use crate::support::{built, engine, grants, limits};

fn check(component: &[u8], grants: &Grants, want: Expect) {
    let error: Error = engine().compile(component, grants, limits()).err().expect("a refusal");
    want.assert_eq(&error.to_string());
}

#[test]
fn bytes_that_are_no_component() {
    check(
        b"",
        &grants(),
        expect![[r#"
        there are no bytes [BT0402]

        hint: deploy a WebAssembly component"#]],
    );
    check(
        b"hello",
        &grants(),
        expect![[r#"
        these bytes are not WebAssembly [BT0402]

        hint: deploy a WebAssembly component, for example a .wasm file built with `--target wasm32-wasip2`"#]],
    );
    check(
        b"\0asm\x01\0\0\0",
        &grants(),
        expect![[r#"
        these bytes are a core WebAssembly module, not a component [BT0402]

        hint: build with `--target wasm32-wasip2`, or wrap it: wasm-tools component new MODULE -o COMPONENT"#]],
    );
    check(
        b"\0asm\x07\0\0\0",
        &grants(),
        expect![[r#"
        these bytes are WebAssembly of a version that is not known [BT0402]

        hint: build with `--target wasm32-wasip2`"#]],
    );
    check(
        b"\x7fELF and so on",
        &grants(),
        expect![[r#"
        these bytes are machine code, which is never taken from users [BT0402]

        hint: deploy the component itself (.wasm), not a precompiled one"#]],
    );
    let whole = built("faulty");
    check(
        &whole[..whole.len() / 2],
        &grants(),
        expect![
            "the component does not compile: failed to parse WebAssembly module: wasm component contains an invalid module section: section range 1653..47842 is out of bounds (bound = 26651) [BT0402]"
        ],
    );
    let mut rotten = whole.clone();
    rotten[200..400].fill(0xff);
    check(
        &rotten,
        &grants(),
        expect![
            "the component does not compile: failed to parse WebAssembly module: malformed UTF-8 encoding (at offset 0xca) [BT0402]"
        ],
    );
}

#[test]
fn imports_that_are_not_granted_are_named() {
    check(
        &built("needs"),
        &grants(),
        expect![[r#"
        the component imports what was not granted: `acme:needs/rocket@0.1.0` (this host does not know it), `wasi:sockets/network@0.2.6` (sockets are never granted), `wasi:sockets/instance-network@0.2.6` (sockets are never granted), `wasi:sockets/udp@0.2.6` (sockets are never granted), `wasi:sockets/udp-create-socket@0.2.6` (sockets are never granted), `wasi:sockets/tcp@0.2.6` (sockets are never granted), `wasi:sockets/tcp-create-socket@0.2.6` (sockets are never granted), `wasi:sockets/ip-name-lookup@0.2.6` (sockets are never granted) [BT0403]

        hint: grant what it may have at deploy, or build it without the others"#]],
    );
    check(
        &built("anomaly"),
        &Grants::default(),
        expect![[r#"
        the component imports what was not granted: `buttress:function/inference@0.1.0` (grant a model), `buttress:function/state@0.1.0` (grant state) [BT0403]

        hint: grant what it may have at deploy, or build it without the others"#]],
    );
    check(
        &built("anomaly"),
        &Grants { models: vec!["anomaly".into()], ..Grants::default() },
        expect![[r#"
        the component imports what was not granted: `buttress:function/state@0.1.0` (grant state) [BT0403]

        hint: grant what it may have at deploy, or build it without the others"#]],
    );
}

#[test]
fn a_component_without_a_trigger() {
    // The smallest component there is: nothing in it.
    check(
        b"\0asm\x0d\0\x01\0",
        &grants(),
        expect![[r#"
        the component exports nothing, which no trigger can call [BT0404]

        hint: export `handle-batch` of the world `buttress:function/function@0.1.0`, or `wasi:http/incoming-handler@0.2.x`, or both"#]],
    );
}
