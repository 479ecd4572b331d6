//! Secret bytes and what is done with them. Nothing outside this module names a cipher.

pub mod recipient;
pub mod seal;
pub mod secret;
#[cfg(feature = "rotate")]
pub mod signature;
#[cfg(feature = "rotate")]
pub mod storage;
