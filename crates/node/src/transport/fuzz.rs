//! Decoders under arbitrary bytes: no panic, and no allocation that the input does not pay for.

use bytes::{Bytes, BytesMut};

use super::{Frame, Hello};

/// What a peer's connection brings: a hello, and frames one after the other.
pub fn fuzz_frames(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
        let mut again = BytesMut::new();
        frame.encode(&mut again);
        assert_eq!(again.len(), frame.size());
        assert_eq!(Frame::decode(&mut again), Ok(Some(frame)));
    }
    if let Ok(hello) = Hello::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(Hello::decode(hello.encode().slice(2..)), Ok(hello));
    }
}
