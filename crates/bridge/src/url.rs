//! An engine named by one text, as it stands in a configuration or behind an option of the command line:
//!
//! ```text
//! kafka://USER@HOST:PORT,HOST:PORT?tls=ca.pem&sasl=scram-sha-512&password-file=PATH
//! etcd://USER@HOST:PORT,HOST:PORT?tls=ca.pem&cert=client.pem&key=client.key&namespace=app/
//! ```
//!
//! A password never stands in it: whoever lists processes would read it.

use buttress_core::{Code, Error};

use crate::secure::{Identity, Password, Roots, Tls, User};

/// Longer texts are a mistake: 32 hosts and a dozen of values.
const BYTES_MAX: usize = 16 * 1024;

/// The parts of a text, with what is percent-encoded decoded. Values are taken out one by one; what is left is unknown.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) hosts: Vec<String>,
    user: Option<String>,
    values: Vec<(String, String)>,
    form: &'static str,
}

fn config(message: String, form: &'static str) -> Error {
    Error::new(Code::CONFIG, message).hint(form)
}

fn decoded(text: &str, form: &'static str) -> Result<String, Error> {
    let broken = || config(format!("'{text}' is not percent-encoded text"), form);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        match (*first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or_else(broken);
                bytes.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = after;
            }
            (b'%', _) => return Err(broken()),
            (byte, _) => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

impl Parts {
    /// Takes `SCHEME://[USER@]HOST:PORT,…[/][?NAME=VALUE&…]`, or the same without its scheme.
    ///
    /// # Errors
    /// `CONFIG`, with the form that is right.
    pub(crate) fn read(text: &str, scheme: &'static str, form: &'static str) -> Result<Self, Error> {
        if text.len() > BYTES_MAX {
            return Err(config(format!("an address of {} bytes is no address", text.len()), form));
        }
        let rest = match text.split_once("://") {
            Some((found, rest)) if found == scheme => rest,
            Some((found, _)) if found.contains(['?', '@', '/']) => text,
            Some((found, _)) => return Err(config(format!("'{found}://' is not {scheme}://"), form)),
            None => text,
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, hosts) = match place.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, place),
        };
        if user.is_some_and(|user| user.contains(':')) {
            // The text is not repeated: it holds the password.
            let error = Error::new(Code::CONFIG, "a password stands in the address, where every process can read it");
            return Err(
                error.hint("leave it out, and name password-file=PATH or password-env=NAME; a ':' in a name is %3A")
            );
        }
        let user = user.map(|user| decoded(user, form)).transpose()?;
        if user.as_deref() == Some("") {
            return Err(config("the user before the '@' has no name".into(), form));
        }
        let mut values = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| config(format!("'{pair}' is no NAME=VALUE"), form))?;
            if values.iter().any(|(known, _)| known == name) {
                return Err(config(format!("'{name}' is given twice"), form));
            }
            values.push((name.to_owned(), decoded(value, form)?));
        }
        let hosts = hosts.trim_end_matches('/').split(',').map(|host| host.trim().to_owned()).collect();
        Ok(Self { hosts, user, values, form })
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.values.iter().position(|(known, _)| known == name)?;
        Some(self.values.swap_remove(at).1)
    }

    /// `yes` or `no`.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn switch(&mut self, name: &str) -> Result<bool, Error> {
        match self.take(name).as_deref() {
            Some("yes") => Ok(true),
            Some("no") | None => Ok(false),
            Some(other) => Err(config(format!("{name} is yes or no, not '{other}'"), self.form)),
        }
    }

    /// # Errors
    /// A certificate without its key, or without TLS.
    pub(crate) fn tls(&mut self, always: bool) -> Result<Option<Tls>, Error> {
        let roots = match self.take("tls").as_deref() {
            Some("system") => Some(Roots::System),
            Some("") => return Err(config("tls names nothing".into(), self.form)),
            Some(path) => Some(Roots::File(path.into())),
            None => always.then_some(Roots::System),
        };
        let identity = match (self.take("cert"), self.take("key")) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.into(), key: key.into() }),
            (None, None) => None,
            _ => return Err(config("cert and key belong together".into(), self.form)),
        };
        match roots {
            Some(roots) => Ok(Some(Tls { roots, identity })),
            None if identity.is_some() => {
                Err(config("a certificate of ours is of use with tls= only".into(), self.form))
            }
            None => Ok(None),
        }
    }

    /// The user, with the place of the password; `variable` is where it is looked for unless something else is said.
    ///
    /// # Errors
    /// A place for the password without a user, or two places.
    pub(crate) fn user(&mut self, variable: &str) -> Result<Option<User>, Error> {
        let password = match (self.take("password-file"), self.take("password-env")) {
            (Some(_), Some(_)) => {
                return Err(config("password-file and password-env name two places".into(), self.form));
            }
            (Some(path), None) => Some(Password::File(path.into())),
            (None, Some(name)) => Some(Password::Env(name)),
            (None, None) => None,
        };
        match (self.user.take(), password) {
            (Some(name), password) => {
                let password = password.unwrap_or_else(|| Password::Env(variable.to_owned()));
                Ok(Some(User { name, password }))
            }
            (None, Some(_)) => Err(config("there is a password, and no user before an '@'".into(), self.form)),
            (None, None) => Ok(None),
        }
    }

    /// # Errors
    /// A value that nobody has asked for.
    pub(crate) fn end(self) -> Result<Vec<String>, Error> {
        match self.values.first() {
            None => Ok(self.hosts),
            Some((name, _)) => Err(config(format!("there is no '{name}' here"), self.form)),
        }
    }
}
