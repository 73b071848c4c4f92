//! Logs go to standard error: text for people, or JSON with one vocabulary for machines.

use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Starts logging; `RUST_LOG` overrides the default level.
pub fn init(format: Format, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(false).with_target(false).init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
}
