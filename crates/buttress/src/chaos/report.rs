//! What a run has shown: as a table for people, as JSON for programs, and as a page.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{
    check::Judged,
    director::Played,
    record::{Answered, Sample, SampleKind},
    schedule::{Expectation, Kind},
};
use crate::demo::report::Style;

/// A fault that was asked for and could not be played, and why.
pub type NotRun = (Kind, String);

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub ok: bool,
    pub seed: u64,
    pub nodes: usize,
    pub network: &'static str,
    pub elapsed_s: f64,
    pub ended_early: bool,
    pub operations: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub faults: Vec<Fault>,
    pub promises: Vec<Judged>,
    pub violations: Vec<Violated>,
    pub played: Vec<Played>,
    pub timeline: Vec<Second>,
}

/// One kind of fault, over the whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    pub fault: &'static str,
    pub model: &'static str,
    pub what: &'static str,
    pub safety: &'static str,
    pub liveness: &'static str,
    pub times: usize,
    pub held: usize,
    pub recover_ms: Recover,
    /// What was seen the last time.
    pub seen: Vec<String>,
    pub not_run: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Recover {
    pub p50: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Violated {
    pub id: String,
    pub text: String,
    pub detail: String,
}

/// What the clients saw in one piece of the run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    pub from_s: f64,
    /// Acknowledged in a second.
    pub acknowledged: f64,
    pub failed: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// Everything that a report is made of.
pub struct Parts {
    pub seed: u64,
    pub nodes: usize,
    pub network: &'static str,
    pub elapsed: Duration,
    pub ended_early: bool,
    pub operations: usize,
    pub kinds: Vec<Kind>,
    pub played: Vec<Played>,
    pub not_run: Vec<NotRun>,
    pub promises: Vec<Judged>,
    pub samples: Vec<Sample>,
}

fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    // The nearest rank: the least value that so large a share does not exceed.
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

impl Report {
    pub fn of(parts: Parts) -> Self {
        let faults: Vec<Fault> = parts.kinds.iter().map(|kind| fault(*kind, &parts)).collect();
        let mut violations: Vec<Violated> = parts
            .promises
            .iter()
            .filter(|judged| !judged.held)
            .map(|judged| Violated { id: judged.id.clone(), text: judged.text.clone(), detail: judged.detail.clone() })
            .collect();
        for played in parts.played.iter().filter(|played| !played.held()) {
            violations.push(Violated {
                id: played.kind.name().to_owned(),
                text: format!("an expectation was not met at {:.1} s", played.from_s),
                detail: played.broken.join("\n"),
            });
        }
        let count = |answer| parts.samples.iter().filter(|sample| sample.answer == answer).count();
        Self {
            ok: violations.is_empty(),
            seed: parts.seed,
            nodes: parts.nodes,
            network: parts.network,
            elapsed_s: parts.elapsed.as_secs_f64(),
            ended_early: parts.ended_early,
            operations: parts.operations,
            acknowledged: count(Answered::Yes) + count(Answered::No),
            unknown: count(Answered::Unknown),
            faults,
            promises: parts.promises,
            violations,
            played: parts.played,
            timeline: timeline(&parts.samples, parts.elapsed),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report is plain data")
    }

    /// The report for people.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ =
            writeln!(out, "{}\n", style.paint("1", if self.ended_early { "Report (ended early)" } else { "Report" }));
        let _ = writeln!(
            out,
            "  {} operations by clients, {} answered, {} with an unknown outcome; {} nodes, {:.0} s, seed {}, {}\n",
            self.operations, self.acknowledged, self.unknown, self.nodes, self.elapsed_s, self.seed, self.network
        );
        let head = format!("  {:<15}{:<18}{:>6}{:>6}  {:>17}", "FAULT", "MODEL", "TIMES", "HELD", "RECOVER P50/MAX");
        let _ = writeln!(out, "{}", style.paint("1", &head));
        let ms = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{ms:.0}"));
        for fault in &self.faults {
            let recover = match fault.recover_ms.max {
                Some(_) => format!("{} / {} ms", ms(fault.recover_ms.p50), ms(fault.recover_ms.max)),
                None => "-".into(),
            };
            let line =
                format!("  {:<15}{:<18}{:>6}{:>6}  {recover:>17}", fault.fault, fault.model, fault.times, fault.held);
            let line = if fault.held < fault.times { style.paint("1;31", &line) } else { line };
            let _ = writeln!(out, "{line}");
            let _ =
                writeln!(out, "      {}", style.paint("2", &format!("expected  {}; {}", fault.safety, fault.liveness)));
            match (&fault.not_run, &fault.seen[..]) {
                (Some(reason), _) => {
                    let _ = writeln!(out, "      {}", style.paint("33", &format!("not run: {reason}")));
                }
                (None, seen) if !seen.is_empty() => {
                    let _ = writeln!(out, "      {}", style.paint("2", &format!("seen      {}", seen.join("; "))));
                }
                _ => {}
            }
        }
        let _ = writeln!(out, "\n{}\n", style.paint("1", "Promises, checked over the whole history"));
        for promise in &self.promises {
            let mark = if promise.held { style.paint("32", "held  ") } else { style.paint("1;31", "BROKEN") };
            let _ = writeln!(out, "  {:<10} {mark}  {}", promise.id, promise.text);
            if promise.held && !promise.detail.is_empty() {
                let _ = writeln!(out, "                     {}", style.paint("2", &promise.detail));
            }
        }
        for violation in &self.violations {
            let _ = writeln!(out, "\n{}  {}", style.paint("1;31", &violation.id), violation.text);
            for line in violation.detail.lines() {
                let _ = writeln!(out, "    {line}");
            }
        }
        let verdict = match self.violations.len() {
            0 => style.paint("1;32", "Everything held."),
            1 => style.paint("1;31", "One violation."),
            n => style.paint("1;31", &format!("{n} violations.")),
        };
        let _ = writeln!(out, "\n{verdict}");
        out
    }

    /// A page of its own: it needs no other file and no network.
    pub fn page(&self) -> String {
        // Tokens, resets and panels are the demo page's.
        let style = include_str!("../page/style.css").split("/* Header */").next().unwrap_or_default();
        let own = include_str!("page.css");
        let mut faults = String::new();
        for fault in &self.faults {
            faults.push_str(&fault_row(fault));
        }
        let mut promises = String::new();
        for promise in &self.promises {
            let _ = write!(
                promises,
                "<li class=\"{}\"><b>{}</b><span>{}<small>{}</small></span></li>",
                if promise.held { "held" } else { "broken" },
                text(&promise.id),
                text(&promise.text),
                text(if promise.held { &promise.detail } else { "see the violations" }),
            );
        }
        let mut violations = String::new();
        for violation in &self.violations {
            let _ = write!(
                violations,
                "<article><h3>✕ {} <span>{}</span></h3><pre>{}</pre></article>",
                text(&violation.id),
                text(&violation.text),
                text(&violation.detail)
            );
        }
        if !violations.is_empty() {
            violations = format!("<section class=\"panel violations\"><h2>Violations</h2>{violations}</section>");
        }
        let mut played = String::new();
        for one in &self.played {
            let _ = write!(
                played,
                "<li class=\"{}\"><time>{:.0} s</time><b>{}</b><span>{}{}</span></li>",
                if one.held() { "held" } else { "broken" },
                one.from_s,
                one.kind.name(),
                if one.nodes.len() == self.nodes { "every node".to_owned() } else { text(&one.nodes.join(", ")) },
                one.seen
                    .iter()
                    .chain(&one.broken)
                    .map(|seen| format!("<small>{}</small>", text(seen)))
                    .collect::<String>(),
            );
        }
        let verdict = match (self.ok, self.violations.len()) {
            (true, _) => "<span class=\"pill good\">✓ everything held</span>".to_owned(),
            (false, 1) => "<span class=\"pill bad\">✕ one violation</span>".to_owned(),
            (false, n) => format!("<span class=\"pill bad\">✕ {n} violations</span>"),
        };
        let number = |title: &str, value: String, note: String| {
            format!("<div class=\"number\"><h2>{title}</h2><b>{value}</b><p>{note}</p></div>")
        };
        let slowest = self.played.iter().filter_map(|played| played.recovered_ms).fold(0.0, f64::max);
        let numbers = [
            number(
                "Operations",
                crate::demo::report::grouped(self.operations as u64),
                format!("{:.0} a second", self.operations as f64 / self.elapsed_s.max(1.0)),
            ),
            number(
                "Faults",
                self.played.len().to_string(),
                format!("{} as expected", self.played.iter().filter(|p| p.held()).count()),
            ),
            number("Violations", self.violations.len().to_string(), format!("{} promises judged", self.promises.len())),
            number(
                "Unknown outcomes",
                crate::demo::report::grouped(self.unknown as u64),
                "kept as unknown, judged both ways".into(),
            ),
            number("Longest to recover", format!("{slowest:.0} ms"), "from a fault to the next commit".into()),
        ]
        .concat();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"dark light\">\n<title>Buttress: chaos, checked</title>\n\
             <style>\n{style}\n{own}\n</style>\n</head>\n<body>\n\
             <header><h1><svg class=\"mark\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><path d=\"M2 15V6l6-5 6 5v9h-3V8L8 5.5 5 8v7z\"/></svg>Buttress <span>chaos of consensus, checked</span></h1>\
             <p>{} nodes · {} · {:.0} s{} · seed {}</p>{verdict}</header>\n\
             <section class=\"numbers\">{numbers}</section>\n{violations}\n\
             <section class=\"panel\"><h2>What the clients felt <span>answered operations a second, and how long they took; bands are faults</span></h2>{}</section>\n\
             <section class=\"panel\"><h2>Faults <span>what was expected, and whether it was so</span></h2>\
             <table><thead><tr><th>fault</th><th>expected: safety</th><th>expected: liveness</th><th class=\"n\">times</th><th class=\"n\">held</th><th class=\"n\">recover p50 / max</th></tr></thead><tbody>{faults}</tbody></table></section>\n\
             <div class=\"two\"><section class=\"panel\"><h2>Promises <span>judged over the whole history</span></h2><ul class=\"list promises\">{promises}</ul></section>\n\
             <section class=\"panel\"><h2>As it went</h2><ul class=\"list played\">{played}</ul></section></div>\n\
             <footer>Fault models: crash, pause, partition (both ways and one way), slow links, a full disk. Safety is judged whatever happens; liveness only while a majority is together. \
             Byzantine faults are not played: bytes that fail their checksum are detected and stop the node (BT0203), a node that lies is not tolerated.</footer>\n\
             </body>\n</html>\n",
            self.nodes,
            self.network,
            self.elapsed_s,
            if self.ended_early { ", ended early" } else { "" },
            self.seed,
            self.chart(),
        )
    }

    /// Throughput and latency over time, with the faults as bands.
    fn chart(&self) -> String {
        const W: f64 = 1200.0;
        const LEFT: f64 = 46.0;
        const LANE: f64 = 30.0;
        const H: f64 = 120.0;
        let span = self.elapsed_s.max(1.0);
        let x = |s: f64| LEFT + (W - LEFT - 6.0) * (s / span).clamp(0.0, 1.0);
        let step = self.timeline.get(1).map_or(1.0, |second| second.from_s);
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {W} {}\" role=\"img\" aria-label=\"Throughput and latency over time\">",
            LANE + 2.0 * H + 46.0
        );
        for played in &self.played {
            let (from, to) = (x(played.from_s), x(played.to_s));
            let class = if played.held() { "band" } else { "band bad" };
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{}\"><title>{} at {:.0} s</title></rect>",
                (to - from).max(1.0),
                LANE + 2.0 * H + 24.0,
                played.kind.name(),
                played.from_s
            );
            if to - from > 6.0 * played.kind.name().len() as f64 + 6.0 {
                let _ =
                    write!(out, "<text class=\"fault\" x=\"{:.1}\" y=\"12\">{}</text>", from + 3.0, played.kind.name());
            }
        }
        let top = self.timeline.iter().map(|second| second.acknowledged).fold(1.0, f64::max);
        let base = LANE + H;
        let y = |value: f64| base - (H - 8.0) * value / top;
        let mut area = format!("M{:.1} {base}", x(0.0));
        for second in &self.timeline {
            let _ = write!(area, "L{:.1} {:.1}", x(second.from_s + step / 2.0), y(second.acknowledged));
        }
        let _ = write!(area, "L{:.1} {base}Z", x(span));
        let _ = write!(
            out,
            "<path class=\"area\" d=\"{area}\"/><text class=\"axis\" x=\"{}\" y=\"{:.1}\">{top:.0}/s</text><text class=\"axis\" x=\"{}\" y=\"{base}\">0</text>",
            LEFT - 4.0,
            y(top) + 8.0,
            LEFT - 4.0
        );
        // Latency on a logarithmic axis, from a millisecond to ten seconds.
        let floor = base + 18.0 + H;
        let z = |ms: f64| floor - (H - 8.0) * (ms.clamp(1.0, 10_000.0).log10() / 4.0);
        for (ms, label) in [(1.0, "1 ms"), (10.0, "10 ms"), (100.0, "100 ms"), (1_000.0, "1 s"), (10_000.0, "10 s")] {
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{W}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/><text class=\"axis\" x=\"{1}\" y=\"{2:.1}\">{label}</text>",
                z(ms),
                LEFT - 4.0,
                z(ms) + 4.0
            );
        }
        for (class, of) in [("p99", Second::p99 as fn(&Second) -> Option<f64>), ("p50", Second::p50)] {
            let mut path = String::new();
            let mut open = false;
            for second in &self.timeline {
                match of(second) {
                    Some(ms) => {
                        let _ = write!(
                            path,
                            "{}{:.1} {:.1}",
                            if open { "L" } else { "M" },
                            x(second.from_s + step / 2.0),
                            z(ms)
                        );
                        open = true;
                    }
                    None => open = false,
                }
            }
            let _ = write!(out, "<path class=\"{class}\" d=\"{path}\"/>");
        }
        let every =
            [5.0, 10.0, 30.0, 60.0, 300.0, 600.0].into_iter().find(|every| span / every <= 14.0).unwrap_or(1800.0);
        let mut at = 0.0;
        while at <= span {
            let label = if every < 60.0 { format!("{at:.0} s") } else { format!("{:.0} min", at / 60.0) };
            let _ = write!(
                out,
                "<text class=\"axis x\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                x(at).min(W - 40.0),
                floor + 16.0
            );
            at += every;
        }
        out.push_str("</svg><p class=\"key\"><i class=\"ka\"></i>answered a second <i class=\"k5\"></i>p50 <i class=\"k9\"></i>p99 <i class=\"kb\"></i>fault</p>");
        out
    }
}

impl Second {
    fn p50(&self) -> Option<f64> {
        self.p50_ms
    }

    fn p99(&self) -> Option<f64> {
        self.p99_ms
    }
}

fn fault(kind: Kind, parts: &Parts) -> Fault {
    let Expectation { model, what, safety, liveness } = kind.expectation();
    let of_kind: Vec<&Played> = parts.played.iter().filter(|played| played.kind == kind).collect();
    let mut recovered: Vec<f64> = of_kind.iter().filter_map(|played| played.recovered_ms).collect();
    recovered.sort_by(f64::total_cmp);
    let reason = parts.not_run.iter().find(|(not, _)| *not == kind).map(|(_, reason)| reason.clone());
    let over = of_kind.is_empty().then(|| "the time was over before its turn".to_owned());
    Fault {
        fault: kind.name(),
        model,
        what,
        safety,
        liveness,
        times: of_kind.len(),
        held: of_kind.iter().filter(|played| played.held()).count(),
        recover_ms: Recover { p50: quantile(&recovered, 0.5), max: recovered.last().copied() },
        seen: of_kind.last().map(|played| played.seen.clone()).unwrap_or_default(),
        not_run: reason.or(over),
    }
}

fn fault_row(fault: &Fault) -> String {
    let recover = match (fault.recover_ms.p50, fault.recover_ms.max) {
        (Some(p50), Some(max)) => format!("{p50:.0} / {max:.0} ms"),
        _ => "–".into(),
    };
    let (state, mark) = match (&fault.not_run, fault.held == fault.times) {
        (Some(_), _) => ("skipped", "○"),
        (None, true) => ("held", "✓"),
        (None, false) => ("broken", "✕"),
    };
    let seen = match &fault.not_run {
        Some(reason) => format!("not run: {reason}"),
        None => fault.seen.join("; "),
    };
    format!(
        "<tr class=\"{state}\"><td><b>{mark} {}</b><small>{}: {}</small></td><td>{}</td><td>{}<small>{}</small></td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{recover}</td></tr>",
        fault.fault,
        fault.model,
        text(fault.what),
        text(fault.safety),
        text(fault.liveness),
        text(&seen),
        fault.times,
        fault.held,
    )
}

/// Text as HTML shows it.
fn text(raw: &str) -> String {
    raw.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Pieces of the run; at most three hundred of them.
const PIECES_MAX: f64 = 300.0;

fn timeline(samples: &[Sample], elapsed: Duration) -> Vec<Second> {
    let step = (elapsed.as_secs_f64() / PIECES_MAX).ceil().max(1.0);
    let mut pieces: BTreeMap<u64, (usize, usize, Vec<f64>)> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.kind != SampleKind::Other) {
        let (answered, failed, took) = pieces.entry((sample.ended.as_secs_f64() / step) as u64).or_default();
        match sample.answer {
            Answered::Yes | Answered::No => {
                *answered += 1;
                took.push((sample.ended - sample.began).as_secs_f64() * 1_000.0);
            }
            Answered::Failed | Answered::Unknown => *failed += 1,
        }
    }
    let last = (elapsed.as_secs_f64() / step) as u64;
    (0..last.max(1))
        .map(|at| {
            let (answered, failed, mut took) = pieces.remove(&at).unwrap_or_default();
            took.sort_by(f64::total_cmp);
            Second {
                from_s: at as f64 * step,
                acknowledged: answered as f64 / step,
                failed: failed as f64 / step,
                p50_ms: quantile(&took, 0.5),
                p99_ms: quantile(&took, 0.99),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use buttress_core::{
        KeyRange, LogId, Offset, Put, Revision,
        ledger::{KeyValue, KeyValues},
    };
    use buttress_oracle::{Appended, Commit, Done, History, Outcome, Records, Serial, What};

    use super::*;
    use crate::chaos::{check, clients::Read};

    fn parts(promises: Vec<Judged>, broken: Vec<String>) -> Parts {
        let kind = Kind::KillLeader;
        let played = Played {
            kind,
            nodes: vec!["node-1".into()],
            from_s: 3.0,
            to_s: 9.0,
            recovered_ms: Some(1_234.0),
            seen: vec!["node-2 leads term 3 after 1100 ms".into()],
            broken,
        };
        let sample = |at: u64, answer| Sample {
            began: Duration::from_millis(at),
            ended: Duration::from_millis(at + 7),
            node: 0,
            kind: SampleKind::Write,
            answer,
        };
        Parts {
            seed: 7,
            nodes: 3,
            network: "proxy",
            elapsed: Duration::from_secs(10),
            ended_early: false,
            operations: 3,
            kinds: vec![kind, Kind::DiskFull],
            played: vec![played],
            not_run: vec![(Kind::DiskFull, "no <root>".into())],
            promises,
            samples: vec![sample(100, Answered::Yes), sample(200, Answered::No), sample(1_500, Answered::Unknown)],
        }
    }

    fn write(history: &mut History, key: &str, value: &str, revision: u64) {
        let put = Put { key: key.to_owned().into(), value: Some(value.to_owned().into()), lease: None };
        let op = history.invoke(1, revision * 10, What::Commit(Commit { puts: vec![put], ..Commit::default() }));
        let done = Done { revision: Some(Revision(revision)), offsets: Vec::new() };
        history.complete(op, revision * 10 + 1, Outcome::Done(done));
    }

    fn read(history: &mut History, key: &str, value: &str, modified: u64, revision: u64, at_us: u64) {
        let range = KeyRange::key(key.to_owned());
        let op = history.invoke(2, at_us, What::Read { range, at: None, linearizable: true });
        let kv = KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision: Revision(2),
            mod_revision: Revision(modified),
            version: modified - 1,
            lease: None,
        };
        let found = KeyValues { revision: Revision(revision), kvs: vec![kv], more: false };
        history.complete(op, at_us + 1, Outcome::Found(found));
    }

    fn append(history: &mut History, serial: u64, offset: i64) {
        let records = Records { log: LogId(1), sequence: None, serials: vec![Serial(serial)] };
        let op =
            history.invoke(3, 1_000 + serial, What::Commit(Commit { appends: vec![records], ..Commit::default() }));
        let done = Done { revision: None, offsets: vec![Appended::At(Offset(offset))] };
        history.complete(op, 1_000 + serial, Outcome::Done(done));
    }

    fn left(orders: &[u64]) -> check::Leftovers {
        let read = |(at, serial): (i64, &u64)| Read { offset: Offset(at), serial: Serial(*serial), of: None };
        let reads: Vec<Read> = (0..).zip(orders).map(read).collect();
        let all = Offset(reads.len() as i64);
        check::Leftovers {
            orders: Some((LogId(1), reads.clone())),
            shipped: Some((LogId(2), Vec::new())),
            relayed: Some(reads),
            cursor: Some((Offset(0), Offset(0))),
            fingerprints: Some(vec![("node-1".into(), 9, "ab".into()), ("node-2".into(), 9, "ab".into())]),
            terms: usize::try_from(all.0).expect("small"),
            ..check::Leftovers::default()
        }
    }

    fn broken(history: &mut History, left: &check::Leftovers) -> (Report, Vec<String>) {
        let report = Report::of(parts(check::check(history, left), Vec::new()));
        let ids = report.violations.iter().map(|violation| violation.id.clone()).collect();
        (report, ids)
    }

    #[test]
    fn what_held_is_told_as_held() {
        let mut history = History::new();
        write(&mut history, "a", "1", 2);
        write(&mut history, "a", "2", 3);
        read(&mut history, "a", "2", 3, 3, 50);
        append(&mut history, 100, 0);
        let (report, ids) = broken(&mut history, &left(&[100]));
        assert_eq!((report.ok, ids), (true, Vec::new()));
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(
            (&json["ok"], &json["operations"], json["violations"].as_array().map(Vec::len)),
            (&true.into(), &3.into(), Some(0))
        );
        assert_eq!(
            (&json["faults"][0]["fault"], &json["faults"][0]["recover_ms"]["max"]),
            (&"kill-leader".into(), &1234.0.into())
        );
        let shown = report.render(Style { color: false });
        assert!(shown.contains("not run: no <root>") && shown.ends_with("Everything held.\n"), "{shown}");
        let page = report.page();
        assert!(
            page.contains("everything held")
                && page.contains("no &lt;root&gt;")
                && !page.contains("class=\"panel violations\"")
        );
    }

    #[test]
    fn a_stale_read_and_a_lost_write_are_violations_with_a_counterexample() {
        // A read that answers with what was overwritten before it was asked.
        let mut stale = History::new();
        write(&mut stale, "a", "1", 2);
        write(&mut stale, "a", "2", 3);
        read(&mut stale, "a", "1", 2, 3, 50);
        let (report, ids) = broken(&mut stale, &left(&[]));
        assert!(ids.contains(&"LIN-1".to_owned()), "{ids:?}");
        let page = report.page();
        assert!(page.contains("class=\"panel violations\"") && page.contains("✕ LIN-1"));
        let counterexample = &report.violations[0].detail;
        assert!(counterexample.contains("put a") || counterexample.contains("a="), "{counterexample}");
        assert!(report.render(Style { color: false }).contains("BROKEN"));

        // A record that was acknowledged and is not there.
        let mut lost = History::new();
        append(&mut lost, 100, 0);
        append(&mut lost, 101, 1);
        let (_, ids) = broken(&mut lost, &left(&[100]));
        assert_eq!(ids, ["RECORD-1"]);
    }

    #[test]
    fn whatever_else_is_wrong_is_a_violation_too() {
        let found = |change: &dyn Fn(&mut check::Leftovers)| {
            let mut wrong = left(&[]);
            change(&mut wrong);
            broken(&mut History::new(), &wrong).1
        };
        assert_eq!(found(&|_| {}), Vec::<String>::new());
        assert_eq!(found(&|left| left.fingerprints.as_mut().unwrap()[1].2 = "cd".into()), ["REPLICA-1"]);
        assert_eq!(found(&|left| left.fingerprints = None), ["REPLICA-1"]);
        assert_eq!(found(&|left| left.double_leaders.push("term 3 has leaders {1, 2}".into())), ["TERM-1"]);
        assert_eq!(found(&|left| left.problems.push("node-1: 500".into())), ["ANSWERS"]);
        assert_eq!(found(&|left| left.cursor = Some((Offset(-1), Offset(0)))), ["PIPE-1"]);
        let twice = Read { offset: Offset(0), serial: Serial(5), of: None };
        assert_eq!(found(&|left| left.relayed.as_mut().unwrap().push(twice.clone())), ["FN-OUT"]);
        let unmet = Report::of(parts(Vec::new(), vec!["no new leader within 5 s".into()]));
        assert!(!unmet.ok && unmet.violations[0].id == "kill-leader" && unmet.faults[0].held == 0);
    }
}
