//! Tests of the replica from the outside: a seeded world, transcripts, and the codec.

mod chaos;
mod codec;
mod lab;
mod room;
mod transcripts;
mod world;
