//! Who we are, to a Kafka: PLAIN, or SCRAM with SHA-256 or SHA-512.
//!
//! SCRAM shows that we know the password without sending it, and the broker has to show that it knows it too: a broker that
//! cannot is no broker of ours. How much work a broker asks for has a limit, so that one that lies cannot keep us busy.
//!
//! The conversation is without IO: [`Scram::first`], [`Scram::second`], [`Scram::third`] take what came and give what goes.
//!
//! Source: RFC 5802, RFC 7677; Kafka's `ScramSaslClient`, which does not prepare names and passwords (no SASLprep); KIP-152.

use std::num::NonZeroU32;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use buttress_core::{Code, Error};
use ring::{digest, hmac, pbkdf2};

use crate::secure::Secret;

/// Rounds of PBKDF2 that a broker may ask for. Kafka's own least and most are 4,096 and 16,384.
const ROUNDS_MIN: u32 = 4_096;
const ROUNDS_MAX: u32 = 65_536;
/// Longer salts are made for nothing but to keep us busy.
const SALT_BYTES_MAX: usize = 1024;

/// How we say who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub const ALL: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];

    /// As it is on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The only message of PLAIN.
pub(super) fn plain(user: &str, password: &Secret) -> Vec<u8> {
    [b"\0", user.as_bytes(), b"\0", password.text().as_bytes()].concat()
}

pub(super) struct Scram {
    strong: bool,
    nonce: String,
    first_bare: String,
    /// What the broker has to answer at the end.
    server_key: Option<(hmac::Key, String)>,
}

fn broken(what: &str) -> Error {
    Error::new(Code::CREDENTIALS, format!("the broker's side of SCRAM is wrong: {what}"))
        .hint("is this the Kafka that it should be? its certificate would say so: tls=ca.pem")
}

/// The value of `NAME=value` at the front of a list, and what comes behind it.
fn field<'a>(list: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (first, rest) = list.split_once(',').unwrap_or((list, ""));
    Some((first.strip_prefix(name)?.strip_prefix('=')?, rest))
}

impl Scram {
    /// `nonce`: printable and never used before.
    pub(super) fn new(mechanism: Mechanism, user: &str, nonce: String) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        Self { strong: mechanism == Mechanism::ScramSha512, nonce, first_bare, server_key: None }
    }

    pub(super) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// # Errors
    /// `CREDENTIALS` for an answer that is none, or that asks for too much.
    pub(super) fn second(&mut self, answer: &[u8], password: &Secret) -> Result<Vec<u8>, Error> {
        let answer = std::str::from_utf8(answer).map_err(|_| broken("it is no text"))?;
        let (nonce, rest) = field(answer, "r").ok_or_else(|| broken("it has no nonce"))?;
        let (salt, rest) = field(rest, "s").ok_or_else(|| broken("it has no salt"))?;
        let (rounds, _) = field(rest, "i").ok_or_else(|| broken("it has no number of rounds"))?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(broken("its nonce does not go on from ours"));
        }
        let salt = STANDARD.decode(salt).ok().filter(|salt| (1..=SALT_BYTES_MAX).contains(&salt.len()));
        let salt = salt.ok_or_else(|| broken("its salt cannot be used"))?;
        let rounds: u32 = rounds.parse().map_err(|_| broken("its number of rounds is no number"))?;
        if !(ROUNDS_MIN..=ROUNDS_MAX).contains(&rounds) {
            return Err(broken(&format!("it asks for {rounds} rounds, {ROUNDS_MIN} to {ROUNDS_MAX} are done")));
        }
        let (derive, mac, hash) = match self.strong {
            true => (pbkdf2::PBKDF2_HMAC_SHA512, hmac::HMAC_SHA512, &digest::SHA512),
            false => (pbkdf2::PBKDF2_HMAC_SHA256, hmac::HMAC_SHA256, &digest::SHA256),
        };
        let mut salted = vec![0; hash.output_len()];
        let rounds = NonZeroU32::new(rounds).expect("it is at least the least");
        pbkdf2::derive(derive, rounds, &salt, password.text().as_bytes(), &mut salted);
        let salted = hmac::Key::new(mac, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(hash, client_key.as_ref());
        let final_bare = format!("c=biws,r={nonce}");
        let said = format!("{},{answer},{final_bare}", self.first_bare);
        let signature = hmac::sign(&hmac::Key::new(mac, stored_key.as_ref()), said.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        self.server_key = Some((hmac::Key::new(mac, server_key.as_ref()), said));
        Ok(format!("{final_bare},p={}", STANDARD.encode(proof)).into_bytes())
    }

    /// # Errors
    /// `CREDENTIALS` where the broker does not know the password either.
    pub(super) fn third(&self, answer: &[u8]) -> Result<(), Error> {
        let answer = std::str::from_utf8(answer).map_err(|_| broken("it is no text"))?;
        if let Some((why, _)) = field(answer, "e") {
            return Err(broken(why));
        }
        let shown = field(answer, "v").and_then(|(shown, _)| STANDARD.decode(shown).ok());
        let shown = shown.ok_or_else(|| broken("it does not show that it knows the password"))?;
        let (key, said) = self.server_key.as_ref().ok_or_else(|| broken("it comes too early"))?;
        hmac::verify(key, said.as_bytes(), &shown).map_err(|_| broken("it does not know the password"))
    }
}

/// A conversation with a broker that says anything at all.
pub(crate) fn check_scram(mechanism: Mechanism, first: &[u8], second: &[u8], password: &Secret) {
    let mut scram = Scram::new(mechanism, "user", "rOprNGfwEbeRWgbNEkqO".into());
    assert!(scram.third(second).is_err(), "nothing is shown before it is asked for");
    if let Ok(said) = scram.second(first, password) {
        assert!(said.starts_with(b"c=biws,r=rOprNGfwEbeRWgbNEkqO"));
    }
    let _ = scram.third(second);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The conversation of RFC 7677, section 3.
    #[test]
    fn the_conversation_of_the_rfc() {
        let password = Secret::new("pencil");
        let mut scram = Scram::new(Mechanism::ScramSha256, "user", "rOprNGfwEbeRWgbNEkqO".into());
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let answer = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let wanted = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8(scram.second(answer, &password).unwrap()).unwrap(), wanted);
        scram.third(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        let error = scram.third(b"v=AAriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap_err();
        assert_eq!(error.code, Code::CREDENTIALS);
    }

    #[test]
    fn a_broker_that_lies_is_not_believed_and_not_worked_for() {
        let password = Secret::new("pencil");
        for (answer, why) in [
            ("r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "does not go on"),
            ("r=mine,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "does not go on"),
            ("r=mine+,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1", "1 rounds"),
            ("r=mine+,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4000000000", "4000000000 rounds"),
            ("r=mine+,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999999", "no number"),
            ("r=mine+,s=?,i=4096", "salt"),
            ("r=mine+,s=,i=4096", "salt"),
            ("r=mine+,i=4096", "no salt"),
            ("", "no nonce"),
        ] {
            let mut scram = Scram::new(Mechanism::ScramSha512, "user", "mine".into());
            let error = scram.second(answer.as_bytes(), &password).unwrap_err();
            assert!(error.code == Code::CREDENTIALS && error.message.contains(why), "{answer}: {error}");
        }
        let scram = Scram::new(Mechanism::ScramSha512, "user", "mine".into());
        assert!(scram.third(b"v=AAAA").is_err(), "before it was asked");
        assert!(scram.third(b"e=other-error").unwrap_err().message.contains("other-error"));
    }

    #[test]
    fn names_may_hold_what_separates() {
        let scram = Scram::new(Mechanism::ScramSha512, "a=b,c", "r".into());
        assert_eq!(scram.first(), b"n,,n=a=3Db=2Cc,r=r");
        assert_eq!(plain("u", &Secret::new("p")), b"\0u\0p");
    }
}
