//! Fakes, each of which checks what the real service checks: the cloud key stores that nothing installable serves, and
//! the proxies between a client and a real server, one of which brings faults.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
pub mod faults;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod form;
#[cfg(feature = "gcp")]
pub mod gcp;
#[cfg(feature = "azure")]
mod jwt;
pub mod tunnels;
#[cfg(all(feature = "azure", feature = "gcp"))]
pub mod two_clouds;
