//! Which proxy leads to an address, as kubectl chooses it: the kubeconfig's `proxy-url` always; else `HTTPS_PROXY`,
//! unless `NO_PROXY` names the address or it is this machine.

use std::net::IpAddr;

use http::Uri;

use crate::rotation::error::RotationError;

/// What the environment says about proxies.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    https_proxy: Option<String>,
    no_proxy: Option<String>,
}

impl Environment {
    /// Of this process.
    pub fn of_this_process() -> Self {
        let first = |names: [&str; 2]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
        };
        Self { https_proxy: first(["HTTPS_PROXY", "https_proxy"]), no_proxy: first(["NO_PROXY", "no_proxy"]) }
    }

    /// The proxy that leads to `target`, where there is one. `of_kubeconfig` is the kubeconfig's `proxy-url`.
    ///
    /// # Errors
    /// [`RotationError::Unusable`] when what is given is not the URL of a proxy that can be used.
    pub fn proxy(&self, of_kubeconfig: Option<&str>, target: &Uri) -> Result<Option<Uri>, RotationError> {
        let (source, text) = match (of_kubeconfig, &self.https_proxy) {
            (Some(url), _) if !url.is_empty() => ("proxy-url in the kubeconfig", url),
            (_, Some(url)) if !self.is_excluded(target) => ("HTTPS_PROXY", url.as_str()),
            _ => return Ok(None),
        };
        // Go takes a URL without a scheme for one of http.
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Option<Uri> = url.parse().ok();
        match uri {
            Some(uri) if uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https" | "socks5")) => {
                Ok(Some(uri))
            }
            _ => Err(RotationError::Unusable(format!(
                "{source} {text:?} is not a proxy that can be used: give http://HOST:PORT, https://HOST:PORT or \
                 socks5://HOST:PORT"
            ))),
        }
    }

    /// As Go's `httpproxy` decides it.
    fn is_excluded(&self, target: &Uri) -> bool {
        let host = target.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = target.port_u16().unwrap_or(443);
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let list = self.no_proxy.as_deref().unwrap_or_default();
        list.split(',').map(str::trim).filter(|one| !one.is_empty()).any(|one| names(one, host, address, port))
    }
}

/// Whether one item of `NO_PROXY` names this host.
fn names(item: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if item == "*" {
        return true;
    }
    if let Some(address) = address {
        if let Some((network, bits)) = item.split_once('/') {
            return is_in(network, bits, address);
        }
        if let Ok(same) = item.trim_matches(['[', ']']).parse::<IpAddr>() {
            return same == address;
        }
    }
    let (name, wanted) = match item.rsplit_once(':') {
        Some((name, wanted)) if wanted.chars().all(|digit| digit.is_ascii_digit()) => (name, wanted.parse().ok()),
        _ => (item, None),
    };
    if wanted.is_some_and(|wanted: u16| wanted != port) {
        return false;
    }
    let name = name.trim_matches(['[', ']']).trim_start_matches('*').to_ascii_lowercase();
    let host = host.to_ascii_lowercase();
    match name.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == name || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Whether an address lies in a network such as `10.0.0.0/8`.
fn is_in(network: &str, bits: &str, address: IpAddr) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let same = |one: u128, other: u128, width: u32| {
        bits <= width && one.checked_shr(width - bits).unwrap_or(0) == other.checked_shr(width - bits).unwrap_or(0)
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => same(network.to_bits().into(), address.to_bits().into(), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => same(network.to_bits(), address.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(https_proxy: &str, no_proxy: &str, of_kubeconfig: Option<&str>, target: &str) -> Option<String> {
        let environment = Environment { https_proxy: Some(https_proxy.into()), no_proxy: Some(no_proxy.into()) };
        let proxy = environment.proxy(of_kubeconfig, &target.parse().unwrap()).unwrap();
        proxy.map(|uri| uri.to_string())
    }

    #[test]
    fn a_proxy_is_chosen_as_kubectl_does() {
        let by = |no_proxy: &str, target: &str| chosen("http://p:3128", no_proxy, None, target).is_some();
        assert!(by("", "https://10.0.0.1:6443"));
        assert!(!by("", "https://127.0.0.1:6443"), "never to this machine");
        assert!(!by("", "https://localhost:6443"));
        for (no_proxy, target) in [
            ("10.0.0.0/8", "https://10.1.2.3:6443"),
            ("10.1.2.3", "https://10.1.2.3:6443"),
            ("*", "https://api.example.com"),
            ("example.com", "https://api.example.com"),
            ("x, .example.com", "https://api.example.com"),
            ("api.example.com:6443", "https://api.example.com:6443"),
            ("fd00::/8", "https://[fd00::1]:6443"),
        ] {
            assert!(!by(no_proxy, target), "{no_proxy} {target}");
        }
        for (no_proxy, target) in [
            ("10.0.0.0/16", "https://10.1.2.3:6443"),
            (".example.com", "https://example.com"),
            ("ample.com", "https://example.com"),
            ("api.example.com:443", "https://api.example.com:6443"),
        ] {
            assert!(by(no_proxy, target), "{no_proxy} {target}");
        }
    }

    #[test]
    fn the_kubeconfigs_own_proxy_comes_first_and_one_that_cannot_be_used_is_named() {
        let target = "https://10.0.0.1:6443";
        assert_eq!(chosen("http://p:1", "*", Some("socks5://q:2"), target).as_deref(), Some("socks5://q:2/"));
        assert_eq!(chosen("p:1", "", None, target).as_deref(), Some("http://p:1/"));
        let refused = Environment::default().proxy(Some("ftp://q"), &target.parse().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("proxy-url in the kubeconfig \"ftp://q\""), "{refused}");
    }
}
