//! The proxy from outside: clients and upstreams that write and read bytes, so that what is tested is what is on the wire.

mod auth;
mod bodies;
mod corpus;
mod explained;
mod faults;
mod http2;
mod leaving;
mod life;
mod listeners;
mod observe;
mod parity;
mod policies;
mod retries;
mod routes;
mod support;
mod tcp;
mod tls;
mod tokens;
