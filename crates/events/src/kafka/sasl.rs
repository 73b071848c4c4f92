//! SaslHandshake and SaslAuthenticate: served to say that there is no SASL, which a client that was told to use it shows to
//! its user. A connection that is just closed would have it try for ever.

use buttress_wire::kafka::{
    Api, ErrorCode, sasl_authenticate::SaslAuthenticateResponse, sasl_handshake::SaslHandshakeResponse,
};

use super::{Broker, message};

pub(super) fn handshake(broker: &Broker) -> SaslHandshakeResponse {
    broker.counters.error(&Api::SASL_HANDSHAKE);
    SaslHandshakeResponse { error_code: ErrorCode::UNSUPPORTED_SASL_MECHANISM, mechanisms: Vec::new() }
}

pub(super) fn authenticate(broker: &Broker) -> SaslAuthenticateResponse {
    broker.counters.error(&Api::SASL_AUTHENTICATE);
    SaslAuthenticateResponse {
        error_code: ErrorCode::ILLEGAL_SASL_STATE,
        error_message: message("SASL is not served; connect with security.protocol=PLAINTEXT"),
        ..SaslAuthenticateResponse::default()
    }
}
