//! What a browser must be told so that a page of another origin may ask where to connect (Fetch standard, CORS protocol).
//!
//! In: an `Origin` that its route allows ([`crate::origin`]), and whether cookies may come along. Out: whole lines for
//! an answer. Invariants: the answer names exactly the origin that asked, never `*`; caches are told that it depends on
//! it; nothing is said to an origin that is not allowed: whoever refuses does not come here.

/// Methods that pages may use here.
const METHODS: &str = "GET, POST, OPTIONS";
/// Fields that pages may send: JSON bodies, credentials of the application, and what SignalR's client adds.
const FIELDS: &str = "Content-Type, Authorization, X-Requested-With, X-SignalR-User-Agent";
/// How long a browser may remember it, in seconds: 10 min, what Chromium does at least and Firefox allows.
const MAX_AGE_S: u32 = 600;

/// Whether a page may send the user's cookies and read the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookies {
    /// The route names the origins that may.
    Allowed,
    /// The route takes every origin: to each with cookies would be to give every page the user's rights.
    Refused,
}

/// The fields of an answer to a request with this `Origin`.
#[must_use]
pub fn fields(origin: Option<&str>, cookies: Cookies) -> String {
    let Some(origin) = origin else { return String::from("Vary: Origin\r\n") };
    let with = match cookies {
        Cookies::Allowed => "Access-Control-Allow-Credentials: true\r\n",
        Cookies::Refused => "",
    };
    format!("Vary: Origin\r\nAccess-Control-Allow-Origin: {origin}\r\n{with}")
}

/// The fields of the answer to a browser that asks first.
#[must_use]
pub fn preflight(origin: Option<&str>, cookies: Cookies) -> String {
    let mut answer = fields(origin, cookies);
    if origin.is_some() {
        answer.push_str(&format!(
            "Access-Control-Allow-Methods: {METHODS}\r\nAccess-Control-Allow-Headers: {FIELDS}\r\n\
             Access-Control-Max-Age: {MAX_AGE_S}\r\n"
        ));
    }
    answer.push_str(&format!("Allow: {METHODS}\r\n"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_that_asked_is_named_and_no_other() {
        let origin = Some("https://app.example.com");
        expect_test::expect![[r"
            Vary: Origin
            Access-Control-Allow-Origin: https://app.example.com
            Access-Control-Allow-Credentials: true
            Access-Control-Allow-Methods: GET, POST, OPTIONS
            Access-Control-Allow-Headers: Content-Type, Authorization, X-Requested-With, X-SignalR-User-Agent
            Access-Control-Max-Age: 600
            Allow: GET, POST, OPTIONS
        "]]
        .assert_eq(&preflight(origin, Cookies::Allowed).replace("\r\n", "\n"));
        assert!(preflight(origin, Cookies::Allowed).starts_with(&fields(origin, Cookies::Allowed)));
        for said in [fields(origin, Cookies::Refused), preflight(origin, Cookies::Refused)] {
            assert!(!said.contains("Credentials") && !said.contains('*'), "{said}");
        }
    }

    #[test]
    fn a_program_is_told_nothing_but_that_it_depends() {
        assert_eq!(fields(None, Cookies::Allowed), "Vary: Origin\r\n");
        assert!(!preflight(None, Cookies::Allowed).contains("Access-Control"));
    }
}
