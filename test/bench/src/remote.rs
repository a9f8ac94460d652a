//! The near half: `bench inside`, running on a lab host or in a workload.

use crate::wire::{Answer, Ask};
use lab::Lab;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// A running `bench inside`; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Remote {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Remote {
    /// Starts it at a place as `vpc lab exec` has them; on one processor if `processor` says so.
    pub(crate) fn start(lab: &Lab, place: &str, processor: Option<u32>) -> Self {
        let own = std::env::current_exe().expect("a program knows its own path");
        let own = own.to_str().expect("the path is text");
        let processor = processor.map(|number| number.to_string());
        let mut argv = Vec::new();
        if let Some(number) = &processor {
            argv.extend(["taskset", "-c", number]);
        }
        argv.extend([own, "inside"]);
        let mut command = lab.command(place, &argv);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the vpc binary can be started");
        Self {
            questions: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().expect("it is piped")),
            child,
        }
    }

    /// Asks, and does not wait.
    pub(crate) fn ask(&mut self, ask: &Ask) {
        let mut line = serde_json::to_string(ask).expect("it has a JSON form");
        line.push('\n');
        let questions = self.questions.as_mut().expect("it is open until the end");
        questions
            .write_all(line.as_bytes())
            .expect("`bench inside` lives");
    }

    /// Waits for the answer.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("`bench inside` lives");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("`bench inside` answered {line:?}: {error}"))
    }

    /// Asks and waits.
    pub(crate) fn call(&mut self, ask: &Ask) -> Answer {
        self.ask(ask);
        self.answer()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.questions = None;
        // It ends with its input; if it cannot, it ends with `lab exec`.
        if std::thread::panicking() {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}
