//! Routes and listeners from files: read at the start, looked at every second, and taken up whole or not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use buttress_core::{Code, Error};
use buttress_gateway::{compile::Declared, listen, shared::Shared, table::Place};
use buttress_resources::{
    check::{Reading, read},
    finding::{Level, Source, render},
    kinds::Spec,
    listener::Listener,
};

use super::{
    listeners::{Base, orphans},
    state::State,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// All files together; a route takes a few hundred bytes.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Files and folders with resources.
#[derive(Clone, Debug)]
pub struct Files(Vec<PathBuf>);

impl Files {
    pub const fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }

    /// What they hold now; of a folder, its files that end in `.yaml`, `.yml` and `.json`, in the order of their names.
    ///
    /// # Errors
    /// `CONFIG` with the path that cannot be read.
    pub fn texts(&self) -> Result<Vec<Source>, Error> {
        let mut files = Vec::new();
        for path in &self.0 {
            if path.is_dir() {
                let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
                    .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                    .map_err(|error| unreadable(path, &error))?;
                inside.retain(|path| {
                    path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known))
                });
                inside.sort();
                files.extend(inside);
            } else {
                files.push(path.clone());
            }
        }
        let mut left = BYTES_MAX;
        let mut texts = Vec::with_capacity(files.len());
        for path in files {
            let size = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?.len();
            left = left.checked_sub(size).ok_or_else(|| {
                Error::new(Code::CONFIG, format!("{} and the files before it hold more than 64 MiB", path.display()))
                    .hint("routes are small; name the files with them")
            })?;
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
            texts.push(Source { file: path.display().to_string(), text });
        }
        Ok(texts)
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::CONFIG, format!("{} cannot be read: {error}", path.display())).hint("see --config")
}

/// A listener, and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Listening {
    pub name: String,
    pub spec: Listener,
    pub place: Place,
}

/// The listeners among resources.
fn listeners_of(reading: &Reading) -> Vec<Listening> {
    let listeners = reading.resources.iter().filter_map(|resource| match &resource.typed {
        Spec::Listener(spec) => Some((resource, spec)),
        _ => None,
    });
    listeners
        .map(|(resource, spec)| Listening {
            name: resource.name.clone(),
            spec: (**spec).clone(),
            place: Place { file: resource.origin.file.clone(), line: resource.origin.line },
        })
        .collect()
}

/// The routes among resources.
fn routes_of(reading: &Reading) -> Vec<Declared> {
    let routes = reading.resources.iter().filter_map(|resource| match &resource.typed {
        Spec::Route(spec) => Some((resource, spec)),
        _ => None,
    });
    routes
        .map(|(resource, spec)| Declared {
            name: resource.name.clone(),
            spec: (**spec).clone(),
            place: Place { file: resource.origin.file.clone(), line: resource.origin.line },
            match_lines: (0..spec.matches.len()).map(|at| resource.lines.of(&format!("/spec/match/{at}"))).collect(),
        })
        .collect()
}

/// Reads routes and listeners from texts.
///
/// # Errors
/// `ROUTES_INVALID` with everything that is wrong, as it is shown to whoever wrote it.
pub fn declared(texts: &[Source]) -> Result<(Vec<Declared>, Vec<Listening>), Error> {
    let reading = read(texts);
    if reading.is_ok() {
        return Ok((routes_of(&reading), listeners_of(&reading)));
    }
    let errors: Vec<_> = reading.findings.into_iter().filter(|finding| finding.level == Level::Error).collect();
    let count = errors.len();
    let told = render(&errors, texts, false);
    Err(Error::new(Code::ROUTES_INVALID, format!("{count} errors in the routes\n\n{}", told.trim_end()))
        .hint("buttress route lint -f FILE says the same without loading anything"))
}

/// Takes up routes and listeners whole, or refuses them whole.
///
/// # Errors
/// Everything that is wrong, as it is shown to whoever wrote it; all stays as it was.
fn take_up(texts: &[Source], fixed: Vec<Declared>, base: &Base, shared: &Shared) -> Result<u64, Error> {
    let (mut routes, listeners) = declared(texts)?;
    routes.extend(fixed);
    let listeners = base.with_resources(&listeners).map_err(|wrong| listen::refused(&wrong))?;
    let orphans = orphans(&routes, &listeners);
    if !orphans.is_empty() {
        return Err(buttress_gateway::shared::refused(&orphans));
    }
    Ok(shared.change(&routes, &listeners)?)
}

/// Takes up changes of the files, until it is dropped. `fixed` are routes that stand beside those of the files.
pub async fn follow(
    files: Files,
    mut last: Vec<Source>,
    fixed: Vec<Declared>,
    base: Base,
    shared: Arc<Shared>,
    state: Arc<State>,
) {
    let mut trouble = None;
    // A port that was taken, or a certificate that was wrong, may be well by now without a change of the files.
    let mut again = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let asked = files.clone();
        let texts = match tokio::task::spawn_blocking(move || asked.texts()).await {
            Ok(Ok(texts)) => texts,
            Ok(Err(error)) => {
                // Told once: a file that is being replaced is gone for a moment.
                if trouble.as_ref() != Some(&error.message) {
                    trouble = Some(error.message.clone());
                    state.refused(&error.message);
                }
                continue;
            }
            Err(_) => continue,
        };
        let changed = texts != last;
        if changed {
            trouble = None;
        } else if !again {
            continue;
        }
        last = texts.clone();
        let (changing, fixed, base) = (shared.clone(), fixed.clone(), base.clone());
        let loaded = tokio::task::spawn_blocking(move || take_up(&texts, fixed, &base, &changing)).await;
        again = matches!(&loaded, Ok(Err(error)) if [Code::PORT_TAKEN, Code::CERTIFICATE].contains(&error.code));
        let problem = match loaded {
            Ok(Ok(generation)) => {
                state.loaded(generation);
                shared.accept();
                trouble = None;
                continue;
            }
            Ok(Err(error)) => error.message,
            Err(error) => format!("loading the routes broke off: {error}"),
        };
        if trouble.as_ref() != Some(&problem) {
            state.refused(&problem);
            shared.reject();
            trouble = Some(problem);
        }
    }
}
