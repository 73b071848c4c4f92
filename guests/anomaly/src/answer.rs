//! `POST …/infer` and `POST …/detect`, from body to answer.

use std::fmt::Write as _;

use crate::{
    detect::{self, Host, WIDTH},
    json::{self, Problem, Reader, Value},
    rules,
};

/// Largest body taken.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Most samples per request: a body of 1 MiB holds no more that make sense.
const SAMPLES_MAX: usize = 16 * 1024;

/// What to answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// For the `allow` header.
    pub allow: Option<&'static str>,
    pub body: String,
}

/// Answers one request. `path` is without its query.
pub fn answer(host: &mut impl Host, method: &str, path: &str, body: &[u8]) -> Answer {
    type Route<H> = fn(&mut H, &[u8]) -> Result<String, Problem>;
    let (route, example): (Route<_>, _) = if path.ends_with("/infer") {
        (infer, r#"send {"samples":[[temperature, vibration],…],"ts":…}"#)
    } else if path.ends_with("/detect") {
        (decide, r#"send {"temperature":…,"vibration":…,"timestamp":…}"#)
    } else {
        return problem(404, "BT0602", &format!("nothing is served at `{path}`"), "POST to /infer or /detect");
    };
    if method != "POST" {
        let mut answer = problem(405, "BT0603", &format!("`{method}` is not served at `{path}`"), "use POST");
        answer.allow = Some("POST");
        return answer;
    }
    match route(host, body) {
        Ok(body) => Answer { status: 200, allow: None, body },
        Err(what) => problem(400, "BT0601", what, example),
    }
}

/// The answer to a body larger than [`BODY_BYTES_MAX`].
pub fn too_large() -> Answer {
    problem(413, "BT0105", "the body is larger than 1 MiB", "send fewer samples per request")
}

fn problem(status: u16, code: &str, message: &str, hint: &str) -> Answer {
    let mut body = String::with_capacity(128);
    let _ = write!(body, "{{\"code\":\"{code}\",\"message\":");
    json::write_string(&mut body, message);
    body.push_str(",\"hint\":");
    json::write_string(&mut body, hint);
    body.push('}');
    Answer { status, allow: None, body }
}

/// `{"samples":[[temperature, vibration],…],"ts":…}` → `{"anomaly":…,"score":…,"ts":…}` for the worst sample.
fn infer(host: &mut impl Host, body: &[u8]) -> Result<String, Problem> {
    let mut rows = Vec::new();
    let mut seen = false;
    let mut ts = Value::Null;
    let mut reader = Reader::new(std::str::from_utf8(body).map_err(|_| "the body is not UTF-8")?);
    reader.object(|key, value| {
        match (key, value) {
            ("samples", Value::Nested(text)) if text.starts_with('[') => {
                seen = true;
                samples(text, &mut rows)?;
            }
            ("samples", _) => return Err("`samples` is not an array"),
            ("ts", value) => ts = value,
            _ => {}
        }
        Ok(())
    })?;
    reader.end()?;
    if !seen {
        return Err("no `samples`");
    }
    if rows.is_empty() {
        return Err("`samples` is empty");
    }
    let scores = detect::scores(host, &rows)
        .unwrap_or_else(|| rows.chunks_exact(WIDTH).map(|row| rules::score(row[0], row[1])).collect());
    let score = scores.into_iter().fold(0.0, f32::max);
    let mut out = format!("{{\"anomaly\":{},\"score\":{},\"ts\":", score > rules::SCORE_MAX, score.min(1.0));
    detect::write_raw(&mut out, ts);
    out.push('}');
    Ok(out)
}

fn samples(text: &str, rows: &mut Vec<f32>) -> Result<(), Problem> {
    rows.clear();
    Reader::new(text).array(|sample| {
        let Value::Nested(text) = sample else { return Err("a sample is not an array of numbers") };
        if rows.len() == SAMPLES_MAX * WIDTH {
            return Err("more samples than 16384");
        }
        let mut row = [f32::NAN; WIDTH];
        let mut width = 0;
        Reader::new(text).array(|value| {
            if width == WIDTH {
                return Err("a sample has more than five numbers: temperature, vibration, speed, torque, wear");
            }
            row[width] = match value {
                Value::Number(number, _) => number as f32,
                Value::Null => f32::NAN,
                _ => return Err("a sample holds something that is not a number"),
            };
            width += 1;
            Ok(())
        })?;
        if width == 0 {
            return Err("a sample is empty");
        }
        rows.extend_from_slice(&row);
        Ok(())
    })
}

/// `{"temperature":…,"vibration":…,"timestamp":…}` → `{"anomaly":…,"timestamp":…,"source":"edge"}` by the local rules.
fn decide(_host: &mut impl Host, body: &[u8]) -> Result<String, Problem> {
    let mut temperature = None;
    let mut vibration = None;
    let mut timestamp = Value::Null;
    let mut reader = Reader::new(std::str::from_utf8(body).map_err(|_| "the body is not UTF-8")?);
    reader.object(|key, value| {
        match key {
            "temperature" => temperature = Some(value.number().ok_or("`temperature` is not a number")?),
            "vibration" => vibration = Some(value.number().ok_or("`vibration` is not a number")?),
            "timestamp" => timestamp = value,
            _ => {}
        }
        Ok(())
    })?;
    reader.end()?;
    let temperature = temperature.ok_or("no `temperature`")?;
    let vibration = vibration.ok_or("no `vibration`")?;
    let mut out = format!("{{\"anomaly\":{},\"timestamp\":", rules::broken(temperature as f32, vibration as f32));
    detect::write_raw(&mut out, timestamp);
    out.push_str(",\"source\":\"edge\"}");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoModel;

    impl Host for NoModel {
        fn predict(&mut self, _: &[f32]) -> Result<Vec<f32>, String> {
            Err("none".into())
        }
        fn state_get(&mut self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
            unreachable!("HTTP calls have no state")
        }
        fn state_set(&mut self, _: &[u8], _: &[u8]) -> Result<(), String> {
            unreachable!("HTTP calls have no state")
        }
        fn warn(&mut self, _: &str) {}
    }

    #[test]
    fn requests_are_answered() {
        for (method, path, body, status, want) in [
            (
                "POST",
                "/infer",
                r#"{"samples":[[60,2],[90,2]],"ts":5}"#,
                200,
                r#"{"anomaly":true,"score":0.775,"ts":5}"#,
            ),
            (
                "POST",
                "/fn/a/infer",
                r#"{"samples":[[40,2.5]],"ts":"x"}"#,
                200,
                r#"{"anomaly":false,"score":0.35,"ts":"x"}"#,
            ),
            (
                "POST",
                "/detect",
                r#"{"temperature":81,"vibration":1,"timestamp":9}"#,
                200,
                r#"{"anomaly":true,"timestamp":9,"source":"edge"}"#,
            ),
            (
                "POST",
                "/detect",
                r#"{"temperature":80,"vibration":5}"#,
                200,
                r#"{"anomaly":false,"timestamp":null,"source":"edge"}"#,
            ),
            ("POST", "/detect", "{", 400, r#""code":"BT0601","message":"a string was expected""#),
            ("POST", "/detect", r#"{"temperature":"hot"}"#, 400, "`temperature` is not a number"),
            ("POST", "/infer", r#"{"samples":[]}"#, 400, "`samples` is empty"),
            ("POST", "/infer", r#"{"samples":[[1,2,3,4,5,6]]}"#, 400, "more than five numbers"),
            ("POST", "/infer", r#"{"samples":[["a"]]}"#, 400, "not a number"),
            ("POST", "/infer", "{}", 400, "no `samples`"),
            ("GET", "/infer", "", 405, "BT0603"),
            ("POST", "/", "", 404, "BT0602"),
        ] {
            let got = answer(&mut NoModel, method, path, body.as_bytes());
            assert_eq!(got.status, status, "{body}");
            assert!(got.body.contains(want), "{body}: {}", got.body);
        }
    }
}
