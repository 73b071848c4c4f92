//! The server's side of HTTP/2, without IO.
//!
//! A host owns the socket and the time. It hands over the bytes that came ([`Server::next`]) and gets events, one by one,
//! until there is none; it says what is to be answered, and writes what has come together ([`Server::output`]). So what a
//! turn of the host brings about leaves in one write, and no task, channel or lock stands between a request and its answer:
//!
//! ```text
//! read ─▶ next ─▶ Event::Head, Event::Data ─▶ the host's work ─▶ head, data, trailers ─▶ output ─▶ write
//!           └── settings, pings, windows: answered here ──────────────────────────────▶ ┘
//! ```
//!
//! It never waits, never reads a clock and never believes a length before the bytes are there. What a peer can make it keep
//! is bounded: heads by [`Options::head_bytes_max`], bodies by the windows, answers that the peer does not read by
//! [`OUTPUT_BYTES_MAX`] (beyond, nothing is read either), and what is only work and no progress by a budget.
//!
//! It knows neither gRPC nor what a request means. Server push and priorities are not there: no client asks for the one, and
//! RFC 9113 has given up the other.
//!
//! Source: RFC 9113, RFC 7541.

mod frame;
pub mod fuzz;
pub mod hpack;
mod huffman;
mod server;

pub use frame::{Code, FRAME_BYTES_MAX, PREFACE};
pub use hpack::Head;
pub use server::{Event, Fault, OUTPUT_BYTES_MAX, Options, Server};
