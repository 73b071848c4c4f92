//! The component's edges: the batch trigger's bindings and `wasi:http`.

use wasip2::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};

use crate::{
    answer::{self, Answer},
    detect::{self, Host},
};

wit_bindgen::generate!({ path: "../../crates/engine/wit", world: "function" });

struct Component;

export!(Component);
wasip2::http::proxy::export!(Component);

/// The host through the imports.
struct Imports;

impl Host for Imports {
    fn predict(&mut self, rows: &[f32]) -> Result<Vec<f32>, String> {
        buttress::function::inference::predict(detect::MODEL, rows)
    }

    fn state_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        buttress::function::state::get(key)
    }

    fn state_set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        buttress::function::state::set(key, value)
    }

    fn warn(&mut self, message: &str) {
        use buttress::function::log::{Level, log};
        log(Level::Warn, message);
    }
}

impl Guest for Component {
    fn handle_batch(records: Vec<Record>) -> Result<Vec<Output>, String> {
        let records: Vec<_> = records
            .iter()
            .map(|record| detect::Record {
                key: &record.key,
                value: &record.value,
                timestamp_ms: record.timestamp_ms,
                partition: record.partition,
                offset: record.offset,
            })
            .collect();
        let anomalies = detect::handle(&mut Imports, &records)?;
        Ok(anomalies
            .into_iter()
            .map(|anomaly| Output { topic: detect::TOPIC.into(), key: anomaly.key, value: anomaly.value })
            .collect())
    }
}

impl wasip2::exports::http::incoming_handler::Guest for Component {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let method = match request.method() {
            Method::Post => "POST",
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            _ => "this method",
        };
        let path = request.path_with_query().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let answer = match read(&request) {
            Some(body) => answer::answer(&mut Imports, method, path, &body),
            None => answer::too_large(),
        };
        write(out, answer);
    }
}

/// Reads the whole body; nothing where it is larger than the limit.
fn read(request: &IncomingRequest) -> Option<Vec<u8>> {
    let Ok(incoming) = request.consume() else { return Some(Vec::new()) };
    let Ok(stream) = incoming.stream() else { return Some(Vec::new()) };
    let mut body = Vec::new();
    while let Ok(chunk) = stream.blocking_read(64 * 1024) {
        body.extend_from_slice(&chunk);
        if body.len() > answer::BODY_BYTES_MAX {
            return None;
        }
    }
    Some(body)
}

fn write(out: ResponseOutparam, answer: Answer) {
    let mut headers = vec![
        ("content-type".to_owned(), b"application/json".to_vec()),
        ("content-length".to_owned(), answer.body.len().to_string().into_bytes()),
    ];
    if let Some(allow) = answer.allow {
        headers.push(("allow".to_owned(), allow.into()));
    }
    let headers = Fields::from_list(&headers).expect("these headers are allowed");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(answer.status).expect("a status between 200 and 413");
    let body = response.body().expect("the first time it is asked");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the first time it is asked");
    for chunk in answer.body.as_bytes().chunks(4096) {
        // The caller may have gone; there is nobody to tell.
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
