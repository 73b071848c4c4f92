//! `buttress explain REQUEST-ID`: a decision record in plain sentences.

use std::{fmt::Write as _, io::Write as _};

use buttress_core::{Code, Error};
use buttress_gateway::decision;
use serde_json::Value;

use crate::{
    cli::{
        Answer,
        args::{ExplainArgs, Output, PROXY_ADMIN},
        show,
    },
    demo::http::{self, Ask, HttpClient},
    proxy::fleet::{self, Asked, PATIENCE, Said},
};

/// A code has its page; anything else names a request.
pub fn run(args: &ExplainArgs) -> Answer {
    let what = args.what.as_str();
    if is_code(what) {
        return show::explain(what);
    }
    if let Some(entry) = decision::Entry::named(&what.to_uppercase()) {
        return explain_decision(entry);
    }
    if what.to_ascii_uppercase().starts_with("BT-LINT-") {
        return explain_lint(&what.to_uppercase());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match (&args.store, args.admin.as_slice()) {
        (None, []) => one(&runtime.block_on(fetch(what, PROXY_ADMIN))?, args.output),
        (None, [admin]) => one(&runtime.block_on(fetch(what, admin))?, args.output),
        (None, several) => {
            let ask = async |admin: &String| {
                let asked = Asked { name: String::new(), admin: bare(admin).to_owned() };
                let said = fleet::ask(&asked, what).await;
                (asked, said)
            };
            let told = runtime.block_on(futures::future::join_all(several.iter().map(ask)));
            all(what, told, args.output)
        }
        (Some(url), _) => {
            let gateways = runtime.block_on(fleet::of_store(url))?;
            fleet::tell_if_cut(&gateways);
            if gateways.is_empty() {
                return Err(Error::new(Code::NOT_FOUND, format!("no gateway has its routes from {url}"))
                    .hint("gateways tell the store where they are when they run with --store; others are asked with --admin")
                    .into());
            }
            all(what, runtime.block_on(fleet::ask_all(gateways, what)), args.output)
        }
    }
}

fn one(record: &Value, output: Output) -> Answer {
    match output {
        Output::Json => show::json(record)?,
        Output::Table => std::io::stdout().lock().write_all(sentences(record).as_bytes())?,
    }
    Ok(true)
}

/// What several gateways said, the one that had the request first at the beginning; those that were silent are named.
fn all(id: &str, mut told: Vec<(Asked, Said)>, output: Output) -> Answer {
    told.sort_by(|(_, a), (_, b)| {
        let key = |said: &Said| if let Said::Record(record) = said { fleet::came(record) } else { f64::MAX };
        key(a).total_cmp(&key(b))
    });
    let silent = told.iter().filter_map(|(asked, said)| match said {
        Said::Silent(error) => Some((asked.label(), error.message.as_str())),
        _ => None,
    });
    let silent: Vec<(String, &str)> = silent.collect();
    let found = told.iter().filter(|(_, said)| matches!(said, Said::Record(_))).count();
    if output == Output::Json && found > 0 {
        show::json(&fleet::json(&told))?;
        return Ok(true);
    }
    for (label, why) in &silent {
        eprintln!("not asked: {label}: {why}");
    }
    if found == 0 {
        let asked: Vec<String> =
            told.iter().filter(|(_, said)| matches!(said, Said::NotKept)).map(|(asked, _)| asked.label()).collect();
        let message = match asked.len() {
            0 => format!("no gateway could be asked for request \"{id}\""),
            _ => format!("no record of request \"{id}\" is kept by {}", asked.join(", ")),
        };
        let but = if silent.is_empty() { "" } else { "; those that were not asked may have one" };
        return Err(Error::new(Code::REQUEST_UNKNOWN, format!("{message}{but}"))
            .hint("failures are kept, and few successes; buttress explain BT0913 says more")
            .into());
    }
    let mut out = std::io::stdout().lock();
    for (at, (asked, said)) in told.iter().enumerate() {
        let Said::Record(record) = said else { continue };
        let gap = if at == 0 { "" } else { "\n" };
        write!(out, "{gap}gateway {}:\n{}", asked.label(), sentences(record))?;
    }
    Ok(true)
}

/// What a code of a decision means; its numbers stand in the record of a request.
fn explain_decision(entry: &decision::Entry) -> Answer {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {}

In a record: {}.",
        entry.code, entry.meaning, entry.says
    )?;
    if !entry.would_pass.is_empty() {
        writeln!(out, "What would let the request pass: {}.", entry.would_pass)?;
    }
    Ok(true)
}

const LINTS: &str = include_str!("../../../../docs/reference/lints.md");

/// Code, level and meaning of each row of the page.
fn lints() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    LINTS.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| BT-LINT-")?.strip_suffix(" |")?.splitn(3, " | ");
        let (code, level, meaning) = (cells.next()?, cells.next()?, cells.next()?);
        Some((code, level, meaning))
    })
}

fn explain_lint(code: &str) -> Answer {
    let bare = code.trim_start_matches("BT-LINT-");
    let Some((_, level, meaning)) = lints().find(|(known, ..)| *known == bare) else {
        let known: Vec<String> = lints().map(|(known, ..)| format!("BT-LINT-{known}")).collect();
        return Err(Error::new(Code::NOT_FOUND, format!("there is no lint \"{code}\""))
            .hint(format!("lints: {}", known.join(" ")))
            .into());
    };
    writeln!(
        std::io::stdout().lock(),
        "{code} ({level}): {meaning}\n\nbuttress route lint -f FILE says where, and what mends it."
    )?;
    Ok(true)
}

/// `BT0301`, in any case.
fn is_code(what: &str) -> bool {
    what.len() == 6 && what[..2].eq_ignore_ascii_case("bt") && what.bytes().skip(2).all(|b| b.is_ascii_digit())
}

/// What the admin address of a proxy has at a path.
///
/// # Errors
/// It is not there, or says no.
pub async fn ask(admin: &str, path: &str) -> Result<http::Answer, Error> {
    let answer = ask_any(bare(admin), path).await?;
    if answer.ok() { Ok(answer) } else { Err(Error::new(Code::BAD_REQUEST, answer.problem())) }
}

fn bare(admin: &str) -> &str {
    admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/')
}

async fn ask_any(address: &str, path: &str) -> Result<http::Answer, Error> {
    HttpClient::default().ask(address, &Ask::get(path), PATIENCE).await.map_err(not_there)
}

fn not_there(error: Error) -> Error {
    error.hint("is the proxy running? it prints its admin address; name it with --admin or BUTTRESS_ADMIN")
}

async fn fetch(id: &str, admin: &str) -> Result<Value, Error> {
    let asked = Asked { name: String::new(), admin: bare(admin).to_owned() };
    match fleet::ask(&asked, id).await {
        Said::Record(record) => Ok(*record),
        Said::NotKept => Err(Error::new(
            Code::REQUEST_UNKNOWN,
            format!("the proxy at {} keeps no record of request \"{id}\"", asked.admin),
        )
        .hint(format!(
            "failures are kept, and few successes: http://{}/explain/ lists them; buttress explain BT0913 says more",
            asked.admin
        ))),
        Said::Silent(error) if error.code == Code::BAD_REQUEST => Err(error),
        Said::Silent(error) => Err(not_there(error)),
    }
}

/// The record as somebody would tell it.
pub fn sentences(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ms = |value: &Value| duration(value.as_f64().unwrap_or_default());
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    let grpc = record["grpc_status"].as_u64().map(|status| format!(", gRPC status {status}")).unwrap_or_default();
    let caller = record["caller"].as_str().map(|caller| format!(", known as {caller}")).unwrap_or_default();
    let asked = match text(&record["method"]) {
        method if method.is_empty() => "a request that could not be read".to_owned(),
        method => format!("{method} {}", text(&record["path"])),
    };
    line(format!("{asked}  from {}{caller}", text(&record["client"])));
    line(format!(
        "was answered {}{grpc} after {} at {}",
        record["status"],
        ms(&record["took_ms"]),
        show::utc(record["at_ms"].as_u64().unwrap_or_default()),
    ));
    let outcome = &record["outcome"];
    line(format!("{}: {}", text(&outcome["code"]), text(&outcome["says"])));
    if let Some(pass) = outcome["would_pass"].as_str().filter(|pass| !pass.is_empty()) {
        line(format!("It would have passed with: {pass}."));
    }
    line(String::new());
    match (text(&record["route"]), text(&record["matched"])) {
        (route, _) if route.is_empty() => line("  route     none takes it".to_owned()),
        (route, matched) => line(format!("  route     {route}, by {matched}")),
    }
    for (name, held) in record["fields"].as_object().into_iter().flatten() {
        line(format!("  field     {name}: {}", field(held)));
    }
    let (all, left) = (&record["deadline_ms"], &record["deadline_left_ms"]);
    if all.as_f64().is_some_and(|all| all > 0.0) {
        line(format!("  deadline  {}, of which {} were left", ms(all), ms(left)));
    }
    let backend = text(&record["backend"]);
    if !backend.is_empty() {
        let point = record["point"].as_f64().map(|point| format!(" (weights were asked at {point:.4} of 1)"));
        line(format!("  backend   {backend}{}", point.unwrap_or_default()));
    }
    for state in record["state"].as_array().into_iter().flatten() {
        line(format!("  state     {}", text(state)));
    }
    for decision in record["admission"].as_array().into_iter().flatten() {
        line(format!("  let in    {} [{}]", text(&decision["says"]), text(&decision["code"])));
    }
    for (at, attempt) in record["attempts"].as_array().into_iter().flatten().enumerate() {
        let how = match (attempt["status"].as_u64(), attempt["grpc_status"].as_u64(), text(&attempt["problem"])) {
            (Some(status), None, problem) if problem.is_empty() => format!("answered {status}"),
            (Some(_), Some(grpc), problem) if problem.is_empty() => format!("answered gRPC status {grpc}"),
            (_, _, problem) => problem,
        };
        let hedge = if attempt["hedge"].as_bool() == Some(true) { " (hedge)" } else { "" };
        let (endpoint, took) = (text(&attempt["endpoint"]), ms(&attempt["took_ms"]));
        line(format!("  attempt {}  {endpoint}{hedge} {how}, after {took}", at + 1));
        for (name, key) in [("chosen", "picked"), ("breaker", "breaker"), ("then", "next")] {
            let decision = &attempt[key];
            if decision.is_object() {
                line(format!("             {name}: {} [{}]", text(&decision["says"]), text(&decision["code"])));
            }
        }
        if attempt["problem"].as_str().is_some_and(|problem| !problem.is_empty()) {
            let delivered = attempt["delivered"].as_bool().unwrap_or(true);
            let fate = if delivered {
                "the upstream may have seen the request"
            } else {
                "nothing of the request reached the upstream"
            };
            line(format!("             {fate}"));
        }
    }
    out
}

/// What a record holds of a field.
fn field(held: &Value) -> String {
    let values: Vec<String> = held["values"].as_array().into_iter().flatten().map(Value::to_string).collect();
    match (held["withheld"] == true, values.is_empty()) {
        (true, _) => "withheld, it may be a credential".to_owned(),
        (_, true) => "absent".to_owned(),
        _ => values.join(", ") + if held["cut"] == true { " …" } else { "" },
    }
}

fn duration(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_told_in_sentences() {
        let decision = |code: &str, says: &str, pass: &str| json!({"code": code, "says": says, "would_pass": pass});
        let record = json!({
            "caller": "shop", "fields": {"cookie": {"withheld": true}, "x-canary": {"values": ["1"]}, "x-no": {"values": []}},
            "point": 0.25, "id": "4f0c", "at_ms": 1_795_543_509_000_u64, "method": "POST", "path": "/orders", "client": "10.0.0.9",
            "route": "everything", "matched": "the command line", "backend": "1", "status": 502, "grpc_status": null, "took_ms": 12.4, "deadline_ms": 15000.0,
            "deadline_left_ms": 14987.0,
            "outcome": decision("BT0907", "10.0.0.1:80: the connection closed before an answer", "an idempotent method"),
            "admission": [decision("BT-ADM-OK", "1 of 20 places are taken", "")],
            "attempts": [{
                "endpoint": "10.0.0.1:80", "picked": decision("BT-BAL-ONLY", "1 of 1 endpoints is available", ""),
                "breaker": null, "took_ms": 11.9, "status": null, "grpc_status": null,
                "problem": "the connection closed before an answer", "delivered": true,
                "next": decision("BT-RTY-EFFECT", "attempt 1 may have reached the upstream", "x"),
            }],
        });
        expect![[r#"
            POST /orders  from 10.0.0.9, known as shop
            was answered 502 after 12 ms at 2026-11-24 18:05:09 UTC
            BT0907: 10.0.0.1:80: the connection closed before an answer
            It would have passed with: an idempotent method.

              route     everything, by the command line
              field     cookie: withheld, it may be a credential
              field     x-canary: "1"
              field     x-no: absent
              deadline  15.00 s, of which 14.99 s were left
              backend   1 (weights were asked at 0.2500 of 1)
              let in    1 of 20 places are taken [BT-ADM-OK]
              attempt 1  10.0.0.1:80 the connection closed before an answer, after 12 ms
                         chosen: 1 of 1 endpoints is available [BT-BAL-ONLY]
                         then: attempt 1 may have reached the upstream [BT-RTY-EFFECT]
                         the upstream may have seen the request
        "#]]
        .assert_eq(&sentences(&record));
    }

    #[test]
    fn every_lint_that_is_told_has_its_line_on_the_page() {
        let source = include_str!("../resources/lint.rs");
        let mut told: Vec<&str> = source
            .split("\"BT-LINT-")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|code| code.bytes().all(|b| b.is_ascii_uppercase()))
            .collect();
        told.sort_unstable();
        told.dedup();
        let known: Vec<&str> = lints().map(|(code, ..)| code).collect();
        assert!(told.len() > 10, "{told:?}");
        assert_eq!(told, known);
    }

    #[test]
    fn codes_and_request_ids_are_told_apart() {
        assert!(is_code("BT0301") && is_code("bt0902"));
        assert!(!is_code("4f0c2a9be11d7c35") && !is_code("BT-BRK-OPEN") && !is_code("µµµ"));
    }
}
