//! Ctrl-C: the first asks to stop, the second stops at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that was interrupted.
pub(super) const INTERRUPTED: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C and termination.
///
/// # Errors
/// If the system refuses the handler.
pub(super) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\nstopping after this step; once more stops at once");
    })?;
    Ok(())
}

/// Whether somebody asked to stop.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
