//! What a server was told: by its command line, and by the file that this names.
//!
//! A line of the file, `name = value`, is read as `--name=value` by the parser of the command line, so both know the same
//! names and refuse the same values. What the command line says wins: lines of the same name are passed over.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, CommandFactory, FromArgMatches};

use crate::args::{Args, Command, Serve};
use crate::exit::{self, Failure};
use crate::files;
use crate::options::{LIVE, Options};
use crate::tls;

/// The command line of this process.
pub(crate) struct CommandLine {
    words: Vec<OsString>,
    /// The names of the options that stand on it.
    given: HashSet<String>,
    file: Option<PathBuf>,
}

/// What it comes to, with the file as it was when it was read.
pub(crate) struct Settings {
    pub(crate) serve: Serve,
    matches: ArgMatches,
}

impl CommandLine {
    /// That of this process, which has been read as `args` before.
    pub(crate) fn of_process(args: &Serve) -> CommandLine {
        let words: Vec<_> = std::env::args_os().collect();
        let Settings { matches, .. } = settings(&words).expect("it has been read before");
        let is_given = |name: &&String| matches.value_source(&id(name)) == Some(ValueSource::CommandLine);
        let given = names().iter().filter(is_given).cloned().collect();
        CommandLine { words, given, file: args.config.clone() }
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the file, if there is one, and puts what it says beside the command line.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let together = |words: &[OsString]| {
            let settings = settings(words).map_err(|error| Failure::Found(problem(&error)))?;
            match settings.serve.options.tls.problem() {
                Some(problem) => Err(settings.refusal(&problem)),
                None => Ok(settings),
            }
        };
        let Some(file) = &self.file else { return together(&self.words) };
        let text = files::read_text(file, FILE_MIB)
            .map_err(|error| Failure::Found(format!("read {}: {}", file.display(), exit::plain(&error))))?;
        let lines = lines(&text)
            .map_err(|(line, problem)| Failure::Found(format!("{}:{line}: {problem}", file.display())))?;
        let (program, rest) = self.words.split_at(self.words.len().min(COMMAND_WORDS));
        let from_file = lines.into_iter().filter(|line| !self.given.contains(&line.name));
        let words = program.iter().cloned().chain(from_file.map(|line| line.word().into()));
        together(&words.chain(rest.iter().cloned()).collect::<Vec<_>>())
    }
}

impl Settings {
    /// That there is nothing to listen on, as the parser tells of other arguments that are missing.
    pub(crate) fn without_listener(&self) -> Failure {
        if let Some(file) = &self.serve.config {
            return Failure::Found(format!(
                "`listen` is missing, in {} and on the command line",
                file.display()
            ));
        }
        Args::refuse("--listen <ADDRESS> is missing, or --config <FILE>")
    }

    /// That options make no sense together.
    fn refusal(&self, problem: &str) -> Failure {
        match &self.serve.config {
            Some(file) => Failure::Found(format!("{problem}, in {} or on the command line", file.display())),
            None => Args::refuse(problem),
        }
    }

    /// The same of what has found out only later that options make no sense.
    pub(crate) fn failure(&self, failure: Failure) -> Failure {
        match failure.of_command_line() {
            Some(problem) => self.refusal(&problem),
            None => failure,
        }
    }

    /// The names of options that differ and that cannot change while a server runs.
    pub(crate) fn fixed_differences(&self, other: &Settings) -> Vec<String> {
        let command = of_a_file();
        let is_on = |settings: &Settings| settings.serve.options.tls.is_on();
        let both_have_tls = is_on(self) && is_on(other);
        let is_live = |heading| LIVE.contains(&heading) || (both_have_tls && heading == tls::HEADING);
        let fixed = command.get_arguments().filter(|arg| !arg.get_help_heading().is_some_and(is_live));
        let raw = |settings: &Settings, id: &str| -> Vec<OsString> {
            settings.matches.get_raw(id).unwrap_or_default().map(OsString::from).collect()
        };
        fixed
            .filter(|arg| raw(self, arg.get_id().as_str()) != raw(other, arg.get_id().as_str()))
            .map(|arg| arg.get_long().unwrap_or_default().to_owned())
            .collect()
    }
}

fn settings(words: &[OsString]) -> Result<Settings, clap::Error> {
    let mut matches = Args::command().try_get_matches_from(words)?;
    let Command::Serve(serve) = Args::from_arg_matches(&matches)?.command else {
        unreachable!("it is the command that runs")
    };
    let (_, matches) = matches.remove_subcommand().expect("it is `serve`");
    Ok(Settings { serve: *serve, matches })
}

/// The largest file that is read, in MiB.
const FILE_MIB: u64 = 1;
/// The program and the name of its command come first, options of a file right behind.
const COMMAND_WORDS: usize = 2;

/// One line of a file that says something.
#[derive(Debug)]
struct Line {
    number: usize,
    name: String,
    value: String,
}

impl Line {
    fn word(&self) -> String {
        format!("--{}={}", self.name, self.value)
    }
}

/// Reads a file; what is wrong is told with the number of its line.
fn lines(text: &str) -> Result<Vec<Line>, (usize, String)> {
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(text.lines()) {
        lines.extend(line(number, text).map_err(|problem| (number, problem))?);
    }
    let read = |lines: &[Line]| {
        let matches = of_a_file().try_get_matches_from(lines.iter().map(Line::word))?;
        Options::from_arg_matches(&matches)
    };
    if read(&lines).is_ok() {
        return Ok(lines);
    }
    // The first line that makes no sense beside those above it.
    for (index, line) in lines.iter().enumerate() {
        if let Err(error) = read(&lines[..=index]) {
            return Err((line.number, problem_of_line(line, &error)));
        }
    }
    Ok(lines)
}

fn line(number: usize, text: &str) -> Result<Option<Line>, String> {
    let text = without_comment(text).trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME = VALUE"))?;
    let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
    if name.starts_with('-') {
        return Err(format!("`{name}` stands without its dashes in a file"));
    }
    if value.is_empty() {
        return Err(format!("`{name}` has no value"));
    }
    Ok(Some(Line { number, name, value }))
}

/// A comment begins at a `#` that stands first or behind a space.
fn without_comment(text: &str) -> &str {
    let begins = |at: &usize| *at == 0 || text[..*at].ends_with(char::is_whitespace);
    let comment = text.match_indices('#').map(|(at, _)| at).find(begins);
    &text[..comment.unwrap_or(text.len())]
}

fn problem_of_line(line: &Line, error: &clap::Error) -> String {
    if error.kind() != ErrorKind::UnknownArgument {
        return problem(error);
    }
    let similar = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(name)) => format!("; did you mean `{}`?", name.trim_start_matches('-')),
        _ => String::new(),
    };
    format!("`{}` is not an option that a file can have{similar}", line.name)
}

/// The parser's words in one line, without its hints on how to call the command.
fn problem(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = message.strip_prefix("error: ").unwrap_or(message).split_whitespace().collect();
    words.join(" ")
}

/// The parser of lines.
fn of_a_file() -> clap::Command {
    Options::augment_args(clap::Command::new("file").no_binary_name(true).disable_help_flag(true))
}

fn names() -> Vec<String> {
    of_a_file().get_arguments().filter_map(|arg| arg.get_long().map(String::from)).collect()
}

/// What the parser calls an option.
fn id(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_lines_of_a_name_and_a_value() {
        let text = "# of the night\n\nidle-timeout = 5s\n  listen=unix:/run/a#b  # behind a space\nallow = ::1\nallow = 10.0.0.0/8\n";
        let lines = lines(text).expect("it makes sense");
        let words: Vec<_> = lines.iter().map(Line::word).collect();
        let expected = ["--idle-timeout=5s", "--listen=unix:/run/a#b", "--allow=::1", "--allow=10.0.0.0/8"];
        assert_eq!(words, expected);
        assert_eq!(lines[3].number, 6);
    }

    #[test]
    fn the_readmes_files_make_sense() {
        let readme = include_str!("../../README.md");
        let files: Vec<_> =
            readme.split("```ini\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(files.len(), 2);
        for file in files {
            assert!(lines(file).expect("it makes sense").len() > 4, "{file}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, number, problem) in [
            ("drain", 1, "`drain` is not NAME = VALUE"),
            ("\n--drain = 5s", 2, "`--drain` stands without its dashes in a file"),
            ("drain =", 1, "`drain` has no value"),
            ("drain = 5s\ndrain = 6s", 2, "the argument '--drain <D>' cannot be used multiple times"),
            (
                "idle-timout = 5s",
                1,
                "`idle-timout` is not an option that a file can have; did you mean `idle-timeout`?",
            ),
            ("config = x", 1, "`config` is not an option that a file can have"),
            ("help = x", 1, "`help` is not an option that a file can have"),
            (
                "drain = soon",
                1,
                "invalid value 'soon' for '--drain <D>': must be a number with its unit, such as 500ms, 30s or 2m",
            ),
            (
                "over-limit = pray",
                1,
                "invalid value 'pray' for '--over-limit <POLICY>' [possible values: queue, close, reset]",
            ),
            ("a b = x", 1, "`a b` is not an option that a file can have"),
            (" = x", 1, "`` is not an option that a file can have"),
        ] {
            let (line, told) = lines(text).expect_err(text);
            assert_eq!((line, told.as_str()), (number, problem), "{text}");
        }
    }

    #[test]
    fn every_option_has_a_name_and_a_heading() {
        for arg in of_a_file().get_arguments() {
            let name = arg.get_long().expect("it has a name");
            assert_eq!(arg.get_id().as_str(), id(name));
            assert!(arg.get_help_heading().is_some(), "{name}");
        }
    }
}
