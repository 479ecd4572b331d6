//! `print!`, `println!` and `eprintln!` for commands that change something: what they did is done, whether or not anybody reads what
//! they print. Those of the standard library panic where the reader has gone (`| head`).

use std::fmt;
use std::io::{self, Write};

macro_rules! print {
    ($($argument:tt)*) => { $crate::commands::closed_pipe::put(format_args!($($argument)*)) };
}

macro_rules! println {
    ($($argument:tt)*) => { $crate::commands::closed_pipe::put(format_args!("{}\n", format_args!($($argument)*))) };
}

#[cfg(feature = "rotate")]
macro_rules! eprintln {
    ($($argument:tt)*) => { $crate::commands::closed_pipe::tell(format_args!("{}\n", format_args!($($argument)*))) };
}

#[cfg(feature = "rotate")]
pub(super) use eprintln;
pub(super) use {print, println};

/// Writes to standard output. That it cannot be written is said where somebody may read it, and changes nothing.
pub(super) fn put(text: fmt::Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(text)
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tell(format_args!("standard output cannot be written: {error}\n"));
    }
}

/// Writes to standard error. Where that cannot be written, there is nobody to tell.
pub(super) fn tell(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}
