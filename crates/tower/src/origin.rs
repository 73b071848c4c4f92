//! A client of many hosts as the service of one endpoint.

use std::task::{Context, Poll};

use http::{
    Request, Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use tower_service::Service;

/// Sends every request to one origin: hyper's client wants whole addresses, and endpoints are names like `10.0.0.1:80`.
///
/// The request's own authority, where it has one, stays in `Host`.
#[derive(Clone, Debug)]
pub struct Origin<S> {
    inner: S,
    scheme: Scheme,
    authority: Authority,
}

impl<S> Origin<S> {
    /// `http://` before `HOST:PORT`.
    ///
    /// # Errors
    /// It is no authority.
    pub fn http(inner: S, authority: &str) -> Result<Self, http::uri::InvalidUri> {
        Ok(Self { inner, scheme: Scheme::HTTP, authority: authority.parse()? })
    }

    /// The same with `https://`.
    ///
    /// # Errors
    /// It is no authority.
    pub fn https(inner: S, authority: &str) -> Result<Self, http::uri::InvalidUri> {
        Ok(Self { scheme: Scheme::HTTPS, ..Self::http(inner, authority)? })
    }
}

impl<S, B> Service<Request<B>> for Origin<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(asked) = parts.authority.filter(|asked| *asked != self.authority)
            && let Ok(host) = http::HeaderValue::from_str(asked.as_str())
        {
            request.headers_mut().entry(http::header::HOST).or_insert(host);
        }
        parts.authority = Some(self.authority.clone());
        parts.scheme = Some(self.scheme.clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are there");
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    struct Seen;

    impl Service<Request<()>> for Seen {
        type Response = (String, Option<String>);
        type Error = ();
        type Future = Ready<Result<Self::Response, ()>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
            ready(Ok((request.uri().to_string(), host)))
        }
    }

    fn seen(uri: &str) -> (String, Option<String>) {
        let mut origin = Origin::http(Seen, "10.0.0.1:80").unwrap();
        origin.call(Request::get(uri).body(()).unwrap()).into_inner().unwrap()
    }

    #[test]
    fn a_path_becomes_an_address_and_a_name_stays_in_host() {
        assert_eq!(seen("/orders?n=7"), ("http://10.0.0.1:80/orders?n=7".into(), None));
        assert_eq!(seen("http://orders/x"), ("http://10.0.0.1:80/x".into(), Some("orders".into())));
        assert_eq!(seen("http://orders").0, "http://10.0.0.1:80/");
        assert!(Origin::http(Seen, "not an authority").is_err());
    }
}
