//! The proxy from outside: clients and upstreams that write and read bytes, so that what is tested is what is on the wire.

mod bodies;
mod corpus;
mod http2;
mod life;
mod parity;
mod policies;
mod retries;
mod routes;
mod support;
