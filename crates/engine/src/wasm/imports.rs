//! What a component may import, and what it must export. Checked before it is linked, so that a refusal at deploy
//! names everything that is unmet, and nothing is found out at the first record.
//!
//! Of WASI 0.2 a guest may import what can do nothing outside itself: streams, clocks, random numbers, the standard
//! streams, an environment without variables, and a file system without a single directory (standard libraries
//! import it whether they use it or not). Sockets and outgoing requests are refused by name.

use buttress_core::{Code, Error, guest::Grants};
use wasmtime::component::{Component, types::ComponentItem};

use super::batch::{HandleParams, HandleResults};

/// Interfaces anybody may import, without their versions.
const ALLOWED: &[&str] = &[
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:random/random",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:filesystem/types",
    "wasi:filesystem/preopens",
    "wasi:http/types",
    "buttress:function/types",
    "buttress:function/log",
];

/// What is missing for an import to be allowed, if anything.
fn unmet(name: &str, grants: &Grants) -> Option<&'static str> {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    if interface.starts_with("wasi:") && !version.starts_with("0.2.") {
        return Some("only WASI 0.2 is provided");
    }
    match interface {
        "buttress:function/inference" if grants.models.is_empty() => Some("grant a model"),
        "buttress:function/state" if !grants.state => Some("grant state"),
        "buttress:function/inference" | "buttress:function/state" => None,
        _ if ALLOWED.contains(&interface) => None,
        _ if interface.starts_with("wasi:sockets/") => Some("sockets are never granted"),
        "wasi:http/outgoing-handler" => Some("requests to other servers are not granted yet"),
        _ => Some("this host does not know it"),
    }
}

/// Refuses a component whose imports are not all allowed, naming every one of them.
pub(crate) fn check(component: &Component, grants: &Grants) -> Result<(), Error> {
    let engine = component.engine();
    let ty = component.component_type();
    let unmet: Vec<_> = ty
        .imports(engine)
        .filter_map(|(name, _)| unmet(name, grants).map(|reason| format!("`{name}` ({reason})")))
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::IMPORT_NOT_GRANTED,
        format!("the component imports what was not granted: {}", unmet.join(", ")),
    )
    .hint("grant what it may have at deploy, or build it without the others"))
}

/// Which triggers a component serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exports {
    pub(crate) batches: bool,
    pub(crate) http: bool,
}

const WORLD_HINT: &str = "export `handle-batch` of the world `buttress:function/function@0.1.0`, or `wasi:http/incoming-handler@0.2.x`, or both";

/// Finds the triggers among the exports.
pub(crate) fn exports(component: &Component) -> Result<Exports, Error> {
    let engine = component.engine();
    let ty = component.component_type();
    let batches = match ty.get_export(engine, "handle-batch").map(|export| export.ty) {
        None => false,
        Some(ComponentItem::ComponentFunc(func)) => {
            match func.typecheck::<HandleParams<'_>, HandleResults>(&ty.instance_type()) {
                Ok(()) => true,
                Err(error) => {
                    return Err(Error::new(
                        Code::EXPORT_MISSING,
                        format!("the component exports a `handle-batch` of another type: {}", error.root_cause()),
                    )
                    .hint(WORLD_HINT));
                }
            }
        }
        Some(_) => {
            return Err(Error::new(Code::EXPORT_MISSING, "the component's export `handle-batch` is not a function")
                .hint(WORLD_HINT));
        }
    };
    let http = ty.exports(engine).any(|(name, _)| name.starts_with("wasi:http/incoming-handler@0.2."));
    if batches || http {
        return Ok(Exports { batches, http });
    }
    let names: Vec<_> = ty.exports(engine).map(|(name, _)| format!("`{name}`")).collect();
    let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    Err(Error::new(Code::EXPORT_MISSING, format!("the component exports {found}, which no trigger can call"))
        .hint(WORLD_HINT))
}

/// Refuses bytes that are no component, before the compiler sees them, with what to do about it.
pub(crate) fn check_header(bytes: &[u8]) -> Result<(), Error> {
    let invalid = |message: &str, hint: &str| Err(Error::new(Code::COMPONENT_INVALID, message).hint(hint));
    // The layer tells a core module (0) from a component (1); the version before it is still a draft's.
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => invalid(
            "these bytes are a core WebAssembly module, not a component",
            "build with `--target wasm32-wasip2`, or wrap it: wasm-tools component new MODULE -o COMPONENT",
        ),
        [0, b'a', b's', b'm', ..] => {
            invalid("these bytes are WebAssembly of a version that is not known", "build with `--target wasm32-wasip2`")
        }
        [0x7f, b'E', b'L', b'F', ..] => invalid(
            "these bytes are machine code, which is never taken from users",
            "deploy the component itself (.wasm), not a precompiled one",
        ),
        [] => invalid("there are no bytes", "deploy a WebAssembly component"),
        _ => invalid(
            "these bytes are not WebAssembly",
            "deploy a WebAssembly component, for example a .wasm file built with `--target wasm32-wasip2`",
        ),
    }
}
