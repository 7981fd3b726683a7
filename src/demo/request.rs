//! The head of an HTTP/1.1 request: bytes in, a request or a complaint out. No I/O.

/// Most bytes of request line and headers together.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// `GET`, `HEAD`, or another token.
    pub(super) method: String,
    /// The path, without the query.
    pub(super) path: String,
    /// What follows the `?`.
    query: String,
    /// Whether another request may follow on this connection.
    pub(super) keep_alive: bool,
}

/// Why bytes are no request, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad(pub(super) String);

impl Request {
    /// The number behind `key` in the query, `default` where there is none, at most `max`.
    pub(super) fn number(&self, key: &str, default: u64, max: u64) -> Result<u64, Bad> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let Some((_, text)) = pairs.rev().find(|(name, _)| *name == key) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if number <= max => Ok(number),
            Ok(_) | Err(_) => Err(Bad(format!("`{key}` is a number from 0 to {max}"))),
        }
    }
}

/// Reads the head at the start of `bytes`. `None` if its end has not arrived yet, else the request
/// and how many bytes it took. Lines may end in a bare line feed, as a person at `nc` types them.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Bad> {
    let seen = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
    let Some(length) = head_length(seen) else {
        return if bytes.len() < HEAD_BYTES_MAX {
            Ok(None)
        } else {
            Err(Bad(format!("request line and headers are over {HEAD_BYTES_MAX} bytes")))
        };
    };
    let head = seen.get(..length).unwrap_or_default();
    let Ok(head) = std::str::from_utf8(head) else {
        return Err(Bad("the request is not UTF-8".to_owned()));
    };
    let mut lines = head.lines();
    let mut request = request_line(lines.next().unwrap_or_default())?;
    for line in lines.take_while(|line| !line.is_empty()) {
        header(line, &mut request)?;
    }
    Ok(Some((request, length)))
}

/// The length of the head with its closing empty line.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut length: usize = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        length = length.saturating_add(line.len());
        if matches!(line, b"\n" | b"\r\n") {
            return Some(length);
        }
    }
    None
}

fn request_line(line: &str) -> Result<Request, Bad> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Bad("the first line is not `METHOD /path HTTP/1.1`".to_owned()));
    };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(Bad("the method is not a word in capitals".to_owned()));
    }
    if !target.starts_with('/') || target.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Bad("the path does not start with `/`".to_owned()));
    }
    let keep_alive = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return Err(Bad("the version is neither HTTP/1.1 nor HTTP/1.0".to_owned())),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
    Ok(Request { method, path, query, keep_alive })
}

fn header(line: &str, request: &mut Request) -> Result<(), Bad> {
    let Some((name, value)) = line.split_once(':') else {
        return Err(Bad("a header has no colon".to_owned()));
    };
    if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return Err(Bad("the name of a header is empty or has a blank in it".to_owned()));
    }
    let value = value.trim();
    let has_body = match name.to_ascii_lowercase().as_str() {
        "connection" => {
            for word in value.split(',').map(str::trim) {
                if word.eq_ignore_ascii_case("close") {
                    request.keep_alive = false;
                } else if word.eq_ignore_ascii_case("keep-alive") {
                    request.keep_alive = true;
                }
            }
            false
        }
        "content-length" => value != "0",
        "transfer-encoding" => true,
        _ => false,
    };
    if has_body {
        // Nobody reads the body here, and it must not be taken for the next request.
        return Err(Bad("no page takes a request with a body".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Request {
        let (request, length) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        request
    }

    #[test]
    fn a_head_becomes_a_request() {
        let request = whole("GET /slow?ms=20&x=1 HTTP/1.1\r\nHost: here\r\n\r\n");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/slow"));
        assert!(request.keep_alive);
        assert_eq!(request.number("ms", 5, 100), Ok(20));
        assert_eq!(request.number("mb", 5, 100), Ok(5));
        assert!(request.number("ms", 5, 10).is_err());
        assert!(!whole("GET / HTTP/1.0\n\n").keep_alive);
        assert!(whole("GET / HTTP/1.0\nConnection: Keep-Alive\n\n").keep_alive);
        assert!(!whole("GET / HTTP/1.1\r\nconnection: x, Close\r\n\r\n").keep_alive);
    }

    #[test]
    fn a_second_request_is_left_for_later() {
        let one = "GET /a HTTP/1.1\r\n\r\n";
        let (request, length) = parse(format!("{one}{one}").as_bytes()).unwrap().unwrap();
        assert_eq!((request.path.as_str(), length), ("/a", one.len()));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "\r\n",
            "GET /\r\n\r\n",
            "get / HTTP/1.1\r\n\r\n",
            "GET x HTTP/1.1\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET / HTTP/1.1 x\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(b"GET /\xff HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn the_head_is_bounded() {
        let endless = vec![b'a'; HEAD_BYTES_MAX];
        assert_eq!(parse(&endless[..HEAD_BYTES_MAX - 1]), Ok(None));
        assert!(parse(&endless).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((request, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
                prop_assert!(request.path.starts_with('/'));
            }
        }

        #[test]
        fn a_damaged_request_gets_an_answer(at in 0_usize..60, byte: u8, cut in 0_usize..60) {
            let mut bytes = b"GET /leak?mb=5 HTTP/1.1\r\nHost: x\r\nConnection: x\r\n\r\n".to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
