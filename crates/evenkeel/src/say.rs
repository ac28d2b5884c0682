//! Answers on stdout. Whoever stops reading (`| head`) has read enough: that is no failure.

use std::io::Write;

/// Writes one or more lines.
macro_rules! say {
    ($($part:tt)*) => { $crate::say::write(&format!("{}\n", format_args!($($part)*))) };
}
pub(crate) use say;

/// Writes a text that has its own line ends.
pub(crate) fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
