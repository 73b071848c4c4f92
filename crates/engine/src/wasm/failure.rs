//! Turns every way in which a guest can fail into one error that says what happened and what would help.

use buttress_core::{Code, Error, guest::GuestLog};
use wasmtime::{Trap, WasmBacktrace};

use super::host::Context;

/// Frames shown; the rest of a backtrace is the guest's plumbing.
const FRAMES_MAX: usize = 4;
/// Longest text of the guest's own quoted in an error.
const QUOTE_BYTES_MAX: usize = 512;

/// The start of `text`, at most [`QUOTE_BYTES_MAX`] bytes and one line.
pub(crate) fn quote(text: &str) -> String {
    let mut end = text.len().min(QUOTE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut quoted: String = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if end < text.len() {
        quoted.push('…');
    }
    quoted
}

/// A call ran past its deadline.
pub(crate) fn deadline(deadline_ms: u64) -> Error {
    Error::new(Code::DEADLINE, format!("the function ran longer than its deadline of {deadline_ms} ms"))
        .hint("raise the function's deadline, or give it smaller batches")
}

fn memory(bytes_max: usize) -> Error {
    Error::new(
        Code::MEMORY_LIMIT,
        format!("the function asked for more memory than its limit of {} MiB", bytes_max / (1024 * 1024)),
    )
    .hint("raise the function's memory limit, or give it smaller batches")
}

/// Explains the error that ended a call. `context` is the store's, with everything the call left behind.
pub(crate) fn explain(error: &wasmtime::Error, context: &Context) -> Error {
    if let Some(problem) = &context.state_problem {
        return Error::new(Code::FUNCTION_FAILED, format!("the function's state cannot be read: {}", quote(problem)))
            .retryable();
    }
    if context.memory.refused {
        return memory(context.memory.bytes_max);
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::Interrupt) {
        return deadline(context.deadline_ms);
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Error::new(Code::OVERLOADED, "every slot for instances is taken")
            .hint("run fewer functions or partitions on this node")
            .retryable();
    }
    let mut message = match (trap, error.downcast_ref::<wasmtime_wasi::I32Exit>()) {
        (Some(trap), _) => format!("the function trapped: {}", trap.to_string().trim_start_matches("wasm trap: ")),
        (None, Some(exit)) => format!("the function ended itself with status {}", exit.0),
        // The innermost cause says what; the outer ones say where in the host.
        (None, None) => format!("the function trapped: {}", quote(&error.root_cause().to_string())),
    };
    let logs = context.output.take();
    if let Some(said) = last_words(&logs) {
        message += &format!("; it wrote: {}", quote(&said));
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let frames = frames(backtrace);
        if !frames.is_empty() {
            message += &format!("; in {frames}");
        }
    }
    Error::new(Code::TRAPPED, message)
}

/// What a panic printed: the last lines of standard error, without Rust's advice on backtraces.
fn last_words(logs: &[GuestLog]) -> Option<String> {
    let mut lines: Vec<_> = logs
        .iter()
        .rev()
        .filter(|log| log.level == "stderr" && !log.message.is_empty() && !log.message.starts_with("note:"))
        .take(2)
        .map(|log| log.message.as_str())
        .collect();
    lines.reverse();
    (!lines.is_empty()).then(|| lines.join(" "))
}

fn frames(backtrace: &WasmBacktrace) -> String {
    // The frames of the panic itself are the same for every panic.
    const PLUMBING: [&str; 7] = ["std::", "core::", "alloc::", "__rust", "rust_", "abort", "_R"];
    let mut shown = Vec::new();
    for frame in backtrace.frames() {
        let name = match frame.func_name() {
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None => format!("function {}", frame.func_index()),
        };
        if PLUMBING.iter().any(|prefix| name.trim_start_matches('<').starts_with(prefix)) {
            continue;
        }
        shown.push(quote(&name));
        if shown.len() == FRAMES_MAX {
            break;
        }
    }
    shown.join(" < ")
}
