//! The head of an HTTP/1.1 message: bytes in, a checked head out, or the one sentence that says why not.
//!
//! **Why our own.** What two parsers read differently is how requests are smuggled. A proxy that repairs what it gets
//! (bare LF, folded lines, a space before the colon, two lengths) passes the ambiguity on; one that refuses it ends it. We
//! refuse everything that RFC 9112 lets a server refuse, and forward only what we wrote ourselves.
//!
//! A head is the bytes it came in and a list of spans. Nothing is copied until it is written to the other side.
//!
//! Source: RFC 9112 (sections 2.2, 3, 5, 6), RFC 9110 (sections 5.5, 5.6.2, 7.2, 8.6).

use buttress_core::Code;
use bytes::Bytes;
use http::Method;

/// Request line, fields and the empty line together: as Node's and nginx' largest usual settings. 431 above it.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of one head; nginx and HAProxy draw the line at about 100 too.
pub const FIELDS_MAX: usize = 100;
/// Empty lines before a request that are skipped (RFC 9112, 2.2: at least one).
const EMPTY_LINES_MAX: u8 = 2;

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: Code,
    /// Lower case, no full stop.
    pub says: &'static str,
}

const fn bad(says: &'static str) -> Refusal {
    Refusal { status: 400, code: Code::HTTP_MALFORMED, says }
}

const fn ambiguous(says: &'static str) -> Refusal {
    Refusal { status: 400, code: Code::HTTP_AMBIGUOUS, says }
}

const fn large(says: &'static str) -> Refusal {
    Refusal { status: 431, code: Code::HTTP_HEAD_TOO_LARGE, says }
}

const fn unsupported(status: u16, says: &'static str) -> Refusal {
    Refusal { status, code: Code::HTTP_UNSUPPORTED, says }
}

/// Part of a head's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        // Heads are at most HEAD_BYTES_MAX.
        Self { start: start as u32, end: end as u32 }
    }

    pub fn of<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        &raw[self.start as usize..self.end as usize]
    }
}

/// The fields that mean something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Other,
    /// Named by Connection: for this hop only.
    Nominated,
    /// Who calls, as a gateway says it. Nobody else does.
    Caller,
    Connection,
    ContentLength,
    ContentType,
    Expect,
    GrpcStatus,
    GrpcTimeout,
    Host,
    IdempotencyKey,
    KeepAlive,
    ProxyConnection,
    RequestId,
    RetryAttempt,
    Te,
    Timeout,
    Traceparent,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
    ForwardedFor,
    ForwardedProto,
    /// `X-Forwarded-Client-Cert`: who a client proved to be, which only we or a proxy before us can know.
    ClientCert,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // Many a framework (CGI, WSGI) reads a low line as a hyphen.
        let is_caller = || {
            name.iter()
                .zip(b"buttress-caller")
                .all(|(b, known)| b.to_ascii_lowercase() == *known || (*b, *known) == (b'_', b'-'))
        };
        // By length first: most fields are compared with nothing.
        match name.len() {
            2 if is("te") => Kind::Te,
            3 if is("via") => Kind::Via,
            4 if is("host") => Kind::Host,
            6 if is("expect") => Kind::Expect,
            7 if is("upgrade") => Kind::Upgrade,
            7 if is("trailer") => Kind::Trailer,
            10 if is("connection") => Kind::Connection,
            10 if is("keep-alive") => Kind::KeepAlive,
            11 if is("traceparent") => Kind::Traceparent,
            11 if is("grpc-status") => Kind::GrpcStatus,
            12 if is("content-type") => Kind::ContentType,
            12 if is("grpc-timeout") => Kind::GrpcTimeout,
            12 if is("x-request-id") => Kind::RequestId,
            14 if is("content-length") => Kind::ContentLength,
            15 if is_caller() => Kind::Caller,
            15 if is("idempotency-key") => Kind::IdempotencyKey,
            15 if is("x-forwarded-for") => Kind::ForwardedFor,
            16 if is("buttress-attempt") => Kind::RetryAttempt,
            16 if is("proxy-connection") => Kind::ProxyConnection,
            17 if is("transfer-encoding") => Kind::TransferEncoding,
            17 if is("x-forwarded-proto") => Kind::ForwardedProto,
            19 if is("buttress-timeout-ms") => Kind::Timeout,
            23 if is("x-forwarded-client-cert") => Kind::ClientCert,
            _ => Kind::Other,
        }
    }

    /// Whether it ends at this hop, whatever Connection says (RFC 9110, 7.6.1).
    pub fn hop_by_hop(self) -> bool {
        matches!(
            self,
            Kind::Nominated
                | Kind::Connection
                | Kind::KeepAlive
                | Kind::ProxyConnection
                | Kind::Te
                | Kind::TransferEncoding
                | Kind::Upgrade
        )
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    name: Span,
    value: Span,
    pub kind: Kind,
}

/// Fields in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    raw: Bytes,
    list: Vec<Field>,
}

impl Fields {
    /// Fields that were not read from an HTTP/1.1 head but come from typed ones; the bytes are written here once.
    pub fn from_map(map: &http::HeaderMap) -> Self {
        let mut raw = Vec::with_capacity(map.len() * 48);
        let mut list = Vec::with_capacity(map.len() + 1);
        for (name, value) in map.iter().filter(|(name, _)| **name != http::header::COOKIE) {
            push(&mut raw, &mut list, name.as_str().as_bytes(), value.as_bytes());
        }
        // HTTP/2 may cut a Cookie field in pieces, HTTP/1.1 has only one (RFC 9113, 8.2.3).
        let cookies: Vec<&[u8]> = map.get_all(http::header::COOKIE).iter().map(|value| value.as_bytes()).collect();
        if !cookies.is_empty() {
            push(&mut raw, &mut list, b"cookie", &cookies.join(&b"; "[..]));
        }
        Self { raw: raw.into(), list }
    }

    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        let (mut raw, mut list) = (Vec::new(), Vec::new());
        for (name, value) in pairs {
            push(&mut raw, &mut list, name.as_bytes(), value.as_bytes());
        }
        Self { raw: raw.into(), list }
    }

    /// The same with one more. What is there is copied, so this is for answers of our own.
    pub fn with(self, name: &str, value: &str) -> Self {
        let (mut raw, mut list) = (self.raw.to_vec(), self.list);
        push(&mut raw, &mut list, name.as_bytes(), value.as_bytes());
        Self { raw: raw.into(), list }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Kind, &[u8], &[u8])> {
        self.list.iter().map(|field| (field.kind, field.name.of(&self.raw), field.value.of(&self.raw)))
    }

    /// The first field of this kind.
    pub fn get(&self, kind: Kind) -> Option<&[u8]> {
        self.list.iter().find(|field| field.kind == kind).map(|field| field.value.of(&self.raw))
    }

    /// The first field of this kind as text, where it is ASCII.
    pub fn text(&self, kind: Kind) -> Option<&str> {
        self.get(kind).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn named(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(_, known, _)| known.eq_ignore_ascii_case(name.as_bytes())).map(|(_, _, value)| value)
    }

    /// Bytes that they hold on to.
    pub fn bytes(&self) -> usize {
        self.raw.len() + self.list.len() * size_of::<Field>()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

fn push(raw: &mut Vec<u8>, list: &mut Vec<Field>, name: &[u8], value: &[u8]) {
    let start = raw.len();
    raw.extend_from_slice(name);
    let middle = raw.len();
    raw.extend_from_slice(value);
    list.push(Field { name: Span::new(start, middle), value: Span::new(middle, raw.len()), kind: Kind::of(name) });
}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Known(u64),
    Chunked,
    /// Of responses: until the connection closes.
    UntilClose,
}

#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    /// In origin form, or `*`.
    pub path: Bytes,
    /// Host and port as the client named them.
    pub authority: Bytes,
    pub fields: Fields,
    pub length: Length,
    /// 1.0 or 1.1.
    pub minor: u8,
    pub keep_alive: bool,
    /// The protocol that Upgrade asks for, where Connection names it too.
    pub upgrade: bool,
    pub expects_continue: bool,
}

#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: u16,
    pub fields: Fields,
    pub length: Length,
    pub keep_alive: bool,
}

/// Looks for the end of a head in bytes that arrive in pieces; no byte is looked at twice.
#[derive(Debug, Default)]
pub struct Scanner {
    at: usize,
    line: usize,
    /// Where the head begins, behind empty lines.
    pub begin: usize,
    empty_lines: u8,
}

impl Scanner {
    /// Where the head ends, or `None` while it is not there whole.
    ///
    /// # Errors
    /// A line that does not end in CRLF, too many bytes, or a first byte that no method begins with.
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            if let Some(first) = bytes.get(self.begin)
                && !token_byte(*first)
                && *first != b'\r'
            {
                return Err(bad("the first byte belongs to no HTTP method"));
            }
            let Some(found) = memchr::memchr(b'\n', &bytes[self.at..]) else {
                self.at = bytes.len();
                if bytes.len() - self.begin > HEAD_BYTES_MAX {
                    return Err(large("the head is larger than 64 KiB"));
                }
                return Ok(None);
            };
            let end = self.at + found;
            if end == 0 || bytes[end - 1] != b'\r' {
                return Err(ambiguous("a line ends in LF without CR"));
            }
            let empty = end - 1 == self.line;
            let first = self.line == self.begin;
            (self.at, self.line) = (end + 1, end + 1);
            if end - self.begin >= HEAD_BYTES_MAX {
                return Err(large("the head is larger than 64 KiB"));
            }
            match (empty, first) {
                (true, false) => return Ok(Some(end + 1)),
                (true, true) => {
                    self.empty_lines += 1;
                    self.begin = end + 1;
                    if self.empty_lines > EMPTY_LINES_MAX {
                        return Err(bad("there are empty lines before the request"));
                    }
                }
                (false, _) => {}
            }
        }
    }
}

/// Reads a whole head of a request, the empty line included.
///
/// # Errors
/// Whatever RFC 9112 calls malformed, and whatever two readers might read differently.
pub fn request(raw: Bytes) -> Result<RequestHead, Refusal> {
    let line_end = line_end(&raw, 0)?;
    let line = &raw[..line_end];
    let method_end = memchr::memchr(b' ', line).ok_or(bad("the request line has no target"))?;
    let method = &line[..method_end];
    if method.is_empty() || !method.iter().all(|b| token_byte(*b)) {
        return Err(bad("the method is not a token"));
    }
    let target_end = method_end
        + 1
        + memchr::memchr(b' ', &line[method_end + 1..]).ok_or(bad("the request line has no HTTP version"))?;
    let minor = match &line[target_end + 1..] {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        version if version.len() == 8 && version.starts_with(b"HTTP/") && !version[5..].contains(&b' ') => {
            return Err(unsupported(505, "the HTTP version is none of 1.0, 1.1 and 2"));
        }
        _ => return Err(bad("the request line does not end in an HTTP version")),
    };
    let method = Method::from_bytes(method).map_err(|_| bad("the method is not a token"))?;
    let target = Span::new(method_end + 1, target_end);
    let (path, authority) = target_parts(&raw, target, &method)?;

    let mut known = Known::default();
    let mut list = Vec::with_capacity(16);
    fields(&raw, line_end + 2, &mut list, &mut known)?;
    if minor == 1 && known.hosts == 0 {
        return Err(bad("there is no Host field"));
    }
    if known.hosts > 1 {
        return Err(ambiguous("there is more than one Host field"));
    }
    let host = list.iter().find(|field| field.kind == Kind::Host).map(|field| field.value);
    if let Some(host) = host
        && !authority_ok(host.of(&raw))
    {
        return Err(bad("the Host field is not a host and a port"));
    }
    // RFC 9112, 3.2.2: the target's authority replaces Host.
    let authority = authority.or(host).map_or_else(Bytes::new, |span| slice(&raw, span));

    let length = match (known.chunked, known.length) {
        (true, Some(_)) => return Err(ambiguous("there are both Content-Length and Transfer-Encoding")),
        (true, None) if minor == 0 => return Err(ambiguous("Transfer-Encoding came with HTTP/1.0")),
        (true, None) => Length::Chunked,
        (false, length) => Length::Known(length.unwrap_or(0)),
    };
    let mut connection = Connection::default();
    connections(&raw, &mut list, &mut connection)?;
    let expects_continue = match list.iter().find(|field| field.kind == Kind::Expect) {
        None => false,
        Some(field) if field.value.of(&raw).eq_ignore_ascii_case(b"100-continue") => {
            minor == 1 && length != Length::Known(0)
        }
        Some(_) => {
            return Err(Refusal {
                status: 417,
                code: Code::HTTP_UNSUPPORTED,
                says: "what Expect asks for is not known",
            });
        }
    };
    // h2c over HTTP/1.1 is a way around a proxy's rules; whoever wants HTTP/2 begins with it.
    let upgrade = connection.upgrade
        && minor == 1
        && list.iter().any(|f| f.kind == Kind::Upgrade && !f.value.of(&raw).to_ascii_lowercase().starts_with(b"h2c"));
    Ok(RequestHead {
        method,
        path,
        authority,
        length,
        minor,
        keep_alive: if minor == 1 { !connection.close } else { connection.keep_alive && !connection.close },
        upgrade,
        expects_continue,
        fields: Fields { raw, list },
    })
}

/// Reads a whole head of a response to a request with this method.
///
/// # Errors
/// As [`request`]; the status of the refusal is always 502.
pub fn response(raw: Bytes, method: &Method) -> Result<ResponseHead, Refusal> {
    response_strictly(raw, method).map_err(|refusal| Refusal { status: 502, code: Code::UPSTREAM_MALFORMED, ..refusal })
}

fn response_strictly(raw: Bytes, method: &Method) -> Result<ResponseHead, Refusal> {
    let line_end = line_end(&raw, 0)?;
    let line = &raw[..line_end];
    let minor = match line.get(..9) {
        Some(b"HTTP/1.1 ") => 1,
        Some(b"HTTP/1.0 ") => 0,
        _ => return Err(bad("the status line does not begin with HTTP/1.1")),
    };
    let digits = line.get(9..12).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let digits = digits.ok_or(bad("the status is not three digits"))?;
    let status = digits.iter().fold(0u16, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    if !(100..=599).contains(&status) {
        return Err(bad("the status is not between 100 and 599"));
    }
    match line.get(12) {
        None => {}
        Some(b' ') if line[12..].iter().all(|b| value_byte(*b)) => {}
        Some(_) => return Err(bad("the status line holds what it must not")),
    }
    let mut known = Known::default();
    let mut list = Vec::with_capacity(16);
    fields(&raw, line_end + 2, &mut list, &mut known)?;
    let mut connection = Connection::default();
    connections(&raw, &mut list, &mut connection)?;
    if known.chunked && known.length.is_some() {
        return Err(ambiguous("there are both Content-Length and Transfer-Encoding"));
    }
    if known.chunked && minor == 0 {
        return Err(ambiguous("Transfer-Encoding came with HTTP/1.0"));
    }
    // RFC 9112, 6.3.
    let length = if *method == Method::HEAD || status < 200 || status == 204 || status == 304 {
        Length::Known(0)
    } else if known.chunked {
        Length::Chunked
    } else {
        known.length.map_or(Length::UntilClose, Length::Known)
    };
    let keep_alive = length != Length::UntilClose
        && if minor == 1 { !connection.close } else { connection.keep_alive && !connection.close };
    Ok(ResponseHead { status, length, keep_alive, fields: Fields { raw, list } })
}

/// Reads the fields behind a last chunk, the empty line included, as typed ones.
///
/// # Errors
/// As for heads; fields that frame or route a message must not stand here (RFC 9110, 6.5.1).
pub fn trailers(raw: Bytes) -> Result<http::HeaderMap, Refusal> {
    let mut list = Vec::new();
    fields(&raw, 0, &mut list, &mut Known::default())?;
    let mut map = http::HeaderMap::with_capacity(list.len());
    for field in list {
        if field.kind.hop_by_hop()
            || matches!(field.kind, Kind::Caller | Kind::ContentLength | Kind::Host | Kind::Expect)
        {
            return Err(ambiguous("a trailer frames or routes the message"));
        }
        let name =
            http::HeaderName::from_bytes(field.name.of(&raw)).map_err(|_| bad("a field's name is not a token"))?;
        let value =
            http::HeaderValue::from_bytes(field.value.of(&raw)).map_err(|_| bad("a field holds control characters"))?;
        map.append(name, value);
    }
    Ok(map)
}

fn slice(raw: &Bytes, span: Span) -> Bytes {
    raw.slice(span.start as usize..span.end as usize)
}

/// Where the line that begins at `from` ends, without its CRLF. The scanner has seen that every LF has its CR.
fn line_end(raw: &[u8], from: usize) -> Result<usize, Refusal> {
    let lf = memchr::memchr(b'\n', &raw[from..]).ok_or(bad("a line does not end"))? + from;
    if lf == from || raw[lf - 1] != b'\r' {
        return Err(ambiguous("a line ends in LF without CR"));
    }
    Ok(lf - 1)
}

/// What fields say about a message's frame.
#[derive(Default)]
struct Known {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
}

fn fields(raw: &[u8], mut at: usize, list: &mut Vec<Field>, known: &mut Known) -> Result<(), Refusal> {
    loop {
        let end = line_end(raw, at)?;
        if end == at {
            return if end + 2 == raw.len() { Ok(()) } else { Err(bad("the head goes on behind its empty line")) };
        }
        if list.len() == FIELDS_MAX {
            return Err(large("there are more than 100 fields"));
        }
        let line = &raw[at..end];
        if matches!(line[0], b' ' | b'\t') {
            return Err(ambiguous("a field is folded over two lines"));
        }
        let colon = memchr::memchr(b':', line).ok_or(bad("a field has no colon"))?;
        let name = &line[..colon];
        if !name.iter().all(|b| token_byte(*b)) || name.is_empty() {
            return Err(match name.last() {
                Some(b' ' | b'\t') => ambiguous("there is a space before a field's colon"),
                _ => bad("a field's name is not a token"),
            });
        }
        if !line[colon + 1..].iter().all(|b| value_byte(*b)) {
            return Err(bad("a field holds control characters"));
        }
        let (mut start, mut stop) = (colon + 1, line.len());
        while start < stop && matches!(line[start], b' ' | b'\t') {
            start += 1;
        }
        while stop > start && matches!(line[stop - 1], b' ' | b'\t') {
            stop -= 1;
        }
        let kind = Kind::of(name);
        let value = &line[start..stop];
        match kind {
            Kind::Host => known.hosts += 1,
            Kind::ContentLength => {
                if known.length.is_some() {
                    return Err(ambiguous("there is more than one Content-Length"));
                }
                known.length = Some(content_length(value)?);
            }
            Kind::TransferEncoding => {
                if known.chunked {
                    return Err(ambiguous("there is more than one Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(transfer_encoding(value));
                }
                known.chunked = true;
            }
            _ => {}
        }
        list.push(Field { name: Span::new(at, at + colon), value: Span::new(at + start, at + stop), kind });
        at = end + 2;
    }
}

/// 18 digits are more than any body has, and fit a `u64`.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(ambiguous("Content-Length is not one number"));
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Codings that we do not undo, with chunked as the last one, are honest and get 501; all else hides where the body ends.
fn transfer_encoding(value: &[u8]) -> Refusal {
    let codings: Vec<&[u8]> = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).collect();
    let known = |coding: &&[u8]| {
        ["gzip", "x-gzip", "deflate", "compress"].iter().any(|known| coding.eq_ignore_ascii_case(known.as_bytes()))
    };
    match codings.split_last() {
        Some((last, others)) if last.eq_ignore_ascii_case(b"chunked") && others.iter().all(known) => {
            unsupported(501, "a transfer coding other than chunked is not known here")
        }
        _ => ambiguous("Transfer-Encoding is not \"chunked\""),
    }
}

#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

/// Fields that stay even where Connection names them: without them a client could take off what an outer proxy put on.
const NOT_FOR_ONE_HOP: [Kind; 7] = [
    Kind::ForwardedFor,
    Kind::ForwardedProto,
    Kind::ClientCert,
    Kind::RequestId,
    Kind::Traceparent,
    Kind::Via,
    Kind::ContentType,
];

/// Reads what Connection says, and marks the fields that it names.
fn connections(raw: &Bytes, list: &mut [Field], connection: &mut Connection) -> Result<(), Refusal> {
    for at in 0..list.len() {
        if list[at].kind != Kind::Connection {
            continue;
        }
        for token in list[at].value.of(raw).split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let is = |known: &str| token.eq_ignore_ascii_case(known.as_bytes());
            match token.len() {
                0 => {}
                5 if is("close") => connection.close = true,
                10 if is("keep-alive") => connection.keep_alive = true,
                7 if is("upgrade") => connection.upgrade = true,
                _ => {
                    if ["host", "content-length", "transfer-encoding"].iter().any(|known| is(known)) {
                        return Err(ambiguous("Connection names a field that frames or routes the message"));
                    }
                    let named = |field: &&mut Field| field.name.of(raw).eq_ignore_ascii_case(token);
                    for field in list.iter_mut().filter(named) {
                        let kept = NOT_FOR_ONE_HOP.contains(&field.kind)
                            || ["authorization", "cookie", "forwarded"].iter().any(|known| is(known));
                        if !kept {
                            field.kind = Kind::Nominated;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Path and authority of a target (RFC 9112, 3.2).
fn target_parts(raw: &Bytes, target: Span, method: &Method) -> Result<(Bytes, Option<Span>), Refusal> {
    let bytes = target.of(raw);
    if bytes.is_empty() || !bytes.iter().all(|b| (0x21..=0x7e).contains(b) && *b != b'#') {
        return Err(bad("the target holds what no URL holds"));
    }
    if *method == Method::CONNECT {
        return Err(unsupported(501, "CONNECT is not served"));
    }
    if bytes[0] == b'/' {
        return Ok((slice(raw, target), None));
    }
    if bytes == b"*" && *method == Method::OPTIONS {
        return Ok((slice(raw, target), None));
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| bytes.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme)));
    let Some(scheme) = scheme else {
        return Err(bad("the target is neither a path nor a URL"));
    };
    let rest = &bytes[scheme.len()..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    if end == 0 || !authority_ok(&rest[..end]) {
        return Err(bad("the target's authority is not a host and a port"));
    }
    let start = target.start as usize + scheme.len();
    let authority = Span::new(start, start + end);
    let path = match rest.get(end) {
        Some(b'/') => raw.slice(start + end..target.end as usize),
        // "http://host?query" has an empty path.
        Some(_) => [b"/", &rest[end..]].concat().into(),
        None => Bytes::from_static(b"/"),
    };
    Ok((path, Some(authority)))
}

/// A name, an address or an address in brackets, and perhaps a port; no user, nothing empty before a port.
pub fn authority_ok(authority: &[u8]) -> bool {
    let (host, port) = match authority {
        [b'[', rest @ ..] => {
            let Some(end) = memchr::memchr(b']', rest) else { return false };
            let inside = &rest[..end];
            if inside.is_empty() || !inside.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
                return false;
            }
            match &rest[end + 1..] {
                [] => return true,
                [b':', port @ ..] => (inside, Some(port)),
                _ => return false,
            }
        }
        _ => match memchr::memchr(b':', authority) {
            Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
            None => (authority, None),
        },
    };
    let name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:".contains(b);
    // An empty Host is what RFC 9110 asks of clients whose target has no authority.
    (authority.is_empty() || !host.is_empty())
        && host.iter().all(name)
        && port.is_none_or(|port| port.len() <= 5 && port.iter().all(u8::is_ascii_digit))
}

const fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// By byte, which of [`is_token`] (1) and a field's value (2) it may be in.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let b = at as u8;
        classes[at] = is_token(b) as u8 | ((b == b'\t' || b >= 0x20 && b != 0x7f) as u8) << 1;
        at += 1;
    }
    classes
};

/// RFC 9110, 5.6.2.
fn token_byte(b: u8) -> bool {
    CLASSES[b as usize] & 1 != 0
}

/// RFC 9110, 5.5: visible, blank, or above ASCII; never CR, LF, NUL or another control character.
fn value_byte(b: u8) -> bool {
    CLASSES[b as usize] & 2 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_cookie_become_one_field() {
        let mut map = http::HeaderMap::new();
        for piece in ["a=1", "b=2"] {
            map.append("cookie", http::HeaderValue::from_static(piece));
        }
        assert_eq!(Fields::from_map(&map).named("cookie"), Some(&b"a=1; b=2"[..]));
    }

    #[test]
    fn authorities_are_hosts_with_perhaps_a_port() {
        for good in ["", "a", "a.example:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b-c.d", "a:"] {
            assert!(authority_ok(good.as_bytes()), "{good}");
        }
        for bad in ["u@a", "a/b", "a b", ":80", "a:b", "a:123456", "[::1", "[]", "[::1]x", "a,b", "a\\b", "[::1]:x"] {
            assert!(!authority_ok(bad.as_bytes()), "{bad}");
        }
    }
}
