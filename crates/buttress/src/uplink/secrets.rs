//! Which secrets of a node an uplink may name.
//!
//! Whoever may make uplinks chooses the server to which a password is shown. So no path and no variable is read only because
//! an uplink names it: passwords and private keys lie in the node's own folder, `DATA_DIR/secrets`, or in what the node's
//! operator lists under `uplink.secrets`. A relative path is one of the own folder, so that one address is right on every
//! node. It is looked at when an uplink is made, on the node that was asked, and before every connection, on the node where
//! it runs: what lies in the key space may have come there by another way than ours.

use std::path::{Component, Path, PathBuf};

use buttress_bridge::{
    kafka::Options,
    secure::{Password, Roots},
};
use buttress_core::{Code, Error};

/// What a listed variable begins with in the configuration.
const VARIABLE: &str = "env:";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    own: PathBuf,
    folders: Vec<PathBuf>,
    variables: Vec<String>,
}

/// Checks `uplink.secrets` of the configuration.
///
/// # Errors
/// `CONFIG` for what is neither a folder nor a variable.
pub fn check_listed(listed: &[String]) -> Result<(), Error> {
    for entry in listed {
        let good = match entry.strip_prefix(VARIABLE) {
            Some(name) => !name.is_empty() && !name.contains(['=', '\0', '*']),
            None => plain(Path::new(entry)) && Path::new(entry).is_absolute(),
        };
        if !good {
            return Err(Error::new(Code::CONFIG, format!("uplink.secrets has {entry:?}"))
                .hint(r#"an absolute path or a variable: secrets = ["/run/secrets", "env:PRESS_PASSWORD"]"#));
        }
    }
    Ok(())
}

/// A path that does not lead back out of where it leads in.
fn plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.components().any(|part| matches!(part, Component::Normal(_)))
}

impl Secrets {
    /// `listed` was checked.
    pub fn new(data_dir: &Path, listed: &[String]) -> Self {
        let own = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()).join("secrets");
        let (variables, folders): (Vec<_>, Vec<_>) = listed.iter().partition(|entry| entry.starts_with(VARIABLE));
        Self {
            own,
            folders: folders.into_iter().map(PathBuf::from).collect(),
            variables: variables.iter().map(|entry| entry[VARIABLE.len()..].to_owned()).collect(),
        }
    }

    /// Makes relative paths those of the own folder, and refuses what may not be named. No file is read.
    ///
    /// # Errors
    /// `UPLINK_SECRET`.
    pub fn resolve(&self, options: &mut Options) -> Result<(), Error> {
        if let Some(tls) = &mut options.tls {
            if let Roots::File(path) = &mut tls.roots {
                *path = self.own.join(&*path);
            }
            if let Some(identity) = &mut tls.identity {
                identity.certificate = self.own.join(&identity.certificate);
                identity.key = self.allowed(&identity.key, "the private key")?;
            }
        }
        match options.sasl.as_mut().map(|sasl| &mut sasl.user.password) {
            Some(Password::File(path)) => *path = self.allowed(path, "the password")?,
            Some(Password::Env(name)) if !self.variables.contains(name) => {
                let message = format!("the variable {name:?} is not one that an uplink may name");
                let hint = format!(
                    "name a file in \"{}\" with password-file=NAME, or list the variable in the node's configuration: \
                     [uplink] secrets = [\"{VARIABLE}{name}\"]",
                    self.own.display()
                );
                return Err(Error::new(Code::UPLINK_SECRET, message).hint(hint));
            }
            _ => {}
        }
        Ok(())
    }

    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.own).chain(&self.folders)
    }

    fn allowed(&self, path: &Path, what: &str) -> Result<PathBuf, Error> {
        let full = self.own.join(path);
        if plain(&full) && self.folders().any(|folder| full.starts_with(folder) && full != *folder) {
            return Ok(full);
        }
        Err(self.refused(path, what))
    }

    /// Refuses what leads out of the folders by links, as they are now. What is not there is left to its reader to miss.
    ///
    /// # Errors
    /// `UPLINK_SECRET`.
    pub fn follow(&self, options: &Options) -> Result<(), Error> {
        let key = options.tls.as_ref().and_then(|tls| tls.identity.as_ref()).map(|identity| &identity.key);
        let password = match options.sasl.as_ref().map(|sasl| &sasl.user.password) {
            Some(Password::File(path)) => Some(path),
            _ => None,
        };
        for (path, what) in [(key, "the private key"), (password, "the password")] {
            let Some(path) = path else { continue };
            let Ok(real) = path.canonicalize() else { continue };
            if !self.folders().filter_map(|folder| folder.canonicalize().ok()).any(|folder| real.starts_with(folder)) {
                return Err(self.refused(path, what));
            }
        }
        Ok(())
    }

    fn refused(&self, path: &Path, what: &str) -> Error {
        let message = format!("{what} is to be read from {path:?}, which is not where an uplink's secrets lie");
        let hint = format!(
            "put the file into \"{}\" and name it by its name alone, or list its folder in the node's configuration: \
             [uplink] secrets = [\"/run/secrets\"]",
            self.own.display()
        );
        Error::new(Code::UPLINK_SECRET, message).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(secrets: &Secrets, values: &str) -> Result<Options, Error> {
        let mut options = Options::from_url(&format!("kafka://me@a:1?tls=ca.pem&{values}")).unwrap();
        secrets.resolve(&mut options)?;
        secrets.follow(&options)?;
        Ok(options)
    }

    #[test]
    fn an_uplink_names_files_of_the_own_folder_and_what_is_listed_and_nothing_else() {
        let listed = ["/run/secrets".to_owned(), "env:PRESS".to_owned()];
        let secrets = Secrets::new(Path::new("/var/lib/press"), &listed);
        for good in [
            "password-file=kafka",
            "password-file=a/kafka",
            "password-file=/var/lib/press/secrets/kafka",
            "password-file=/run/secrets/kafka",
            "password-env=PRESS",
            "password-env=PRESS&cert=/etc/cert.pem&key=client.key",
        ] {
            resolved(&secrets, good).expect(good);
        }
        for bad in [
            "",
            "password-env=HOME",
            "password-env=BUTTRESS_KAFKA_PASSWORD",
            "password-file=/etc/shadow",
            "password-file=../node.toml",
            "password-file=a/../../node.toml",
            "password-file=/run/secrets/../../etc/shadow",
            "password-file=/run/secrets",
            "password-file=/run/secretsofothers/x",
            "password-file=.",
            "password-file=%2fetc%2fshadow",
            "password-env=PRESS&cert=cert.pem&key=/etc/ssl/private/host.key",
        ] {
            let error = resolved(&secrets, bad).expect_err(bad);
            assert!(error.code == Code::UPLINK_SECRET && error.hint.is_some(), "{bad}: {error}");
        }
        let none = Secrets::new(Path::new("/var/lib/press"), &[]);
        assert!(resolved(&none, "password-file=/run/secrets/kafka").is_err());
        assert!(resolved(&none, "password-env=PRESS").is_err());
    }

    #[test]
    fn a_relative_path_is_one_of_the_own_folder() {
        let secrets = Secrets::new(Path::new("/var/lib/press"), &[]);
        let options = resolved(&secrets, "password-file=kafka&cert=client.pem&key=client.key").unwrap();
        let own = |name: &str| PathBuf::from(format!("/var/lib/press/secrets/{name}"));
        let tls = options.tls.unwrap();
        assert_eq!(tls.roots, Roots::File(own("ca.pem")));
        let identity = tls.identity.unwrap();
        assert_eq!((identity.certificate, identity.key), (own("client.pem"), own("client.key")));
        assert_eq!(options.sasl.unwrap().user.password, Password::File(own("kafka")));
    }

    #[test]
    fn a_link_that_leads_out_is_not_followed_and_one_within_is() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("data/secrets");
        std::fs::create_dir_all(own.join("version-1")).unwrap();
        std::fs::write(root.path().join("host.key"), "not for uplinks").unwrap();
        std::fs::write(own.join("version-1/kafka"), "open sesame").unwrap();
        std::os::unix::fs::symlink(root.path().join("host.key"), own.join("out")).unwrap();
        std::os::unix::fs::symlink(root.path(), own.join("up")).unwrap();
        std::os::unix::fs::symlink("version-1/kafka", own.join("kafka")).unwrap();
        let secrets = Secrets::new(&root.path().join("data"), &[]);
        assert!(resolved(&secrets, "password-file=kafka").is_ok());
        for out in ["out", "up/host.key"] {
            let error = resolved(&secrets, &format!("password-file={out}")).expect_err(out);
            assert_eq!(error.code, Code::UPLINK_SECRET);
        }
    }

    #[test]
    fn what_is_listed_is_a_folder_or_a_variable() {
        let check = |entry: &str| check_listed(&[entry.to_owned()]);
        for good in ["/run/secrets", "env:PRESS_PASSWORD"] {
            check(good).expect(good);
        }
        for bad in ["", "/", "secrets", "/run/../etc", "env:", "env:*"] {
            assert_eq!(check(bad).expect_err(bad).code, Code::CONFIG);
        }
    }
}
