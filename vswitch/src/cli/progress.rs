//! What a person sees while a command takes its time.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::ProgressBar;

/// Whatever is done by then needs no sign of life.
const NOTICED: Duration = Duration::from_millis(300);
/// How often the sign moves.
const TICK: Duration = Duration::from_millis(100);

/// Does `work`; when it takes longer than a person would wonder, says `what` with a spinner on
/// standard error, if that is a terminal.
pub(super) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Nothing is ever sent: the sender goes when the work is done.
            if ended.recv_timeout(NOTICED) == Err(RecvTimeoutError::Timeout) {
                let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
                spinner.enable_steady_tick(TICK);
                let _ = ended.recv();
                spinner.finish_and_clear();
            }
        });
        let _done = done;
        work()
    })
}
