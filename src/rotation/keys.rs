//! The keys that values are stored under: their names, their counts, and which of them the KEKs call active.

pub mod active;
pub mod age;
pub mod group;
pub mod name;
pub mod usage;
