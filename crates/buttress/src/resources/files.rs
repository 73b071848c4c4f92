//! Files of resources.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use buttress_core::{Code, Error};
use buttress_resources::{
    check::{self, Reading},
    document::TEXT_BYTES_MAX,
    finding::{Finding, Level, Source, render},
};

/// How standard input is told in findings.
const STDIN: &str = "<stdin>";
/// Directories in directories; a link that leads back up ends here.
const DEPTH_MAX: usize = 16;
/// A directory with more is not one of resources.
const FILES_MAX: usize = 10_000;

/// What was read, and where files that it names are looked for.
pub struct Files {
    pub sources: Vec<Source>,
    dirs: BTreeMap<String, PathBuf>,
}

impl Files {
    /// Reads files, `*.yaml` and `*.yml` below directories, and standard input for `-`.
    ///
    /// # Errors
    /// `DATA_FILE` for what cannot be read, or where a directory has no such file.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut files = Self { sources: Vec::new(), dirs: BTreeMap::new() };
        for path in paths {
            if path.as_os_str() == "-" {
                files.take(STDIN.into(), PathBuf::from("."), std::io::stdin().lock())?;
            } else if path.is_dir() {
                let mut found = Vec::new();
                below(path, 0, &mut found)?;
                if found.is_empty() {
                    let message = format!("there is no *.yaml and no *.yml below \"{}\"", path.display());
                    return Err(Error::new(Code::DATA_FILE, message).hint("name a file, or another directory"));
                }
                found.sort();
                for path in found {
                    files.open(&path)?;
                }
            } else {
                files.open(path)?;
            }
        }
        Ok(files)
    }

    fn open(&mut self, path: &Path) -> Result<(), Error> {
        let file = std::fs::File::open(path).map_err(|error| cannot_read(path, &error))?;
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        self.take(path.display().to_string(), dir, file)
    }

    fn take(&mut self, file: String, dir: PathBuf, from: impl std::io::Read) -> Result<(), Error> {
        let mut bytes = Vec::new();
        // One more than is taken, so that the reader says what is wrong with it.
        let read = from.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| cannot_read(Path::new(&file), &error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            let message = format!("\"{file}\" is not UTF-8, at line {line}");
            Error::new(Code::YAML_MALFORMED, message).hint("save it as UTF-8")
        })?;
        if self.dirs.insert(file.clone(), dir).is_none() {
            self.sources.push(Source { file, text });
        }
        Ok(())
    }

    /// A text that stands in no file.
    pub fn add(&mut self, file: String, text: String) {
        self.sources.push(Source { file, text });
    }

    /// A file that a resource of `file` names.
    pub fn beside(&self, file: &str, named: &str) -> PathBuf {
        self.dirs.get(file).map_or_else(|| PathBuf::from(named), |dir| dir.join(named))
    }

    /// All resources, without a mistake.
    ///
    /// # Errors
    /// The first mistake's code, when all are told.
    pub fn resources(&self) -> Result<Reading, Error> {
        let reading = check::read(&self.sources);
        self.refuse(&reading.findings)?;
        if reading.resources.is_empty() {
            let message = format!("there is no resource in {}", self.names());
            return Err(Error::new(Code::DATA_FILE, message).hint("a document begins with kind:, name: and spec:"));
        }
        Ok(reading)
    }

    /// Tells findings on standard error, in colour on a terminal.
    pub fn tell(&self, findings: &[Finding]) {
        eprint!("{}", render(findings, &self.sources, crate::resources::cli::colours(&std::io::stderr())));
    }

    /// # Errors
    /// Where there is a mistake among the findings; all findings are told first.
    pub fn refuse(&self, findings: &[Finding]) -> Result<(), Error> {
        let mistakes: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Error).collect();
        let Some(first) = mistakes.first() else { return Ok(()) };
        self.tell(findings);
        let code = Code::ALL.iter().map(|(code, _)| *code).find(|code| code.0 == first.code);
        let count = match mistakes.len() {
            1 => "1 mistake".to_owned(),
            many => format!("{many} mistakes"),
        };
        let message = format!("{count} in {}; nothing was changed", self.names());
        Err(Error::new(code.unwrap_or(Code::RESOURCE_INVALID), message)
            .hint(format!("buttress explain {} says more", first.code)))
    }

    fn names(&self) -> String {
        match &self.sources[..] {
            [one] => one.file.clone(),
            many => format!("{} files", many.len()),
        }
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::DATA_FILE, format!("cannot read \"{}\": {error}", path.display()))
        .hint("name a file, a directory, or - for standard input")
}

fn below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).map_err(|error| cannot_read(dir, &error))? {
        let path = entry.map_err(|error| cannot_read(dir, &error))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            if depth < DEPTH_MAX {
                below(&path, depth + 1, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
        if found.len() > FILES_MAX {
            let message = format!("there are more than {FILES_MAX} files below \"{}\"", dir.display());
            return Err(Error::new(Code::TOO_LARGE, message));
        }
    }
    Ok(())
}
