//! What several key stores need: addresses, files, an HTTP client and its TLS, and the engine that renews credentials.

#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod address;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "pkcs11", feature = "transit"))]
pub(super) mod credential_file;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod former_key;
#[cfg(any(feature = "azure", feature = "gcp"))]
pub(super) mod http;
pub(super) mod key_store;
pub(super) mod path;
pub(super) mod private_file;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod renewing;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod retry_after;
#[cfg(any(feature = "aws", feature = "gcp", feature = "transit"))]
pub(super) mod secret_text;
#[cfg(any(feature = "azure", feature = "gcp", feature = "transit"))]
pub(super) mod tls;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
pub(super) mod vendor_text;
