//! What a panic ends.

use std::panic;
use std::process;
use std::thread;

/// From now on a thread of ours that panics takes the process along, after its message is on standard error. Such a thread
/// owns something, the kernel's sockets, say, or replicas: without it the process would look alive and do nothing. Whoever
/// started the process starts it again, and it finds all that it needs in the kernel and on the disk.
///
/// A task is something else: what it served ends, a request of a client's, and the others go on.
pub(crate) fn end_the_process() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if thread::current().name().is_some_and(owns_something) {
            process::abort();
        }
    }));
}

/// Threads that do have names. The main one's panic ends the process anyway, tokio's belong to tasks; one without
/// a name is waited for by who started it.
fn owns_something(thread: &str) -> bool {
    thread != "main" && !thread.starts_with("tokio-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const THREAD: &str = "VPC_TEST_PANICS_IN";

    /// By itself it does nothing: it is what the other test runs.
    #[test]
    fn a_thread_panics() {
        let Ok(name) = env::var(THREAD) else { return };
        end_the_process();
        let thread = thread::Builder::new().name(name);
        let panics = thread.spawn(|| panic!("as it was told to"));
        assert!(panics.expect("a thread").join().is_err());
    }

    #[test]
    fn a_thread_of_ours_takes_the_process_along_and_a_task_does_not() {
        let this = env::current_exe().expect("a program");
        for (name, signal) in [("kernel", Some(6)), ("tokio-rt-worker", None)] {
            let mut child = Command::new(&this);
            child.args(["--exact", "panics::tests::a_thread_panics", "--nocapture"]);
            let output = child.env(THREAD, name).output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), signal, "{name}: {said}");
            assert_eq!(output.status.success(), signal.is_none(), "{name}: {said}");
            assert!(said.contains("as it was told to"), "{name}: {said}");
        }
    }
}
