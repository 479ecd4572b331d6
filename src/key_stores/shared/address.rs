//! Addresses of servers in settings, under one rule: a DEK or a credential crosses a network only encrypted.

use std::net::IpAddr;

use url::Url;

use crate::key_stores::shared::key_store::Mistake;

/// Whether the settings allow plain http to other machines (`insecureHttp`, which is logged at every start).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::key_stores) enum PlainHttp {
    /// Only to this machine.
    Loopback,
    /// To any machine: `insecureHttp` is set.
    Anywhere,
}

impl From<bool> for PlainHttp {
    fn from(insecure_http: bool) -> Self {
        if insecure_http { Self::Anywhere } else { Self::Loopback }
    }
}

/// A URL of a scheme, a host, and perhaps a port.
///
/// # Errors
/// What is wrong, and the fix; `example` is a right address.
pub(in crate::key_stores) fn parse(text: &str, plain: PlainHttp, example: &str) -> Result<Url, String> {
    if !text.contains("://") {
        return Err(format!("{text:?} lacks its scheme; write for example {example}"));
    }
    let Ok(url) = Url::parse(text) else {
        return Err(format!("{text:?} is not a URL; write for example {example}"));
    };
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.scheme() {
        "http" | "https" if !bare || url.host().is_none() => {
            Err(format!("{text:?} has more than scheme, host and port; write for example {example}"))
        }
        "https" => Ok(url),
        "http" if plain == PlainHttp::Anywhere || is_loopback(&url) => Ok(url),
        "http" => Err(format!(
            "{text:?} would send credentials and DEKs unencrypted; write https (plain http is for this machine alone, \
             or with insecureHttp: true)"
        )),
        other => Err(format!("{text:?} has the scheme {other}; write for example {example}")),
    }
}

/// The setting `proxy`, where there is one. What goes through it is TLS from here to the key store: it may be asked by http.
pub(in crate::key_stores) fn proxy(mistakes: &mut Vec<Mistake>, text: Option<&str>) -> Option<Url> {
    parse(text?, PlainHttp::Anywhere, "http://proxy.example:3128")
        .map_err(|problem| mistakes.push(Mistake::new("proxy", problem)))
        .ok()
}

/// Whether nothing that is sent there leaves the machine.
pub(in crate::key_stores) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "https://vault.example:8200";

    #[test]
    fn plain_http_stays_on_the_machine_unless_it_is_allowed_by_name() {
        let parse = |text, plain: bool| super::parse(text, plain.into(), EXAMPLE).map(|url| url.to_string());
        for good in [
            "https://vault.example:8200",
            "https://[2001:db8::1]",
            "http://127.0.0.1:8200",
            "http://[::1]:1/",
            "http://localhost",
        ] {
            assert!(parse(good, false).is_ok(), "{good}");
        }
        for bad in
            ["http://vault.example", "http://127.0.0.1.example", "http://localhost.example", "http://10.0.0.1:80"]
        {
            assert!(parse(bad, false).unwrap_err().contains("insecureHttp"), "{bad}");
            assert!(parse(bad, true).is_ok(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_named() {
        let problem = |text| parse(text, PlainHttp::Anywhere, EXAMPLE).unwrap_err();
        assert!(problem("vault.example:8200").contains("lacks its scheme"));
        for more in ["https://a/v1", "https://a?x=1", "https://me@a", "https://a#x"] {
            assert!(problem(more).contains("more than scheme, host and port"), "{more}");
        }
        assert!(problem("ftp://a").contains("the scheme ftp"));
        assert!(problem("https://").contains("is not a URL"));
    }
}
