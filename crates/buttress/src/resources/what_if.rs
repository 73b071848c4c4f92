//! `buttress route what-if`: what other routes would have done with the requests that a proxy keeps records of.

use std::{fmt::Write as _, io::Write as _, path::PathBuf};

use buttress_core::{Code, Error};
use buttress_gateway::record::SAMPLE;
use buttress_resources::route::Route;
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::{
    files::Files,
    past,
    replay::{Fate, Report, Row, Told, replay},
};
use crate::{
    cli::{
        Answer,
        args::{Output, PROXY_ADMIN},
        show,
    },
    proxy::explain,
};

#[derive(Debug, ClapArgs)]
pub struct WhatIfArgs {
    /// A file, a directory, or - for standard input, with the routes that are asked about; may be repeated.
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// The admin address of the proxy that keeps the records.
    #[arg(long, env = "BUTTRESS_ADMIN", default_value = PROXY_ADMIN, value_name = "ADDRESS")]
    pub admin: String,
    /// Records that were saved, in place of a proxy's: what GET /v1/records gave.
    #[arg(long, value_name = "FILE")]
    pub records: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub fn run(args: &WhatIfArgs) -> Answer {
    let files = Files::read(&args.files)?;
    let reading = files.resources()?;
    let routes: Vec<(&str, &Route)> =
        reading.resources.iter().filter_map(|resource| Some((resource.name.as_str(), resource.route()?))).collect();
    if routes.is_empty() {
        return Err(Error::new(Code::DATA_FILE, "there is no route in the files")
            .hint("a route begins with kind: Route")
            .into());
    }
    let text = match &args.records {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Error::new(Code::DATA_FILE, format!("cannot read \"{}\": {error}", path.display()))
                .hint("save records with: curl http://ADMIN/v1/records > FILE")
        })?,
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let answer = runtime.block_on(explain::ask(&args.admin, "/v1/records"))?;
            String::from_utf8_lossy(&answer.body).into_owned()
        }
    };
    let report = replay(&routes, &past::read(&text)?)?;
    match args.output {
        Output::Json => show::json(&told(&report)).map_err(show::output_failed)?,
        Output::Table => {
            std::io::stdout().lock().write_all(sentences(&report).as_bytes()).map_err(show::output_failed)?;
        }
    }
    Ok(report.fails() <= report.failed())
}

fn of_codes<'c>(codes: impl Iterator<Item = (&'c String, &'c Told)>) -> Vec<Value> {
    codes.map(|(code, told)| json!({"code": code, "requests": told.requests, "examples": told.examples})).collect()
}

fn told(report: &Report) -> Value {
    let rows: Vec<Value> = report
        .rows
        .iter()
        .map(|(route, row)| {
            let mut would = json!({"other_route": row.other_route, "retries": row.retries_now});
            let split: Vec<Value> = row
                .backends
                .iter()
                .map(|(backend, (then, now))| json!({"backend": backend, "went": then, "would_go": now}))
                .collect();
            for fate in Fate::ALL {
                let key = fate.word().replace(' ', "_");
                would[&key] = json!(row.of(fate));
                if fate != Fate::Answered {
                    let codes = row.why.iter().filter(|((of, _), _)| *of == fate).map(|((_, why), told)| (why, told));
                    would[format!("{key}_by")] = of_codes(codes).into();
                }
            }
            let recorded = json!({
                "answered": row.answered, "failed": row.failed, "retries": row.retries,
                "failed_by": of_codes(row.codes.iter()),
            });
            let route = if route.is_empty() { Value::Null } else { json!(route) };
            json!({"route": route, "recorded": recorded, "would": would, "backends": split})
        })
        .collect();
    let notes: Vec<Value> =
        report.notes.iter().map(|(says, requests)| json!({"says": says, "requests": requests})).collect();
    json!({
        "records": report.records, "samples": report.samples, "sample": SAMPLE, "span_ms": report.span.as_millis() as u64,
        "failed": report.failed(), "would_fail": report.fails(), "routes": rows, "notes": notes,
    })
}

/// A line for each, the most frequent first: `BT-LIM-FULL: 300 (r-1, r-2)`.
fn list<'c>(codes: impl Iterator<Item = (&'c String, &'c Told)>) -> String {
    let mut all: Vec<(&String, &Told)> = codes.collect();
    all.sort_by_key(|(_, told)| std::cmp::Reverse(told.requests));
    let told = all.iter().map(|(code, told)| format!("\n    {code}: {} ({})", told.requests, told.examples.join(", ")));
    told.collect()
}

/// The report as somebody would tell it.
fn sentences(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{}", text.trim_end());
    };
    let stand: u64 = report.rows.values().map(|row| row.answered + row.failed).sum();
    if report.records == 0 {
        line("no record is kept: every request succeeded at once, or none came".to_owned());
        return out;
    }
    let samples = match report.samples {
        0 => "no success that came at once was kept".to_owned(),
        count => format!("{count} of them are samples of successes, {SAMPLE} requests each"),
    };
    let (records, span) = (report.records, report.span.as_secs_f64());
    line(format!("{records} records of {span:.1} s stand for {stand} requests; {samples}"));
    line(String::new());
    let header = [
        "ROUTE",
        "WAS ANSWERED",
        "FAILED",
        "WOULD BE ANSWERED",
        "FAIL",
        "REFUSED",
        "NO ROUTE",
        "UNKNOWN",
        "OTHER ROUTE",
        "RETRIES",
    ];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.rows.iter().map(|(route, row)| cells(route, row)));
    let widths: Vec<usize> =
        (0..header.len()).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    for row in &rows {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  "));
    }
    for (route, row) in &report.rows {
        if row.codes.is_empty() && row.why.is_empty() && row.backends.is_empty() {
            continue;
        }
        line(String::new());
        line(format!("{}:", name(route)));
        for (backend, (then, now)) in &row.backends {
            line(format!("  to backend {backend} went {then}, would go {now}"));
        }
        if row.failed > 0 {
            line(format!("  failed {}:{}", row.failed, list(row.codes.iter())));
        }
        for (fate, says) in [
            (Fate::Refused, "would have refused"),
            (Fate::Failed, "would have failed"),
            (Fate::NoRoute, "would have found no route for"),
            (Fate::Unknown, "does not know of"),
        ] {
            if row.of(fate) > 0 {
                let codes = row.why.iter().filter(|((of, _), _)| *of == fate).map(|((_, why), told)| (why, told));
                line(format!("  {says} {}:{}", row.of(fate), list(codes)));
            }
        }
    }
    line(String::new());
    let unknown: u64 = report.rows.values().map(|row| row.of(Fate::Unknown)).sum();
    line(format!("{} failed, {} would, and of {unknown} nobody knows", report.failed(), report.fails()));
    if !report.notes.is_empty() || report.samples > 0 {
        line(String::new());
        line("to be known with it:".to_owned());
    }
    if report.samples > 1 {
        let says = "what samples stand for is spread evenly until the next one: concurrency, queues, rates and shares of failures are estimates";
        line(format!("  {says}"));
    }
    for (says, requests) in &report.notes {
        line(format!("  {says} ({requests} requests)"));
    }
    out
}

fn name(route: &str) -> &str {
    if route.is_empty() { "(none)" } else { route }
}

fn cells(route: &str, row: &Row) -> Vec<String> {
    let mut cells = vec![name(route).to_owned(), row.answered.to_string(), row.failed.to_string()];
    cells.extend(Fate::ALL.iter().map(|fate| row.of(*fate).to_string()));
    cells.push(row.other_route.to_string());
    cells.push(format!("{} -> {}", row.retries, row.retries_now));
    cells
}

#[cfg(test)]
mod tests {
    use buttress_resources::{check, finding::Source};
    use expect_test::{Expect, expect};

    use super::*;

    /// A record as a proxy gives it: `attempts` are a kind, a status and how long it took.
    fn record(id: &str, at_ms: u64, path: &str, route: &str, code: &str, attempts: &[(&str, u16, u64)]) -> String {
        let took: u64 = attempts.iter().map(|(.., took)| took).sum();
        let attempts: Vec<Value> = attempts
            .iter()
            .map(|(kind, status, took)| {
                json!({
                    "endpoint": "10.0.0.1:80", "backend": "1", "hedge": false, "took_ms": took,
                    "status": if *status == 0 { Value::Null } else { json!(status) }, "grpc_status": null,
                    "kind": kind, "undelivered": false, "pushback": null, "next": null,
                })
            })
            .collect();
        json!({
            "id": id, "at_ms": at_ms + took, "took_ms": took, "method": "GET", "path": path, "authority": "shop.example",
            "client": "10.0.0.9", "said": {"keyed": false, "upgrade": false, "attempt": 1, "left_ms": null, "priority": null},
            "route": route, "backend": "1", "grpc_status": null, "outcome": {"code": code}, "attempts": attempts,
        })
        .to_string()
    }

    fn asked(yaml: &str, records: &[String]) -> Report {
        let reading = check::read(&[Source { file: "routes.yaml".into(), text: yaml.into() }]);
        assert!(reading.is_ok(), "{:?}", reading.findings);
        let routes: Vec<(&str, &Route)> =
            reading.resources.iter().map(|one| (one.name.as_str(), one.route().unwrap())).collect();
        replay(&routes, &past::read(&records.join("\n")).unwrap()).unwrap()
    }

    fn transcript(yaml: &str, records: &[String], expected: &Expect) {
        expected.assert_eq(&sentences(&asked(yaml, records)));
    }

    const SHOP: &str = "kind: Route\nname: shop\nspec:\n  to: [{endpoints: 10.0.0.1:80}]\n  retry: off\n";

    fn outage() -> Vec<String> {
        (0..50)
            .map(|n| record(&format!("r-{n}"), 1_000 + n * 10, "/", "shop", "BT0911", &[("failed", 500, 4)]))
            .collect()
    }

    #[test]
    fn a_breaker_would_have_shed_the_rest_of_an_outage() {
        transcript(
            &format!("{SHOP}  breaker: {{consecutive: 5, open_for: 30s}}\n  outlier: off\n"),
            &outage(),
            &expect![[r#"
                50 records of 0.5 s stand for 50 requests; no success that came at once was kept

                ROUTE  WAS ANSWERED  FAILED  WOULD BE ANSWERED  FAIL  REFUSED  NO ROUTE  UNKNOWN  OTHER ROUTE  RETRIES
                shop   0             50      0                  5     45       0         0        0            0 -> 0

                shop:
                  failed 50:
                    BT0911: 50 (r-0, r-1, r-2)
                  would have refused 45:
                    BT-BRK-CONSECUTIVE: 45 (r-5, r-6, r-7)
                  would have failed 5:
                    BT-RTY-STATUS: 5 (r-0, r-1, r-2)

                50 failed, 50 would, and of 0 nobody knows
            "#]],
        );
    }

    #[test]
    fn the_same_routes_answer_as_they_did() {
        let records = [
            record("a", 1_000, "/", "shop", "BT-RTY-DONE", &[("gateway", 503, 3), ("answered", 200, 4)]),
            record("b", 2_000, "/", "shop", "BT0911", &[("failed", 500, 4)]),
            record("c", 3_000, "/", "shop", "BT-RTY-DONE", &[("answered", 200, 4)]),
            record("d", 4_000, "/", "shop", "BT-RTY-DONE", &[("answered", 200, 4)]),
        ];
        let report = asked("kind: Route\nname: shop\nspec:\n  to: [{endpoints: 10.0.0.1:80}]\n", &records);
        let row = &report.rows["shop"];
        assert_eq!((row.answered, row.failed, row.retries), (2 * SAMPLE + 1, 1, 1));
        assert_eq!((row.of(Fate::Answered), row.of(Fate::Failed), row.retries_now), (2 * SAMPLE + 1, 1, 1));
        assert_eq!((row.other_route, row.why.len()), (0, 1));
    }

    #[test]
    fn what_was_not_tried_is_not_known() {
        let records = [
            record("more", 1_000, "/", "shop", "BT0911", &[("gateway", 503, 4)]),
            record("shed", 2_000, "/", "shop", "BT-LIM-FULL", &[]),
            record("slow", 3_000, "/", "shop", "BT0906", &[("timeout", 0, 500)]),
        ];
        let yaml = "kind: Route\nname: shop\nspec:\n  to: [{endpoints: 10.0.0.1:80}]\n";
        transcript(
            yaml,
            &records,
            &expect![[r#"
                3 records of 2.0 s stand for 3 requests; no success that came at once was kept

                ROUTE  WAS ANSWERED  FAILED  WOULD BE ANSWERED  FAIL  REFUSED  NO ROUTE  UNKNOWN  OTHER ROUTE  RETRIES
                shop   0             3       0                  0     0        0         3        0            0 -> 1

                shop:
                  failed 3:
                    BT-LIM-FULL: 1 (shed)
                    BT0906: 1 (slow)
                    BT0911: 1 (more)
                  does not know of 3:
                    it was not sent then, and would be: 1 (shed)
                    it would be sent once more than it was: 1 (more)
                    it would be waited for longer than it was: 1 (slow)

                3 failed, 0 would, and of 3 nobody knows
            "#]],
        );
        let elsewhere = "kind: Route\nname: shop\nspec:\n  to: [{endpoints: 10.0.0.2:80}]\n";
        let report = asked(elsewhere, &records[..1]);
        assert_eq!(report.rows["shop"].of(Fate::Unknown), 1);
    }

    #[test]
    fn a_shorter_deadline_fails_what_took_longer() {
        let records = [record("a", 1_000, "/", "shop", "BT-RTY-DONE", &[("answered", 200, 300)])];
        let report = asked(&format!("{SHOP}  deadline: 100ms\n"), &records);
        let row = &report.rows["shop"];
        assert_eq!((row.of(Fate::Failed), row.of(Fate::Answered)), (SAMPLE, 0));
        assert!(report.fails() > report.failed());
        assert_eq!(report.notes.len(), 1, "one sample says nothing about how fast they came: {:?}", report.notes);
    }

    #[test]
    fn samples_are_spread_over_time_for_rates() {
        let sample = |n: u64| record(&format!("s-{n}"), 1_000 * n, "/", "shop", "BT-RTY-DONE", &[("answered", 200, 2)]);
        let records: Vec<String> = (1..=4).map(sample).collect();
        // 1,024 a second come.
        let all = asked(&format!("{SHOP}  rate: [{{per_second: 1100, burst: 10}}]\n"), &records);
        assert_eq!((all.rows["shop"].of(Fate::Answered), all.rows["shop"].of(Fate::Refused)), (4 * SAMPLE, 0));
        let half = asked(&format!("{SHOP}  rate: [{{per_second: 512, burst: 10}}]\n"), &records);
        let refused = half.rows["shop"].of(Fate::Refused);
        assert!(refused.abs_diff(2 * SAMPLE - 10) <= 2, "{refused} of {}", 4 * SAMPLE);
        assert_eq!(half.rows["shop"].why.keys().next().unwrap().1, "BT-RAT-LIMIT");
    }

    #[test]
    fn matches_by_fields_stay_with_the_route_of_then_or_are_not_known() {
        let yaml = format!(
            "{SHOP}---\nkind: Route\nname: canary\nspec:\n  match: [{{path: /, headers: {{x-canary: \"1\"}}}}]\n  \
             to: [{{endpoints: 10.0.0.1:80}}]\n  retry: off\n"
        );
        let of = |id: &str, route: &str| record(id, 1_000, "/", route, "BT0911", &[("failed", 500, 4)]);
        let report = asked(&yaml, &[of("a", "canary"), of("b", "shop"), of("c", "old")]);
        assert_eq!((report.rows["canary"].of(Fate::Failed), report.rows["canary"].other_route), (1, 0));
        assert_eq!((report.rows["shop"].of(Fate::Failed), report.rows["shop"].other_route), (1, 0));
        assert_eq!(report.rows["old"].of(Fate::Unknown), 1);
        assert_eq!(report.notes.values().sum::<u64>(), 2, "{:?}", report.notes);
    }

    /// A record as it is with what its decisions hung on.
    fn with(record: &str, more: Value) -> String {
        let mut record: Value = serde_json::from_str(record).unwrap();
        for (key, value) in more.as_object().unwrap() {
            record[key] = value.clone();
        }
        record.to_string()
    }

    #[test]
    fn matches_by_fields_are_played_by_what_records_hold_of_them() {
        let canary = |value: &str| {
            format!(
                "{SHOP}---\nkind: Route\nname: canary\nspec:\n  match: [{{path: /, headers: {{X-Canary: \"{value}\"}}}}]\n  \
                 to: [{{endpoints: 10.0.0.1:80}}]\n  retry: off\n"
            )
        };
        let of = |id: &str, fields: Value| {
            with(&record(id, 1_000, "/", "shop", "BT0911", &[("failed", 500, 4)]), json!({"fields": fields}))
        };
        let records = [
            of("one", json!({"x-canary": {"values": ["1"]}})),
            of("two", json!({"x-canary": {"values": ["3", "2"]}})),
            of("none", json!({"x-canary": {"values": []}})),
        ];
        let moved = |value: &str| {
            let report = asked(&canary(value), &records);
            assert!(report.notes.is_empty(), "{:?}", report.notes);
            report.rows["shop"].other_route
        };
        assert_eq!((moved("1"), moved("2*"), moved("*"), moved("9")), (1, 1, 2, 0));
        // What the record may not hold, or does not, is told by its name.
        let dark = [of("dark", json!({"x-canary": {"withheld": true}})), of("bare", json!({}))];
        let report = asked(&canary("1"), &dark);
        assert_eq!((report.rows["shop"].other_route, report.rows["shop"].of(Fate::Failed)), (0, 2));
        let notes: Vec<&String> = report.notes.keys().collect();
        assert!(notes[0].contains("\"x-canary\", which is a credential"), "{notes:?}");
        assert!(notes[1].contains("\"x-canary\", which the record does not hold"), "{notes:?}");
    }

    #[test]
    fn weights_are_played_by_the_point_that_was_drawn() {
        let yaml = |a: u32, b: u32| {
            format!(
                "kind: Route\nname: shop\nspec:\n  to:\n  - {{name: a, weight: {a}, endpoints: 10.0.0.1:80}}\n  \
                 - {{name: b, weight: {b}, endpoints: 10.0.0.2:80}}\n  retry: off\n"
            )
        };
        // By 90 to 10 the first nine went to a.
        let records: Vec<String> = (0..10)
            .map(|n| {
                let record = record(&format!("r-{n}"), 1_000 + n, "/", "shop", "BT0911", &[("failed", 500, 4)]);
                let mut attempts: Value = serde_json::from_str::<Value>(&record).unwrap()["attempts"].clone();
                let (backend, endpoint) = if n < 9 { ("a", "10.0.0.1:80") } else { ("b", "10.0.0.2:80") };
                attempts[0]["backend"] = backend.into();
                attempts[0]["endpoint"] = endpoint.into();
                with(&record, json!({"point": n as f64 / 10.0 + 0.05, "backend": backend, "attempts": attempts}))
            })
            .collect();
        let split = |a: u32, b: u32| {
            let report = asked(&yaml(a, b), &records);
            let row = &report.rows["shop"];
            (row.backends["a"], row.backends["b"], row.of(Fate::Failed), row.of(Fate::Unknown))
        };
        assert_eq!(split(90, 10), ((9, 9), (1, 1), 10, 0));
        // Four that were sent to a would be sent to b, and nobody knows what b would have said.
        assert_eq!(split(50, 50), ((9, 5), (1, 5), 6, 4));
        assert_eq!(split(0, 1), ((9, 0), (1, 10), 1, 9));
        transcript(
            &yaml(50, 50),
            &records[8..],
            &expect![[r#"
                2 records of 0.0 s stand for 2 requests; no success that came at once was kept

                ROUTE  WAS ANSWERED  FAILED  WOULD BE ANSWERED  FAIL  REFUSED  NO ROUTE  UNKNOWN  OTHER ROUTE  RETRIES
                shop   0             2       0                  1     0        0         1        0            0 -> 0

                shop:
                  to backend a went 1, would go 0
                  to backend b went 1, would go 2
                  failed 2:
                    BT0911: 2 (r-8, r-9)
                  would have failed 1:
                    BT-RTY-STATUS: 1 (r-9)
                  does not know of 1:
                    it would go to an endpoint that was not asked: 1 (r-8)

                2 failed, 1 would, and of 1 nobody knows
            "#]],
        );
        // A record of before points were kept stays where it was.
        let old: Vec<String> = records.iter().map(|record| with(record, json!({"point": null}))).collect();
        let report = asked(&yaml(50, 50), &old);
        assert_eq!((report.rows["shop"].backends["a"], report.notes.len()), ((9, 9), 1));
    }

    #[test]
    fn limits_by_caller_and_by_field_are_played_by_what_records_hold() {
        let records: Vec<String> = (0..6)
            .map(|n| {
                let record = record(&format!("r-{n}"), 1_000, "/", "shop", "BT0911", &[("failed", 500, 4)]);
                with(&record, json!({"fields": {"x-tenant": {"values": [format!("t-{}", n % 2)]}}}))
            })
            .collect();
        let report =
            asked(&format!("{SHOP}  rate: [{{per_second: 0.01, burst: 2, by: \"header:X-Tenant\"}}]\n"), &records);
        assert_eq!((report.rows["shop"].of(Fate::Failed), report.rows["shop"].of(Fate::Refused)), (4, 2));
        let report =
            asked(&format!("{SHOP}  rate: [{{per_second: 0.01, burst: 2, by: \"header:x-plan\"}}]\n"), &records);
        assert_eq!((report.rows["shop"].of(Fate::Refused), report.notes.len()), (0, 1));
    }

    #[test]
    fn an_answer_that_broke_off_breaks_off_again() {
        let cut = record("a", 1_000, "/", "shop", "BT0912", &[("answered", 200, 4)]);
        let report = asked(SHOP, &[cut]);
        assert_eq!(report.rows["shop"].of(Fate::Failed), 1);
        assert_eq!(report.rows["shop"].why.keys().next().unwrap().1, "BT0912");
    }

    #[test]
    fn a_route_for_some_listeners_takes_what_came_in_there_and_what_could_have() {
        let yaml =
            "kind: Route\nname: shop\nspec:\n  listeners: inner\n  to: [{endpoints: 10.0.0.1:80}]\n  retry: off\n";
        let at = |id: &str, listener: Option<&str>| {
            let record = record(id, 1_000, "/", "shop", "BT0911", &[("failed", 500, 4)]);
            let mut record: Value = serde_json::from_str(&record).unwrap();
            record["listener"] = json!(listener);
            record.to_string()
        };
        // Records of before listeners had names do not tell.
        let report = asked(yaml, &[at("in", Some("inner")), at("out", Some("outer")), at("old", None)]);
        let row = &report.rows["shop"];
        assert_eq!((row.failed, row.of(Fate::Failed), row.of(Fate::NoRoute)), (3, 2, 1));
    }

    #[test]
    fn other_routes_and_none_are_told() {
        let yaml =
            "kind: Route\nname: new\nspec:\n  match: [{path: /a}]\n  to: [{endpoints: 10.0.0.1:80}]\n  retry: off\n";
        let of = |id: &str, path: &str| record(id, 1_000, path, "shop", "BT0911", &[("failed", 500, 4)]);
        transcript(
            yaml,
            &[of("a", "/a"), of("b", "/b?x=1")],
            &expect![[r#"
                2 records of 0.0 s stand for 2 requests; no success that came at once was kept

                ROUTE  WAS ANSWERED  FAILED  WOULD BE ANSWERED  FAIL  REFUSED  NO ROUTE  UNKNOWN  OTHER ROUTE  RETRIES
                shop   0             2       0                  1     0        1         0        1            0 -> 0

                shop:
                  failed 2:
                    BT0911: 2 (a, b)
                  would have failed 1:
                    BT-RTY-STATUS: 1 (a)
                  would have found no route for 1:
                    BT0920: 1 (b)

                2 failed, 2 would, and of 0 nobody knows
            "#]],
        );
    }

    #[test]
    fn places_are_given_back_and_those_who_wait_come_in() {
        // Two at once, one place, and a queue of one.
        let records: Vec<String> =
            (0..3).map(|n| record(&format!("r-{n}"), 1_000, "/", "shop", "BT0911", &[("failed", 500, 40)])).collect();
        let yaml =
            format!("{SHOP}  breaker: off\n  outlier: off\n  concurrency: {{limit: 1, queue: 1, adaptive: off}}\n");
        let report = asked(&yaml, &records);
        let row = &report.rows["shop"];
        assert_eq!((row.of(Fate::Failed), row.of(Fate::Refused)), (2, 1), "{:?}", row.why);
    }

    #[test]
    fn a_request_that_left_two_records_counts_once() {
        let first = record("a", 1_000, "/", "shop", "BT0911", &[("failed", 500, 4)]);
        let both = record("a", 1_000, "/", "shop", "BT-RTY-DONE", &[("failed", 500, 4), ("answered", 200, 4)]);
        let report = asked(SHOP, &[first, both]);
        assert_eq!((report.records, report.rows["shop"].answered), (1, 1));
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_line() {
        let error = past::read("\n{\"id\": 7}\n").unwrap_err();
        assert!(error.message.contains("line 2"), "{error}");
    }
}
