//! What follows from the journal: which keys may be disabled, in a verdict, its words, and its announcement.

pub mod announcement;
pub mod claims;
mod destruction;
pub mod envelope;
pub mod evidence;
pub mod history;
pub mod page;
pub mod plugins;
pub mod statement;
pub mod wording;
