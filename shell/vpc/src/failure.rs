//! What a command ends with when it does not succeed: what went wrong, and what to do.

use std::error::Error;
use std::fmt;
use std::io;

/// A command that failed. Shown as `error: ...` and, where there is a way out, `hint: ...`.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    exit: u8,
}

/// Exit status of a tool that was ended by SIGPIPE: whoever read our output went away.
const CLOSED_OUTPUT: u8 = 128 + 13;

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure that names the object and the reason.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            exit: 1,
        }
    }

    /// Ends the process with `exit` and says nothing: somebody else already did.
    pub(crate) fn silent(exit: u8) -> Self {
        Self {
            message: String::new(),
            hint: None,
            exit,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The text without its hint.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The exit status.
    pub(crate) fn exit(&self) -> u8 {
        self.exit
    }

    /// Writing to standard output failed. A closed pipe is not worth a word.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(CLOSED_OUTPUT),
            _ => Self::new(format!("writing to standard output: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Names the action and the object that an error came up in.
pub(crate) trait Doing<T> {
    /// `what` is "verb the object", as in "reading /etc/vpc/agent.toml".
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Error> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{}: {}", what(), with_causes(&error))))
    }
}

/// An error and what caused it, in one line; a cause that the text already repeats is left out.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_reason_and_remedy() {
        let failure = Failure::new("vpc blue: not found").hint("see `vpc list`");
        assert_eq!(
            failure.to_string(),
            "error: vpc blue: not found\nhint: see `vpc list`"
        );
    }

    #[test]
    fn a_reader_that_left_is_not_an_error_to_talk_about() {
        let failure = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.to_string().as_str(), failure.exit()), ("", 141));
    }
}
