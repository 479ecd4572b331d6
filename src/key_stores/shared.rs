//! What several key stores need: an HTTP client and its TLS.

#[cfg(any(feature = "azure", feature = "gcp"))]
pub(super) mod http;
#[cfg(any(feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod tls;
