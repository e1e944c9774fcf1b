//! Where alerts are sent.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Uri,
    header::HeaderValue,
    http::uri::{Authority, PathAndQuery, Scheme},
};
use percent_encoding::percent_decode_str;

/// Where a URL without a path leads to.
const ALERTMANAGER: &str = "/api/v2/alerts";

/// A webhook's URL. It is shown without what may be secret: user, path and query.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

/// What was given is no URL of a webhook. It does not say what was given, which may have a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a URL like http://alertmanager:9093 (/api/v2/alerts is added) or https://user:password@host/path (taken as it \
     is; what is no plain character in user or password is written as %40)"
)]
pub struct NotAnEndpoint;

impl Endpoint {
    /// The URL, without the user.
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Basic authentication, if there is a user.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    pub(super) fn is_https(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let mut parts = text.parse::<Uri>().map_err(|_| NotAnEndpoint)?.into_parts();
        if !matches!(&parts.scheme, Some(scheme) if [Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
            return Err(NotAnEndpoint);
        }
        let mut authorization = None;
        let authority = parts.authority.take().ok_or(NotAnEndpoint)?;
        let host = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => {
                authorization = Some(basic(user)?);
                host
            }
            None => authority.as_str(),
        };
        let host: Authority = host.parse().map_err(|_| NotAnEndpoint)?;
        // A port that is none, and none after the colon.
        if host.host().is_empty() || host.port().is_none() && host.as_str() != host.host() {
            return Err(NotAnEndpoint);
        }
        parts.authority = Some(host);
        let path = parts.path_and_query.take();
        parts.path_and_query = Some(match path {
            Some(path) if path.path() != "/" => path,
            path => with_api(path.as_ref().and_then(PathAndQuery::query))?,
        });
        Ok(Self { uri: Uri::from_parts(parts).map_err(|_| NotAnEndpoint)?, authorization })
    }
}

fn with_api(query: Option<&str>) -> Result<PathAndQuery, NotAnEndpoint> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{ALERTMANAGER}{query}").parse().map_err(|_| NotAnEndpoint)
}

/// The header for `user[:password]` as a URL has it (RFC 7617).
fn basic(user: &str) -> Result<HeaderValue, NotAnEndpoint> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain: Vec<u8> = percent_decode_str(user).collect();
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(plain))).map_err(|_| NotAnEndpoint)?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.uri.authority().map(Authority::as_str).unwrap_or_default();
        write!(f, "{}://{authority}", self.uri.scheme_str().unwrap_or_default())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_is_alertmanagers() {
        let cases = [
            ("http://am:9093", "http://am:9093/api/v2/alerts"),
            ("http://am:9093/", "http://am:9093/api/v2/alerts"),
            ("https://am?a=b", "https://am/api/v2/alerts?a=b"),
            ("http://[::1]:9093", "http://[::1]:9093/api/v2/alerts"),
            ("http://user@am", "http://am/api/v2/alerts"),
            ("https://am/prefix/api/v2/alerts?a=b", "https://am/prefix/api/v2/alerts?a=b"),
            ("https://am/hook/", "https://am/hook/"),
        ];
        for (text, uri) in cases {
            assert_eq!(text.parse::<Endpoint>().expect(text).uri().to_string(), uri);
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        let cases =
            ["", "am:9093", "ftp://am", "/api", "http://", "http://:80", "http://am:port", "http://am:", "http://a b"];
        for text in cases {
            assert_eq!(text.parse::<Endpoint>(), Err(NotAnEndpoint), "{text}");
        }
    }

    #[test]
    fn user_and_password_are_sent_but_never_shown() {
        let endpoint: Endpoint = "https://us%40er:p%3Ass%2Fword@am:443/T0KEN?key=T0KEN".parse().expect("a URL");
        let sent = endpoint.authorization().expect("a user");
        // printf 'us@er:p:ss/word' | base64
        assert_eq!(sent.as_bytes(), b"Basic dXNAZXI6cDpzcy93b3Jk");
        assert_eq!(format!("{endpoint} {endpoint:?}"), "https://am:443 https://am:443");
        assert!(!format!("{sent:?}").contains("dXN"), "{sent:?}");
    }
}
