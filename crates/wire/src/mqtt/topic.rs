//! Topic names and topic filters (chapter 4.7).

use super::{Error, Text};

/// A topic name: what a message is published to. Not empty, without wildcards.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Text);

impl TopicName {
    /// # Errors
    /// When the name is empty (MQTT-4.7.3-1) or holds a wildcard (MQTT-3.3.2-2).
    pub fn new(text: Text) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Malformed("a topic name is empty [MQTT-4.7.3-1]"));
        }
        if text.bytes().iter().any(|b| matches!(b, b'+' | b'#')) {
            return Err(Error::Malformed("a topic name contains a wildcard [MQTT-3.3.2-2]"));
        }
        Ok(Self(text))
    }

    pub fn text(&self) -> &Text {
        &self.0
    }
}

impl std::ops::Deref for TopicName {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<&str> for TopicName {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        Self::new(Text::try_from(text)?)
    }
}

impl std::fmt::Debug for TopicName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A topic filter: what a client subscribes to. `+` stands for one level, a last `#` for the parent and all below it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(Text);

impl Filter {
    /// # Errors
    /// When the filter is empty, or a wildcard does not stand alone in its level, or `#` is not the last level.
    pub fn new(text: Text) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Malformed("a topic filter is empty [MQTT-4.7.3-1]"));
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(Error::Malformed("'#' is not alone in the last level of a topic filter [MQTT-4.7.1-2]"));
            }
            if level.contains('+') && level != "+" {
                return Err(Error::Malformed("'+' is not alone in its level of a topic filter [MQTT-4.7.1-3]"));
            }
        }
        Ok(Self(text))
    }

    pub fn text(&self) -> &Text {
        &self.0
    }

    /// Whether a message published to `name` is meant by this filter. A leading wildcard never means a name that
    /// starts with `$` (MQTT-4.7.2-1).
    pub fn matches(&self, name: &str) -> bool {
        let filter = self.0.as_str();
        if name.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let mut wanted = filter.split('/');
        let mut got = name.split('/');
        loop {
            match (wanted.next(), got.next()) {
                (Some("#"), _) => return true,
                (Some("+"), Some(_)) => {}
                (Some(w), Some(g)) if w == g => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }

    /// Whether some topic name could match both filters; may say yes too often for names that start with `$`.
    pub fn overlaps(&self, other: &Filter) -> bool {
        let mut ours = self.0.split('/');
        let mut theirs = other.0.split('/');
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) => return true,
                (None, None) => return true,
                (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
                _ => return false,
            }
        }
    }
}

impl std::ops::Deref for Filter {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<&str> for Filter {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        Self::new(Text::try_from(text)?)
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
