//! `kind: Listener`: where a gateway takes connections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::{Balance, EndpointSpec, OneOrMany};
use crate::units::Span;

/// An address on which a gateway takes connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `HOST:PORT` or `:PORT`.
    pub address: String,
    /// Ends TLS here; absent: connections are in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Joins connections to an endpoint as they are, without reading them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// How long a connection may say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// One for each name; the client's SNI chooses, and the first serves those who name nothing.
    pub certificates: OneOrMany<Certificate>,
    /// A file of certificates (PEM) that sign those of clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<String>,
    /// Whether a client must show a certificate, where `client_ca` is given.
    #[serde(default)]
    pub client: ClientCertificate,
}

/// Files in PEM; a change is taken up within seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub cert: String,
    pub key: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    #[default]
    Required,
    Optional,
}

/// Where raw connections go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    pub endpoints: OneOrMany<EndpointSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How long a connection may be silent in both directions; absent: an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
}
