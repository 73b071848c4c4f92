//! `buttress route test | lint | what-if`: what routes do with a request, what of them is not wise, and what they would have
//! done with requests that came.

use std::{collections::HashMap, io::Write as _, path::PathBuf};

use buttress_core::{Code, Error};
use buttress_gateway::table::Place;
use buttress_resources::{
    Resource,
    check::Reading,
    finding::Level,
    kinds::Kind,
    matcher::{Found, Matcher, Miss, Pattern, Request},
    route::{Match, OneOrMany, Route},
    yaml,
};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::{cli::At, files::Files, lint::lint, place};
use crate::{
    cli::{Answer, args::Output, show},
    proxy::explain,
};

#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// Say which route takes a request, why the others do not, and where it goes under which policies.
    #[command(
        after_help = "Examples:\n  buttress route test -f routes.yaml GET http://shop.example/orders/7\n  buttress route test -f routes.yaml POST shop.example/orders -H 'x-canary: 1'\n  buttress route test GET http://shop.example/orders/7 --server http://127.0.0.1:7380\n  buttress route test GET http://shop.example/orders/7 --admin 127.0.0.1:7390\n\nExit codes: 0 a route takes it, 1 none does, 2 it failed."
    )]
    Test(TestArgs),
    /// Say what of routes is not wise: attempts that multiply, deadlines that cannot hold, breakers that never open.
    #[command(
        after_help = "Examples:\n  buttress route lint -f routes.yaml\n  buttress route lint -f deploy/ --output json\n\nExit codes: 0 no warning, 1 warnings or errors, 2 it failed."
    )]
    Lint(LintArgs),
    /// Say what these routes would have done with the requests that a running proxy keeps records of.
    #[command(
        after_help = "Examples:\n  buttress route what-if -f routes.yaml --admin 127.0.0.1:7390\n  curl -s 127.0.0.1:7390/v1/records > incident.jsonl\n  buttress route what-if -f routes.yaml --records incident.jsonl\n\nExit codes: 0 no more requests would fail than did, 1 more would, 2 it failed."
    )]
    WhatIf(super::what_if::WhatIfArgs),
}

#[derive(Debug, ClapArgs)]
pub struct TestArgs {
    pub method: String,
    /// http://HOST/PATH, HOST/PATH or /PATH.
    pub url: String,
    /// A file, a directory, or - for standard input; may be repeated. Without any, what is applied is looked at.
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// The admin address of a running proxy, whose routes are looked at.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "files")]
    pub admin: Option<String>,
    /// A field of the request; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The listener at which it comes in. Without it, at any.
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    #[command(flatten)]
    pub at: At,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct LintArgs {
    /// A file, a directory, or - for standard input; may be repeated. Without any, what is applied is looked at.
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub at: At,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub fn run(command: &RouteCommand) -> Answer {
    match command {
        RouteCommand::Test(args) => test(args),
        RouteCommand::Lint(args) => lint_files(args),
        RouteCommand::WhatIf(args) => super::what_if::run(args),
    }
}

/// From files, or as they are applied; then a resource's file is its name, and its lines are those of `get -o yaml`.
fn resources(paths: &[PathBuf], at: &At) -> anyhow::Result<(Files, Reading)> {
    let files = if paths.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let place = place::Place::open(&at.server, &at.etcd, &at.namespace).await?;
            let mut files = Files::read(&[])?;
            for kind in [Kind::Route, Kind::Listener] {
                for item in place.list(kind).await? {
                    let file = format!("{}/{}", kind.name().to_lowercase(), item.name);
                    files.add(file, yaml::write(&item.document()));
                }
            }
            place.close().await;
            Ok::<_, Error>(files)
        })?
    } else {
        Files::read(paths)?
    };
    let reading = files.resources()?;
    Ok((files, reading))
}

/// Where the matches of a proxy's routes were written, by route; the rest has no lines.
type Written = HashMap<String, (String, u32, Vec<u32>)>;

/// Those that a running proxy routes by.
fn live(admin: &str) -> anyhow::Result<(Reading, Written)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told: Value = runtime.block_on(explain::ask(admin, "/v1/routes"))?.json();
    let (mut files, mut written) = (Files::read(&[])?, Written::new());
    for route in told["routes"].as_array().into_iter().flatten() {
        let name = route["name"].as_str().unwrap_or_default().to_owned();
        let document = json!({"kind": "Route", "name": name, "spec": route["spec"]});
        files.add(format!("route/{name}"), yaml::write(&document));
        let line = |line: &Value| line.as_u64().and_then(|line| u32::try_from(line).ok()).unwrap_or(0);
        let lines = route["match_lines"].as_array().into_iter().flatten().map(line).collect();
        let file = route["file"].as_str().unwrap_or_default().to_owned();
        written.insert(name, (file, line(&route["line"]), lines));
    }
    if written.is_empty() {
        return Ok((Reading::default(), written));
    }
    Ok((files.resources()?, written))
}

fn lint_files(args: &LintArgs) -> Answer {
    let (files, reading) = resources(&args.files, &args.at)?;
    let linted = lint(&reading.resources);
    let count = |level: Level| linted.findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings, notes) = (count(Level::Error), count(Level::Warning), count(Level::Note));
    match args.output {
        Output::Json => {
            let findings: Vec<Value> = linted.findings.iter().map(|finding| finding.json()).collect();
            let amplification: Vec<Value> = linted.amplification.iter().map(|chain| chain.json()).collect();
            let told = json!({
                "findings": findings, "amplification": amplification,
                "errors": errors, "warnings": warnings, "notes": notes,
            });
            show::json(&told).map_err(show::output_failed)?;
        }
        Output::Table => {
            files.tell(&linted.findings);
            let rows: Vec<Vec<String>> = linted
                .amplification
                .iter()
                .map(|chain| {
                    vec![
                        chain.chain.join(" -> "),
                        chain.arithmetic(),
                        format!("{}x", chain.with_hops),
                        format!("{:.2}x", chain.budgeted),
                    ]
                })
                .collect();
            show::table(&["ROUTE", "ATTEMPTS AT MOST", "COUNTING HOPS", "BY BUDGET"], &rows)
                .map_err(show::output_failed)?;
            eprintln!("{errors} errors, {warnings} warnings, {notes} notes");
        }
    }
    Ok(errors + warnings == 0)
}

/// What is asked, taken apart.
struct Asked {
    host: String,
    path: String,
    method: String,
    fields: Vec<(String, String)>,
    listener: Option<String>,
}

impl Asked {
    fn read(args: &TestArgs) -> Result<Self, Error> {
        let bad = |what: String, hint: &str| Err(Error::new(Code::BAD_REQUEST, what).hint(hint));
        let url = args.url.as_str();
        let rest = match url.split_once("://") {
            Some(("http" | "https", rest)) => rest,
            Some((scheme, _)) => return bad(format!("\"{scheme}\" is no scheme of a request"), "http:// or https://"),
            None => url,
        };
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let path = match path.split('#').next().unwrap_or_default() {
            path if path.starts_with('/') => path.to_owned(),
            query => format!("/{query}"),
        };
        if host.contains('@') || !path.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
            return bad(
                format!("\"{url}\" is no URL that a client would send"),
                "write others bytes as % and two digits",
            );
        }
        let mut fields = Vec::new();
        for field in &args.headers {
            let Some((name, value)) = field.split_once(':') else {
                return bad(format!("\"{field}\" is no header field"), "write -H 'NAME: VALUE'");
            };
            buttress_resources::matcher::field_name(name)
                .map_err(|flaw| Error::new(Code::BAD_REQUEST, flaw.says).hint(flaw.hint))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        let (method, listener) = (args.method.to_ascii_uppercase(), args.listener.clone());
        Ok(Self { host: host.to_owned(), path, method, fields, listener })
    }

    fn request(&self) -> Request<'_, [(String, String)]> {
        Request {
            host: self.host.as_bytes(),
            path: self.path.as_bytes(),
            method: self.method.as_bytes(),
            fields: &self.fields,
            listener: self.listener.as_deref(),
        }
    }
}

/// A backend that may get the request.
struct Share {
    at: usize,
    /// 0 to 1.
    share: f64,
    /// Why, where no weights decided.
    because: Option<&'static str>,
}

/// As a gateway chooses: the first backend whose `when` holds, else by weight.
fn shares(route: &Route, asked: &Asked) -> Vec<Share> {
    let holds = |when: &Match| Pattern::read(when).is_ok_and(|when| when.holds(&asked.request()));
    if let Some(at) = route.to.iter().position(|backend| backend.when.as_ref().is_some_and(holds)) {
        return vec![Share { at, share: 1.0, because: Some("its `when` holds") }];
    }
    let weights: Vec<f64> = route.to.iter().map(|backend| f64::from(backend.weight.unwrap_or(1))).collect();
    let sum: f64 = weights.iter().sum();
    let weighed = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
    weighed.map(|(at, weight)| Share { at, share: weight / sum, because: None }).collect()
}

fn test(args: &TestArgs) -> Answer {
    let asked = Asked::read(args)?;
    let (reading, written) = match &args.admin {
        Some(admin) => live(admin).map(|(reading, written)| (reading, Some(written)))?,
        None => (resources(&args.files, &args.at)?.1, None),
    };
    let routes: Vec<(&Resource, &Route)> =
        reading.resources.iter().filter_map(|resource| Some((resource, resource.route()?))).collect();
    let matcher = Matcher::new(routes.iter().map(|(_, route)| *route)).expect("every match was read before");
    let found = matcher.find(&asked.request());
    let others: Vec<(Found, String)> = matcher
        .explain(&asked.request())
        .into_iter()
        .filter(|(at, _)| Some(*at) != found)
        .map(|(at, miss)| (at, why(routes[at.route].1, at, miss, found)))
        .collect();
    let place = |found: Found| {
        let (resource, _) = routes[found.route];
        if let Some((file, line, lines)) = written.as_ref().and_then(|written| written.get(&resource.name)) {
            let line = found.at.and_then(|at| lines.get(at)).copied().filter(|line| *line > 0).unwrap_or(*line);
            return (resource, Place { file: file.clone(), line });
        }
        let line = found.at.map_or(resource.origin.line, |at| resource.lines.of(&format!("/spec/match/{at}")));
        (resource, Place { file: resource.origin.file.clone(), line })
    };
    let lined = written.is_none();
    let mut out = std::io::stdout().lock();
    if args.output == Output::Json {
        let told = |at: Found| {
            let (resource, Place { file, line }) = place(at);
            json!({"route": resource.name, "match": at.at, "file": file, "line": line})
        };
        let mut answer = json!({"found": found.map(told)});
        if let Some(found) = found {
            let (resource, route) = routes[found.route];
            let backends = shares(route, &asked);
            let backends = backends.iter().map(|share| {
                let backend = &route.to[share.at];
                json!({"name": name_of(route, share.at), "share": share.share, "to": target(backend), "because": share.because})
            });
            answer["backends"] = backends.collect();
            answer["policies"] = policies(resource)
                .into_iter()
                .map(|(key, value, line)| {
                    json!({"key": key, "value": value, "line": line.filter(|_| lined), "set": line.is_some()})
                })
                .collect();
        }
        answer["others"] = others
            .iter()
            .map(|(at, why)| {
                let mut told = told(*at);
                told["why"] = json!(why);
                told
            })
            .collect();
        writeln!(out, "{answer}").map_err(show::output_failed)?;
        return Ok(found.is_some());
    }
    let told = tell(&asked, &routes, found, &others, &place, lined).map_err(show::output_failed)?;
    write!(out, "{told}").map_err(show::output_failed)?;
    Ok(found.is_some())
}

fn tell<'r>(
    asked: &Asked,
    routes: &[(&Resource, &Route)],
    found: Option<Found>,
    others: &[(Found, String)],
    place: &impl Fn(Found) -> (&'r Resource, Place),
    lined: bool,
) -> std::io::Result<String> {
    let mut out = Vec::new();
    match found {
        None => writeln!(out, "no route takes {} {}{}", asked.method, asked.host, asked.path)?,
        Some(found) => {
            let (resource, place) = place(found);
            let by = found.at.map_or("because no other does".to_owned(), |at| format!("by match {}", at + 1));
            writeln!(out, "route \"{}\" takes it, {by} ({place})", resource.name)?;
            let (resource, route) = routes[found.route];
            for share in shares(route, asked) {
                let line = resource.lines.of(&format!("/spec/to/{}", share.at));
                let because = share.because.map_or(String::new(), |because| format!(", {because}"));
                let name = name_of(route, share.at);
                let percent = (share.share * 1000.0).round() / 10.0;
                let to = target(&route.to[share.at]);
                let line = if lined { format!(", line {line}") } else { String::new() };
                writeln!(out, "  {percent:>5} %  to {name}{line}{because}: {to}")?;
            }
            for (key, value, line) in policies(resource) {
                let line = match line {
                    None => "by itself".to_owned(),
                    Some(line) if lined => format!("line {line}"),
                    Some(_) => "set".to_owned(),
                };
                writeln!(out, "  {key:<16} {value}  ({line})")?;
            }
        }
    }
    if !others.is_empty() {
        writeln!(out, "the others:")?;
    }
    for (at, why) in others {
        let (resource, place) = place(*at);
        let which = at.at.map_or(String::new(), |at| format!(", match {}", at + 1));
        writeln!(out, "  route \"{}\"{which} ({place}): {why}", resource.name)?;
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn name_of(route: &Route, at: usize) -> String {
    route.to[at].name.clone().unwrap_or_else(|| (at + 1).to_string())
}

fn target(backend: &buttress_resources::route::Backend) -> String {
    let endpoints = backend.endpoints.iter().flat_map(OneOrMany::as_slice).map(|endpoint| endpoint.address());
    let endpoints: Vec<&str> = endpoints.collect();
    match (&backend.dns, &backend.service) {
        (Some(dns), _) => format!("every address of {dns}"),
        (_, Some(service)) => format!("service {service} of the registry"),
        _ => endpoints.join(", "),
    }
}

fn why(route: &Route, at: Found, miss: Option<Miss<'_>>, found: Option<Found>) -> String {
    let none = Match::default();
    let spec = at.at.map_or(&none, |at| &route.matches[at]);
    match miss {
        Some(Miss::Listener) => {
            let named = route.listeners.as_ref().map_or(&[][..], |named| named.as_slice());
            format!("it is for the listener {}", named.join(" or "))
        }
        Some(Miss::Host) => format!("the host is not {}", spec.host.as_deref().unwrap_or_default()),
        Some(Miss::Path) => match spec.path.as_deref().unwrap_or_default() {
            prefix if prefix.ends_with("/*") => format!("the path is not below {}", &prefix[..prefix.len() - 1]),
            path => format!("the path is not {path}"),
        },
        Some(Miss::Method) => {
            let methods = spec.method.as_ref().map_or(&[][..], |methods| methods.as_slice());
            format!("the method is not {}", methods.join(" or "))
        }
        Some(Miss::Field(name)) => {
            let wanted = spec.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            match wanted.map(|(_, value)| value.as_str()) {
                Some("*") | None => format!("there is no field {name}"),
                Some(value) => format!("no field {name} is {value}"),
            }
        }
        None if found.is_some_and(|found| found.route == at.route) => {
            "it holds too; the other match is more exact".into()
        }
        None => "it holds too, and is less exact or comes later".into(),
    }
}

/// Key, value and line of each policy; those without a line are as they are by themselves.
fn policies(resource: &Resource) -> Vec<(&'static str, String, Option<u32>)> {
    const BY_ITSELF: [(&str, &str); 7] = [
        ("deadline", "15s"),
        ("retry", "3 attempts of what has no effect, 20% of requests"),
        ("breaker", "opens at 50% failures of 20 calls or more in 10s"),
        ("concurrency", "as many as the upstream bears"),
        ("outlier", "ejects after 5 failures in a row"),
        ("balance", "peak-ewma"),
        ("hedge", "off"),
    ];
    const OTHERS: [&str; 9] =
        ["attempt_timeout", "priority", "throttle", "rate", "auth", "rewrite", "fallback", "mirror", "fault"];
    let keys = BY_ITSELF.iter().map(|(key, value)| (*key, Some(*value))).chain(OTHERS.map(|key| (key, None)));
    let mut told = Vec::new();
    for (key, by_itself) in keys {
        match (&resource.spec[key], by_itself) {
            (Value::Null, None) => {}
            (Value::Null, Some(value)) => told.push((key, value.to_owned(), None)),
            (value, _) => told.push((key, yaml::flow(value), Some(resource.lines.of(&format!("/spec/{key}"))))),
        }
    }
    told
}
