//! A JSON reader that borrows: at 10,000 readings a second the parser is most of the function's work, so it keeps no
//! tree and copies nothing. It accepts what RFC 8259 accepts, with a depth limit, over text that is already UTF-8.

/// Nesting allowed in values that are skipped.
const DEPTH_MAX: u32 = 32;

/// A value that was read. Strings keep their escapes, so that they can be written out again as they came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Between the quotes, escapes unresolved.
    String(&'a str),
    /// The number and the text it was written as.
    Number(f64, &'a str),
    Bool(bool),
    Null,
    /// An object or an array, as text.
    Nested(&'a str),
}

impl<'a> Value<'a> {
    pub fn number(self) -> Option<f64> {
        match self {
            Value::Number(number, _) => Some(number),
            _ => None,
        }
    }
}

/// Why a text is not what it should be; fit for a sentence.
pub type Problem = &'static str;

pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `byte` after white space, if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Reads an object, calling `field` with each key and its value.
    pub fn object(&mut self, mut field: impl FnMut(&'a str, Value<'a>) -> Result<(), Problem>) -> Result<(), Problem> {
        if !self.take(b'{') {
            return Err("not a JSON object");
        }
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let key = self.string()?;
            if !self.take(b':') {
                return Err("a key without a value");
            }
            let value = self.value(0)?;
            field(key, value)?;
            if self.take(b',') {
                continue;
            }
            return if self.take(b'}') { Ok(()) } else { Err("an object that is not closed") };
        }
    }

    /// Reads an array, calling `item` with each value.
    pub fn array(&mut self, mut item: impl FnMut(Value<'a>) -> Result<(), Problem>) -> Result<(), Problem> {
        if !self.take(b'[') {
            return Err("not a JSON array");
        }
        if self.take(b']') {
            return Ok(());
        }
        loop {
            let value = self.value(0)?;
            item(value)?;
            if self.take(b',') {
                continue;
            }
            return if self.take(b']') { Ok(()) } else { Err("an array that is not closed") };
        }
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Problem> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err("text after the JSON value") }
    }

    fn value(&mut self, depth: u32) -> Result<Value<'a>, Problem> {
        self.space();
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(open @ (b'{' | b'[')) => {
                if depth == DEPTH_MAX {
                    return Err("nested too deeply");
                }
                self.at += 1;
                let close = if open == b'{' { b'}' } else { b']' };
                if !self.take(close) {
                    loop {
                        if open == b'{' {
                            self.space();
                            self.string()?;
                            if !self.take(b':') {
                                return Err("a key without a value");
                            }
                        }
                        self.value(depth + 1)?;
                        if self.take(b',') {
                            continue;
                        }
                        if self.take(close) {
                            break;
                        }
                        return Err("an array or object that is not closed");
                    }
                }
                Ok(Value::Nested(&self.text[start..self.at]))
            }
            Some(_) => Err("not a JSON value"),
            None => Err("the text ends early"),
        }
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, Problem> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            Err("not a JSON value")
        }
    }

    fn string(&mut self) -> Result<&'a str, Problem> {
        if self.peek() != Some(b'"') {
            return Err("a string was expected");
        }
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let text = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
                            if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                                return Err("a broken escape in a string");
                            }
                            self.at += 5;
                        }
                        _ => return Err("a broken escape in a string"),
                    }
                }
                Some(0..=0x1f) => return Err("a control character in a string"),
                Some(_) => self.at += 1,
                None => return Err("a string that is not closed"),
            }
        }
    }

    fn digits(&mut self) -> Result<(), Problem> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err("a broken number") } else { Ok(()) }
    }

    fn number(&mut self) -> Result<Value<'a>, Problem> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Number(number, text)),
            _ => Err("a number out of range"),
        }
    }
}

/// Writes `text` as a JSON string.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{0}'..='\u{1f}' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(HEX[character as usize >> 4] as char);
                out.push(HEX[character as usize & 15] as char);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        let mut seen = String::new();
        let mut reader = Reader::new(text);
        let result = reader
            .object(|key, value| {
                seen += &format!("{key}={value:?};");
                Ok(())
            })
            .and_then(|()| reader.end());
        match result {
            Ok(()) => seen,
            Err(problem) => format!("{seen} ! {problem}"),
        }
    }

    #[test]
    fn objects_are_read() {
        for (text, want) in [
            ("{}", ""),
            (r#" { "a" : 1 , "b":"x\"y" } "#, r#"a=Number(1.0, "1");b=String("x\\\"y");"#),
            (
                r#"{"a":[1,{"b":null}],"c":true,"d":-0.5e-3}"#,
                r#"a=Nested("[1,{\"b\":null}]");c=Bool(true);d=Number(-0.0005, "-0.5e-3");"#,
            ),
            ("{", " ! a string was expected"),
            (r#"{"a"}"#, " ! a key without a value"),
            (r#"{"a":1"#, r#"a=Number(1.0, "1"); ! an object that is not closed"#),
            (r#"{"a":01}"#, r#"a=Number(0.0, "0"); ! an object that is not closed"#),
            (r#"{"a":1e999}"#, " ! a number out of range"),
            (r#"{"a":NaN}"#, " ! not a JSON value"),
            (r#"{"a":"\u12"}"#, " ! a broken escape in a string"),
            ("[1]", " ! not a JSON object"),
            ("{} x", " ! text after the JSON value"),
            (r#"{"a":1,}"#, r#"a=Number(1.0, "1"); ! a string was expected"#),
        ] {
            assert_eq!(read(text), want, "{text}");
        }
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(read(&deep), " ! nested too deeply");
    }

    #[test]
    fn strings_are_written() {
        let mut out = String::new();
        write_string(&mut out, "a\"b\\c\n\u{1f}é");
        assert_eq!(out, "\"a\\\"b\\\\c\\u000a\\u001fé\"");
    }
}
