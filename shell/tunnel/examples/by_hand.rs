//! A datapath without an agent, for tests and measurements by hand.
//!
//! `by_hand RUN_DIR [WORKERS [BUSY_POLL_US [FLOWS]]]` runs it; `by_hand --tell RUN_DIR` takes rows as JSON from
//! standard input and tells them to the one that runs; `by_hand --figures RUN_DIR` prints what it counted.
#![expect(clippy::print_stdout, reason = "an example")]

use datapath::{Change, FLOWS_DEFAULT};
use std::error::Error;
use std::io::stdin;
use std::path::PathBuf;
use std::time::Duration;
use tunnel::{Client, Options, run};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["--tell", dir] => {
            let changes: Vec<Change> = serde_json::from_reader(stdin())?;
            for outcome in Client::connect(&PathBuf::from(dir))?.apply(&changes)? {
                outcome?;
            }
        }
        ["--figures", dir] => println!("{:#?}", Client::connect(&PathBuf::from(dir))?.figures()?),
        [dir, ref rest @ ..] => run(&Options {
            run_dir: PathBuf::from(dir),
            workers: rest.first().map(|count| count.parse()).transpose()?,
            busy_poll: Duration::from_micros(rest.get(1).map_or(Ok(0), |us| us.parse())?),
            flows: rest
                .get(2)
                .map_or(Ok(FLOWS_DEFAULT), |count| count.parse())?,
        })?,
        [] => return Err("by_hand RUN_DIR [WORKERS [BUSY_POLL_US [FLOWS]]]".into()),
    }
    Ok(())
}
