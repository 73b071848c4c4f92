//! What no schema says: values that cannot be carried out, and values that do not go together.

use std::collections::BTreeSet;

use crate::{
    flaw::Flaw,
    kinds::Spec,
    listener::{Certificate, Listener},
    matcher::{Pattern, escaped, field_name, is_token},
    route::{Auth, Backend, Balance, Balancer, EndpointSpec, OneOrMany, Policies, Rate, Rewrite, Route, Switch},
    topic::Topic,
    units::Span,
};

pub fn of(spec: &Spec) -> Vec<Flaw> {
    let mut all = All(Vec::new());
    match spec {
        Spec::Route(spec) => route(spec, &mut all),
        Spec::Listener(spec) => listener(spec, &mut all),
        Spec::Topic(spec) => topic(spec, &mut all),
        // Their planes say what cannot be, when they are deployed.
        Spec::Function(_) | Spec::Model(_) => {}
    }
    all.0
}

struct All(Vec<Flaw>);

impl All {
    fn tell(&mut self, at: impl Into<String>, says: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Flaw::invalid(at, says, hint));
    }

    fn below(&mut self, parent: &str, flaws: impl IntoIterator<Item = Flaw>) {
        self.0.extend(flaws.into_iter().map(|flaw| flaw.below(parent)));
    }

    fn field(&mut self, at: &str, name: Option<&str>) {
        self.below(at, name.and_then(|name| field_name(name).err()));
    }

    fn not_zero(&mut self, at: &str, number: Option<u32>) {
        if number == Some(0) {
            self.tell(at, "0 is too few", "write 1 or more, or leave the key out");
        }
    }

    fn lasting(&mut self, at: &str, span: Option<Span>) {
        if span.is_some_and(|span| span.0.is_zero()) {
            self.tell(at, "it must last longer than nothing", "write a span like 2s, or leave the key out");
        }
    }

    fn status(&mut self, at: &str, status: u16, least: u16) {
        if !(least..=599).contains(&status) {
            self.tell(at, format!("{status} is no status for this"), format!("write one from {least} to 599"));
        }
    }
}

fn route(route: &Route, all: &mut All) {
    for (at, spec) in route.matches.iter().enumerate() {
        all.below(&format!("/match/{at}"), Pattern::read(spec).err().into_iter().flatten());
    }
    let answers = route.fallback.as_ref().is_some_and(|fallback| fallback.answer.is_some());
    if route.to.is_empty() && !answers {
        all.tell(
            "",
            "the route has no backend",
            "write to: [{endpoints: 127.0.0.1:3000}], or a fallback with an answer",
        );
    }
    let mut names = BTreeSet::new();
    for (at, spec) in route.to.iter().enumerate() {
        let at = format!("/to/{at}");
        backend(spec, &at, all);
        if let Some(name) = &spec.name
            && !names.insert(name.as_str())
        {
            all.tell(format!("{at}/name"), format!("two backends are called \"{name}\""), "rename one");
        }
    }
    if route.to.iter().all(|backend| backend.weight == Some(0)) && route.to.iter().any(|backend| backend.when.is_none())
    {
        let hint = "give one of them a weight; weight 0 is for backends that only `when` or `fallback` name";
        all.tell("/to", "every weight is 0, so that no request goes anywhere", hint);
    }
    rewrite(route.rewrite.as_ref(), all);
    auth(route.auth.as_ref(), all);
    for (at, spec) in route.rate.iter().enumerate() {
        rate(spec, &format!("/rate/{at}"), route.auth.is_some(), all);
    }
    policies(&route.policies, route.auth.is_some(), all);
    if let Some(fallback) = &route.fallback {
        if fallback.backend.is_none() && fallback.stale.is_none() && fallback.answer.is_none() {
            all.tell("/fallback", "nothing is given that could be answered", "give backend, stale or answer");
        }
        if let Some(name) = &fallback.backend
            && !names.contains(name.as_str())
        {
            let hint = match names.is_empty() {
                true => "give the backend a name: to: [{name: spare, weight: 0, …}]".to_owned(),
                false => format!("the backends are {}", names.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            all.tell("/fallback/backend", format!("there is no backend \"{name}\""), hint);
        }
        all.lasting("/fallback/stale", fallback.stale);
        if let Some(answer) = &fallback.answer {
            all.status("/fallback/answer/status", answer.status.unwrap_or(200), 200);
            value_of("/fallback/answer/content_type", answer.content_type.as_deref(), all);
        }
    }
    if let Some(mirror) = &route.mirror {
        address("/mirror/to", &mirror.to, all);
    }
    if let Some(fault) = &route.fault {
        if fault.delay.is_none() && fault.abort.is_none() {
            all.tell("/fault", "no fault is given", "give delay or abort");
        }
        all.below("/fault/when", fault.when.as_ref().and_then(|when| Pattern::read(when).err()).into_iter().flatten());
        all.status("/fault/abort", fault.abort.unwrap_or(503), 400);
        if fault.delay.is_some_and(|delay| delay.0.as_secs() > 60) {
            all.tell("/fault/delay", "it is longer than a minute", "write at most 1m: requests that wait take memory");
        }
        for (share, needs, is) in [
            ("delay_share", "delay", fault.delay_share.is_some() && fault.delay.is_none()),
            ("abort_share", "abort", fault.abort_share.is_some() && fault.abort.is_none()),
        ] {
            if is {
                all.tell(
                    format!("/fault/{share}"),
                    format!("there is no `{needs}` to share out"),
                    format!("give {needs}"),
                );
            }
        }
    }
}

fn backend(backend: &Backend, at: &str, all: &mut All) {
    let sources = [
        ("endpoints", backend.endpoints.is_some()),
        ("dns", backend.dns.is_some()),
        ("service", backend.service.is_some()),
    ];
    let given: Vec<&str> = sources.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    match &given[..] {
        [] => all.tell(at, "the backend names no endpoints", "give one of endpoints, dns and service"),
        [_] => {}
        [_, second, ..] => {
            let says = format!("endpoints come from one place, and here are {}", given.join(" and "));
            all.tell(format!("{at}/{second}"), says, "keep one; several backends share by weight");
        }
    }
    if let Some(list) = &backend.endpoints {
        endpoints(list, &format!("{at}/endpoints"), all);
    }
    if let Some(dns) = &backend.dns {
        address(&format!("{at}/dns"), dns, all);
    }
    if let Some(service) = &backend.service
        && let Some(says) = crate::check::wrong_name(service)
    {
        all.tell(format!("{at}/service"), says, "letters, digits, -, _ and .");
    }
    let when = backend.when.as_ref().and_then(|when| Pattern::read(when).err());
    all.below(&format!("{at}/when"), when.into_iter().flatten());
    if let Some(tls) = &backend.tls
        && tls.cert.is_some() != tls.key.is_some()
    {
        all.tell(
            format!("{at}/tls"),
            "a certificate and its key go together",
            "give both `cert` and `key`, or neither",
        );
    }
    if let Some(health) = &backend.health {
        let at = format!("{at}/health");
        if let Some(path) = health.path.as_ref().filter(|path| !path.starts_with('/')) {
            all.tell(format!("{at}/path"), format!("\"{path}\" does not begin with /"), format!("write /{path}"));
        }
        all.lasting(&format!("{at}/every"), health.every);
        all.lasting(&format!("{at}/timeout"), health.timeout);
        all.not_zero(&format!("{at}/fails"), health.fails);
        all.not_zero(&format!("{at}/passes"), health.passes);
    }
}

fn endpoints(list: &OneOrMany<EndpointSpec>, at: &str, all: &mut All) {
    let several = matches!(list, OneOrMany::Many(_));
    let mut seen = BTreeSet::new();
    for (place, endpoint) in list.as_slice().iter().enumerate() {
        let at = if several { format!("{at}/{place}") } else { at.to_owned() };
        address(&at, endpoint.address(), all);
        if !seen.insert(endpoint.address()) {
            let says = format!("\"{}\" stands twice", endpoint.address());
            all.tell(at, says, "keep one; an endpoint that is to get more has a weight: {address: …, weight: 2}");
        }
    }
    match list.as_slice() {
        [] => all.tell(at, "the list of endpoints is empty", "write endpoints: [127.0.0.1:3000]"),
        list if list.iter().all(|endpoint| endpoint.weight() == 0) => {
            all.tell(at, "every weight is 0, so that no request goes anywhere", "give one of them a weight");
        }
        _ => {}
    }
}

/// `HOST:PORT`, with a scheme before it where one is known.
fn address(at: &str, text: &str, all: &mut All) {
    let bare = match text.split_once("://") {
        Some(("http" | "https" | "h2c", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => {
            return all.tell(at, format!("\"{text}\" begins with \"{scheme}\", which is not known"), "write HOST:PORT");
        }
        None => text,
    };
    let Some((host, port)) = bare.rsplit_once(':').filter(|(host, _)| !host.ends_with(']') || host.starts_with('['))
    else {
        return all.tell(at, format!("\"{text}\" names no port"), format!("write {text}:80, for example"));
    };
    let host_ok = match host.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']').is_some_and(|inside| {
            !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b))
        }),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    if !host_ok || port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err() {
        all.tell(at, format!("\"{text}\" is not a host and a port"), "write HOST:PORT, for example 127.0.0.1:3000");
    }
}

fn value_of(at: &str, value: Option<&str>, all: &mut All) {
    if let Some(value) = value
        && value.bytes().any(|b| b != b'\t' && (b < 0x20 || b == 0x7f))
    {
        all.tell(at, "a header field cannot hold line ends or other control characters", "keep it on one line");
    }
}

/// Fields that say how a message is framed or where it goes, which a proxy writes itself.
const FRAMING: [&str; 9] =
    ["connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

fn rewrite(rewrite: Option<&Rewrite>, all: &mut All) {
    let Some(rewrite) = rewrite else { return };
    let no_prefix = |prefix: &&String| {
        !prefix.starts_with('/') || !prefix.bytes().all(|b| b.is_ascii_graphic() && !b"*?#".contains(&b))
    };
    if let Some(prefix) = rewrite.prefix.as_ref().filter(no_prefix) {
        let hint = "write / or /v2: it stands in place of what comes before the match's *";
        all.tell("/rewrite/prefix", format!("\"{prefix}\" is no beginning of a path"), hint);
    }
    if let Some(host) = &rewrite.host
        && (host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)))
    {
        all.tell("/rewrite/host", format!("\"{host}\" is no host"), "write a name, for example shop.internal");
    }
    let names = rewrite.set.keys().map(|name| (format!("/rewrite/set/{}", escaped(name)), name));
    let removed = rewrite.remove.iter().enumerate().map(|(at, name)| (format!("/rewrite/remove/{at}"), name));
    for (at, name) in names.chain(removed) {
        all.field(&at, Some(name));
        let lower = name.to_ascii_lowercase();
        if lower == "host" {
            all.tell(at, "the host is not set here", "use rewrite: {host: …}");
        } else if FRAMING.contains(&lower.as_str()) {
            let says = format!("\"{name}\" says how the message is framed, which the proxy decides");
            all.tell(at, says, "leave it out");
        }
    }
    for (name, value) in &rewrite.set {
        value_of(&format!("/rewrite/set/{}", escaped(name)), Some(value), all);
    }
}

fn auth(auth: Option<&Auth>, all: &mut All) {
    let Some(auth) = auth else { return };
    if auth.api_keys.is_none() && auth.jwt.is_none() && auth.certificates.is_empty() {
        let hint = "give api_keys, jwt or certificates; `allow` narrows who of them may pass";
        all.tell("/auth", "no way is given by which callers are known", hint);
    }
    if let Some(keys) = &auth.api_keys {
        all.field("/auth/api_keys/header", keys.header.as_deref());
        if keys.file.is_empty() {
            all.tell(
                "/auth/api_keys/file",
                "the name of the file is empty",
                "name a file of lines CALLER SHA256-IN-HEX",
            );
        }
    }
    match auth.jwt.as_ref().map(|jwt| (jwt.jwks.as_deref(), jwt.issuer.as_deref())) {
        Some((Some(""), _)) => {
            let hint = "name a file, or an http:// or https:// address";
            all.tell("/auth/jwt/jwks", "the place of the keys is empty", hint);
        }
        Some((None, issuer))
            if !issuer.is_some_and(|name| name.starts_with("http://") || name.starts_with("https://")) =>
        {
            let hint = "name the address of an OpenID provider as issuer, or a file or an address as jwks";
            all.tell("/auth/jwt", "nothing says where the keys are", hint);
        }
        _ => {}
    }
    for (at, rule) in auth.allow.iter().enumerate() {
        if rule.caller.is_none() && rule.claims.is_empty() && rule.method.is_none() {
            all.tell(format!("/auth/allow/{at}"), "the rule asks for nothing", "give caller, claims or method");
        }
        for method in rule.method.iter().flat_map(OneOrMany::as_slice) {
            if method.is_empty() || !method.bytes().all(|b| is_token(b) && !b.is_ascii_lowercase()) {
                all.tell(
                    format!("/auth/allow/{at}/method"),
                    format!("\"{method}\" is no method"),
                    "write GET or the like",
                );
            }
        }
    }
}

fn rate(rate: &Rate, at: &str, known: bool, all: &mut All) {
    if !rate.per_second.is_finite() || rate.per_second <= 0.0 {
        let hint = "write how many requests a second may pass, for example 100; a route without `rate` has no limit";
        all.tell(format!("{at}/per_second"), format!("{} lets nothing pass", rate.per_second), hint);
    }
    all.not_zero(&format!("{at}/burst"), rate.burst);
    if let Some(by) = &rate.by {
        key_of(&format!("{at}/by"), by, &["client", "caller"], known, all);
    }
    if let Some(cluster) = &rate.cluster {
        if rate.by.is_some() {
            let hint = "leave `by` out, or `cluster`";
            all.tell(format!("{at}/by"), "a limit of the cluster is one for all", hint);
        }
        all.not_zero(&format!("{at}/cluster/slice"), cluster.slice);
        if cluster.cut_off_per_second.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            all.tell(format!("{at}/cluster/cut_off_per_second"), "a rate is not below 0", "write 0 or more");
        }
    }
}

/// What requests are told apart by.
fn key_of(at: &str, key: &str, words: &[&str], known: bool, all: &mut All) {
    match key.strip_prefix("header:") {
        Some(name) => all.field(at, Some(name)),
        None if !words.contains(&key) => {
            let says = format!("\"{key}\" is nothing that requests are told apart by");
            all.tell(at, says, format!("write {} or header:NAME", words.join(", ")));
        }
        None if key == "caller" && !known => {
            let hint = "give the route `auth`, or use client or header:NAME";
            all.tell(at, "callers are known only where `auth` asks who they are", hint);
        }
        None => {}
    }
}

fn balance(balance: Option<&Balance>, at: &str, known: bool, all: &mut All) {
    let Some(balance) = balance else { return };
    match (&balance.by, &balance.key) {
        (Some(Balancer::Ring), None) => {
            let hint = "give key: client, caller, path or header:NAME";
            all.tell(at, "a ring needs a key by which requests find their endpoint", hint);
        }
        (Some(Balancer::Ring), Some(key)) => {
            key_of(&format!("{at}/key"), key, &["client", "caller", "path"], known, all);
        }
        (_, Some(_)) => all.tell(format!("{at}/key"), "only a ring has a key", "write by: ring, or leave the key out"),
        (_, None) => {}
    }
}

/// More are never of use: what failed ten times is down.
const ATTEMPTS_MAX: u8 = 10;
/// What a gateway has room for.
const STATUSES_MAX: usize = 8;

fn policies(policies: &Policies, known: bool, all: &mut All) {
    all.lasting("/deadline", policies.deadline.as_ref().and_then(Switch::on).copied());
    all.lasting("/attempt_timeout", policies.attempt_timeout);
    if let Some(retry) = policies.retry.as_ref().and_then(Switch::on) {
        if let Some(attempts) = retry.attempts.filter(|attempts| !(1..=ATTEMPTS_MAX).contains(attempts)) {
            let says = match attempts {
                0 => "0 attempts reach nothing".to_owned(),
                attempts => format!("{attempts} attempts are more than {ATTEMPTS_MAX}"),
            };
            all.tell("/retry/attempts", says, format!("write 1 to {ATTEMPTS_MAX}; retry: off makes one attempt"));
        }
        if retry.statuses.as_ref().is_some_and(|list| list.as_slice().len() > STATUSES_MAX) {
            all.tell(
                "/retry/statuses",
                format!("more than {STATUSES_MAX} statuses are named"),
                "name those that go away by themselves",
            );
        }
        let several = retry.statuses.as_ref().is_some_and(|list| matches!(list, OneOrMany::Many(_)));
        for (at, status) in retry.statuses.iter().flat_map(OneOrMany::as_slice).enumerate() {
            let at = if several { format!("/retry/statuses/{at}") } else { "/retry/statuses".to_owned() };
            all.status(&at, *status, 400);
        }
        if let (Some(base), Some(cap)) = (retry.base, retry.cap)
            && base.0 > cap.0
        {
            all.tell(
                "/retry/cap",
                format!("the longest pause, {cap}, is shorter than the first, {base}"),
                "swap the two",
            );
        }
        if retry.budget_per_second_min.is_some_and(|rate| !rate.is_finite() || rate < 0.0) {
            all.tell("/retry/budget_per_second_min", "a rate is not below 0", "write 0 or more");
        }
    }
    if let (Some(attempt), Some(total)) = (policies.attempt_timeout, policies.deadline.as_ref().and_then(Switch::on))
        && attempt.0 > total.0
    {
        let says = format!("one attempt may take {attempt}, and all of them together {total}");
        all.tell("/attempt_timeout", says, "make it shorter than the deadline");
    }
    if let Some(hedge) = policies.hedge.as_ref().and_then(Switch::on)
        && hedge.quantile.is_some_and(|part| part.0 < 0.5 || part.0 >= 1.0)
    {
        let hint = "write 95%: a hedge starts when an answer takes longer than 95 of 100 do";
        all.tell("/hedge/quantile", "a hedge starts after half of the answers or later, and before the last", hint);
    }
    if let Some(breaker) = policies.breaker.as_ref().and_then(Switch::on) {
        for (at, number) in [
            ("/breaker/calls_min", breaker.calls_min),
            ("/breaker/calls", breaker.calls),
            ("/breaker/consecutive", breaker.consecutive),
            ("/breaker/probes", breaker.probes),
        ] {
            all.not_zero(at, number);
        }
        for (at, span) in [
            ("/breaker/window", breaker.window),
            ("/breaker/slow_after", breaker.slow_after),
            ("/breaker/open_for", breaker.open_for),
        ] {
            all.lasting(at, span);
        }
        if breaker.window.is_some() && breaker.calls.is_some() {
            let hint = "keep `window` to look at a time, or `calls` to look at the last calls";
            all.tell("/breaker/calls", "a breaker looks at a time or at a number of calls", hint);
        }
        for (at, part) in [("/breaker/failure_rate", breaker.failure_rate), ("/breaker/slow_rate", breaker.slow_rate)] {
            if part.is_some_and(|part| part.0 == 0.0) {
                all.tell(at, "0% opens the breaker although nothing is wrong", "write a part like 50%");
            }
        }
        if breaker.slow_rate.is_some() && breaker.slow_after.is_none() {
            all.tell("/breaker/slow_rate", "nothing says which calls are slow", "give slow_after, for example 1s");
        }
        if let (Some(first), Some(longest)) = (breaker.open_for, breaker.open_for_max)
            && longest.0 < first.0
        {
            let says = format!("the longest time, {longest}, is shorter than the first, {first}");
            all.tell("/breaker/open_for_max", says, "swap the two");
        }
    }
    if let Some(concurrency) = &policies.concurrency {
        all.not_zero("/concurrency/limit", concurrency.limit);
        all.not_zero("/concurrency/adaptive_min", concurrency.adaptive_min);
        let (least, most) = (concurrency.adaptive_min.unwrap_or(10), concurrency.adaptive_max.unwrap_or(1000));
        if least > most {
            let at = if concurrency.adaptive_max.is_some() { "adaptive_max" } else { "adaptive_min" };
            let says = format!("the limit moves between {least} and {most}, which is nothing");
            all.tell(format!("/concurrency/{at}"), says, "make adaptive_min the smaller of the two");
        }
    }
    if let Some(priority) = &policies.priority {
        all.field("/priority/header", priority.header.as_deref());
    }
    if let Some(outlier) = policies.outlier.as_ref().and_then(Switch::on) {
        all.not_zero("/outlier/consecutive", outlier.consecutive);
        all.lasting("/outlier/base", outlier.base);
    }
    if let Some(throttle) = policies.throttle.as_ref().and_then(Switch::on)
        && throttle.k.is_some_and(|k| !k.is_finite() || k < 1.0)
    {
        all.tell(
            "/throttle/k",
            "below 1 it refuses requests although all are accepted",
            "write 2, or 1.5 to refuse sooner",
        );
    }
    balance(policies.balance.as_ref(), "/balance", known, all);
}

fn listener(listener: &Listener, all: &mut All) {
    let text = &listener.address;
    let port = match text.rsplit_once(':') {
        Some(("", port)) => port.parse::<u16>().ok(),
        Some(_) => text.parse::<std::net::SocketAddr>().ok().map(|address| address.port()),
        None => None,
    };
    if port.is_none() {
        let says = format!("\"{text}\" is no address to listen at");
        all.tell("/address", says, "write :8443 for every address, or 127.0.0.1:8443");
    }
    if let Some(tls) = &listener.tls {
        if tls.certificates.as_slice().is_empty() {
            all.tell("/tls/certificates", "there is no certificate", "give {cert: FILE, key: FILE}");
        }
        let several = matches!(tls.certificates, OneOrMany::Many(_));
        for (at, Certificate { cert, key }) in tls.certificates.as_slice().iter().enumerate() {
            let at = if several { format!("/tls/certificates/{at}") } else { "/tls/certificates".to_owned() };
            if cert.is_empty() || key.is_empty() {
                all.tell(at, "the name of a file is empty", "give {cert: FILE, key: FILE}");
            }
        }
    }
    if let Some(tcp) = &listener.tcp {
        endpoints(&tcp.endpoints, "/tcp/endpoints", all);
        balance(tcp.balance.as_ref(), "/tcp/balance", false, all);
        all.lasting("/tcp/idle", tcp.idle);
    }
    all.lasting("/idle", listener.idle);
}

fn topic(topic: &Topic, all: &mut All) {
    all.not_zero("/partitions", topic.partitions);
    all.lasting("/retention_time", topic.retention_time);
}
