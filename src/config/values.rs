//! The forms that values may have. Each function turns one value into its checked type, or says
//! what was expected.

use core::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use toml::de::{DeInteger, DeValue};

use super::keys::closest;
use super::raw::{Complaint, Value};
use super::words::split_words;
use crate::spec::{Bytes, Instances, ListenAddress, QuantityError, Readiness};
use crate::spec::{INSTANCES_MAX, parse_bytes, parse_duration};

/// Longest argument or variable in bytes, without the NUL: the kernel's `MAX_ARG_STRLEN`, 32 pages
/// (execve(2)).
pub(super) const ARGUMENT_BYTES_MAX: usize = 131_071;

/// Longest duration. A year is beyond any use here, and a thousand of them fit a u64 of
/// milliseconds with room to spare.
pub(super) const DURATION_MAX: Duration = Duration::from_hours(365 * 24);

/// Most addresses of one app. Each is a socket per instance and generation.
const LISTEN_MAX: usize = 16;

/// Longest path of a Unix socket in bytes: `sun_path` without its NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

type Form<T> = Result<T, Complaint>;

/// The number, where it fits an `i64` as TOML demands.
fn as_integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

pub(super) fn boolean(value: &Value<'_>) -> Form<bool> {
    let DeValue::Boolean(value) = value.get_ref() else {
        let complaint = Complaint::expected(value, "`true` or `false`");
        return Err(match value.get_ref().as_str() {
            Some("true" | "false") => complaint.hint("write it without quotes"),
            Some(_) | None => complaint,
        });
    };
    Ok(*value)
}

/// A text that is not empty.
pub(super) fn text<'v>(value: &'v Value<'_>) -> Form<&'v str> {
    match value.get_ref().as_str() {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(Complaint::new(value, "must not be empty".to_owned())),
        None => Err(Complaint::expected(value, "a string")),
    }
}

pub(super) fn owned_text(value: &Value<'_>) -> Form<String> {
    text(value).map(str::to_owned)
}

pub(super) fn path(value: &Value<'_>) -> Form<PathBuf> {
    let path = text(value)?;
    if path.starts_with('~') {
        let complaint = Complaint::new(value, "cannot start with `~`".to_owned());
        return Err(complaint.hint("only a shell knows `~`: write the whole path"));
    }
    Ok(PathBuf::from(path))
}

/// A whole number within `range`.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Value<'_>) -> Form<T>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let form = format!("an integer from {} to {}", range.start(), range.end());
        let complaint = || Complaint::expected(value, &form);
        let DeValue::Integer(number) = value.get_ref() else {
            let quoted = value.get_ref().as_str().is_some_and(|text| text.parse::<i64>().is_ok());
            let complaint = complaint();
            return Err(if quoted { complaint.hint("write it without quotes") } else { complaint });
        };
        let number = as_integer(number).and_then(|number| T::try_from(number).ok());
        number.filter(|number| range.contains(number)).ok_or_else(complaint)
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Value<'_>) -> Form<T> {
    move |value| {
        let found = value.get_ref().as_str();
        if let Some((_, choice)) = words.iter().find(|(word, _)| found == Some(word)) {
            return Ok(*choice);
        }
        let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let complaint = Complaint::expected(value, &quoted.join(" or "));
        let close = found.and_then(|found| closest(found, words.iter().map(|(word, _)| *word)));
        Err(match close {
            Some(close) => complaint.hint(format!("did you mean {close:?}?")),
            None => complaint,
        })
    }
}

/// What is unusual about a quantity, in words.
fn quantity_hint(text: &str, error: &QuantityError) -> String {
    if text.trim_start().starts_with('-') {
        "it cannot be less than zero".to_owned()
    } else if text.contains(['.', ',']) {
        "write a whole number with a smaller unit".to_owned()
    } else {
        error.to_string()
    }
}

/// A duration; zero only where `zero` says so.
pub(super) fn duration(zero: bool) -> impl Fn(&Value<'_>) -> Form<Duration> {
    move |value| {
        let form = "a duration (milliseconds, or as \"1min 30s\")";
        let complaint = || Complaint::expected(value, form);
        let parsed = match value.get_ref() {
            DeValue::String(text) => parse_duration(text)
                .map_err(|error| complaint().hint(quantity_hint(text, &error)))?,
            DeValue::Integer(number) => as_integer(number)
                .and_then(|ms| u64::try_from(ms).ok())
                .map(Duration::from_millis)
                .ok_or_else(complaint)?,
            _ => return Err(complaint()),
        };
        if parsed > DURATION_MAX {
            return Err(Complaint::new(value, "must be at most 365 days".to_owned()));
        }
        if parsed.is_zero() && !zero {
            return Err(Complaint::new(value, "must be more than zero".to_owned()));
        }
        Ok(parsed)
    }
}

/// A size of at least `min`.
pub(super) fn bytes(min: Bytes) -> impl Fn(&Value<'_>) -> Form<Bytes> {
    move |value| {
        let complaint = || Complaint::expected(value, "a size (bytes, or as \"512M\")");
        let parsed = match value.get_ref() {
            DeValue::String(text) => {
                parse_bytes(text).map_err(|error| complaint().hint(quantity_hint(text, &error)))?
            }
            DeValue::Integer(number) => as_integer(number)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .map(Bytes)
                .ok_or_else(complaint)?,
            _ => return Err(complaint()),
        };
        if parsed < min {
            let complaint = Complaint::expected(value, &format!("at least {min}"));
            return Err(
                complaint.hint("a number without a unit is bytes: write \"512M\" or \"1G\"")
            );
        }
        Ok(parsed)
    }
}

/// A share of one CPU: `150` or `"150%"` is one and a half.
pub(super) fn percent(value: &Value<'_>) -> Form<u32> {
    let number = match value.get_ref() {
        DeValue::String(text) => text.strip_suffix('%').and_then(|number| number.parse().ok()),
        DeValue::Integer(number) => as_integer(number).and_then(|n| u32::try_from(n).ok()),
        _ => None,
    };
    number
        .filter(|percent| (1..=100_000).contains(percent))
        .ok_or_else(|| Complaint::expected(value, "a percentage of one CPU (as 50 or \"150%\")"))
}

/// A variable's value: text, or what is turned into text.
pub(super) fn scalar(value: &Value<'_>) -> Form<String> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.clone().into_owned(),
        DeValue::Integer(number) => as_integer(number)
            .ok_or_else(|| Complaint::expected(value, "an integer of 64 bits"))?
            .to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            return Err(Complaint::expected(value, "a string, a number or a boolean"));
        }
    };
    if text.len() > ARGUMENT_BYTES_MAX {
        return Err(Complaint::new(value, format!("is longer than {ARGUMENT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Arguments: an array, or a line that is split into words as a shell does.
pub(super) fn arguments(value: &Value<'_>) -> Form<Vec<String>> {
    match value.get_ref() {
        DeValue::String(line) => {
            let words = split_words(line).map_err(|error| {
                Complaint::new(value, format!("cannot be split into words: {error}"))
                    .hint("write an array to have each argument taken as it is")
            })?;
            if words.iter().any(|word| word.len() > ARGUMENT_BYTES_MAX) {
                let tail = format!("has a word longer than {ARGUMENT_BYTES_MAX} bytes");
                return Err(Complaint::new(value, tail));
            }
            Ok(words)
        }
        DeValue::Array(items) => items.iter().map(scalar).collect(),
        _ => Err(Complaint::expected(value, "a string or an array of strings")),
    }
}

/// An argument vector: an array whose first element is the program.
pub(super) fn command(value: &Value<'_>) -> Form<Vec<String>> {
    if value.get_ref().as_array().is_none() {
        let complaint = Complaint::expected(value, "an array of strings");
        return Err(match value.get_ref().as_str().map(split_words) {
            Some(Ok(words)) => complaint.hint(format!("write {words:?}")),
            Some(Err(_)) | None => complaint,
        });
    }
    let argv = arguments(value)?;
    if argv.first().is_none_or(String::is_empty) {
        return Err(Complaint::new(value, "must name a program first".to_owned()));
    }
    Ok(argv)
}

/// Some texts that are not empty: one, or an array of them.
pub(super) fn texts(value: &Value<'_>) -> Form<Vec<String>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().map(owned_text).collect(),
        DeValue::String(_) => Ok(vec![owned_text(value)?]),
        _ => Err(Complaint::expected(value, "a string or an array of strings")),
    }
}

/// A user or group: a name, or a number.
pub(super) fn account(value: &Value<'_>) -> Form<String> {
    match value.get_ref() {
        // The last one is "no change" to setresuid(2).
        DeValue::Integer(_) => {
            integer(0..=u32::MAX.saturating_sub(1))(value).map(|n| n.to_string())
        }
        DeValue::String(_) => owned_text(value),
        _ => Err(Complaint::expected(value, "a name or a number")),
    }
}

/// A file mode creation mask, in octal however it is written.
pub(super) fn umask(value: &Value<'_>) -> Form<u32> {
    let digits = match value.get_ref() {
        DeValue::String(text) => Some(text.trim_start_matches("0o")),
        DeValue::Integer(number) if number.radix() == 8 || number.as_str() == "0" => {
            Some(number.as_str())
        }
        _ => None,
    };
    digits
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| Complaint::expected(value, "a mask in octal (as \"0022\" or 0o022)"))
}

/// How many slots.
pub(super) fn instances(value: &Value<'_>) -> Form<Instances> {
    let complaint = || {
        let form = format!("1 to {INSTANCES_MAX}, \"max\", or less than 0 (CPUs less that many)");
        Complaint::expected(value, &form)
    };
    match value.get_ref() {
        DeValue::String(text) if text == "max" => Ok(Instances::CpusLess(0)),
        DeValue::String(text) if text.parse::<i64>().is_ok() => {
            Err(complaint().hint("write it without quotes"))
        }
        DeValue::Integer(number) => {
            let number = as_integer(number).ok_or_else(complaint)?;
            let count = u16::try_from(number.unsigned_abs())
                .ok()
                .filter(|count| *count <= INSTANCES_MAX)
                .ok_or_else(complaint)?;
            match number {
                0 => Err(complaint().hint("as many as there are CPUs is \"max\"")),
                1.. => Ok(Instances::Count(count)),
                ..0 => Ok(Instances::CpusLess(count)),
            }
        }
        _ => Err(complaint()),
    }
}

/// Exit codes: one, or an array of them.
pub(super) fn exit_codes(value: &Value<'_>) -> Form<Vec<i32>> {
    let code = integer(0..=255);
    match value.get_ref() {
        DeValue::Array(items) => items.iter().map(code).collect(),
        _ => Ok(vec![code(value)?]),
    }
}

/// A signal that can ask a process to stop, by name or number.
pub(super) fn stop_signal(value: &Value<'_>) -> Form<i32> {
    let signal = match value.get_ref() {
        DeValue::Integer(number) => as_integer(number)
            .and_then(|number| i32::try_from(number).ok())
            .and_then(|number| Signal::try_from(number).ok()),
        DeValue::String(name) => {
            let name = name.to_ascii_uppercase();
            format!("SIG{}", name.strip_prefix("SIG").unwrap_or(&name)).parse().ok()
        }
        _ => None,
    };
    let signal =
        signal.ok_or_else(|| Complaint::expected(value, "a signal (as \"SIGTERM\" or 15)"))?;
    if signal == Signal::SIGSTOP {
        let complaint = Complaint::new(value, "cannot be SIGSTOP".to_owned());
        return Err(complaint.hint("it freezes the instance instead of ending it"));
    }
    #[expect(clippy::as_conversions, reason = "nix gives a signal's number by a cast only")]
    Ok(signal as i32)
}

/// A path as an HTTP request carries it.
pub(super) fn http_path(value: &Value<'_>) -> Form<String> {
    let path = text(value)?;
    check_http_path(value, path)?;
    Ok(path.to_owned())
}

fn check_http_path(value: &Value<'_>, path: &str) -> Form<()> {
    if path.starts_with('/')
        && !path.starts_with("//")
        && path.chars().all(|c| c.is_ascii_graphic())
    {
        return Ok(());
    }
    Err(Complaint::expected(value, "a path that starts with `/`, without blanks"))
}

pub(super) fn readiness(value: &Value<'_>) -> Form<Readiness> {
    match value.get_ref().as_str() {
        Some("exec") => Ok(Readiness::Exec),
        Some("listen") => Ok(Readiness::Listen),
        Some("notify") => Ok(Readiness::Notify),
        Some("message") => Ok(Readiness::Message),
        Some(text) if text.starts_with("http:") => {
            let path = text.strip_prefix("http:").unwrap_or_default();
            check_http_path(value, path).map_err(|complaint| {
                complaint.hint("write it as \"http:/healthz\": a path, without the host")
            })?;
            Ok(Readiness::Http(path.to_owned()))
        }
        Some(_) | None => {
            let form = "\"exec\", \"listen\", \"notify\", \"message\" or \"http:/path\"";
            Err(Complaint::expected(value, form))
        }
    }
}

/// The dual-stack address of a port.
pub(super) fn any_address(port: u16) -> ListenAddress {
    ListenAddress::Tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
}

/// Addresses to listen on: one, or an array of them.
pub(super) fn addresses(value: &Value<'_>) -> Form<Vec<ListenAddress>> {
    let DeValue::Array(items) = value.get_ref() else { return Ok(vec![address(value)?]) };
    if items.is_empty() || items.len() > LISTEN_MAX {
        return Err(Complaint::new(value, format!("must have 1 to {LISTEN_MAX} addresses")));
    }
    let mut addresses = Vec::new();
    for item in items {
        let address = address(item)?;
        if let Some(other) = addresses.iter().find(|other| overlap(&address, other)) {
            let tail = format!("names {address}, which {other} already covers");
            return Err(Complaint::new(item, tail));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// Whether the kernel would refuse to bind both (the unspecified IPv6 address is dual-stack).
fn overlap(a: &ListenAddress, b: &ListenAddress) -> bool {
    let dual_stack = |address: &SocketAddr| address.ip() == Ipv6Addr::UNSPECIFIED;
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => {
            a.port() == b.port()
                && (dual_stack(a)
                    || dual_stack(b)
                    || a.ip() == b.ip()
                    || a.is_ipv4()
                        && b.is_ipv4()
                        && (a.ip().is_unspecified() || b.ip().is_unspecified()))
        }
        (ListenAddress::Unix(a), ListenAddress::Unix(b)) => a == b,
        (ListenAddress::Tcp(_), ListenAddress::Unix(_))
        | (ListenAddress::Unix(_), ListenAddress::Tcp(_)) => false,
    }
}

fn address(value: &Value<'_>) -> Form<ListenAddress> {
    let complaint = || {
        let form = "an address (as \"0.0.0.0:10000\", \"[::]:10000\", 10000 or \"/run/app.sock\")";
        Complaint::expected(value, form)
    };
    let text = match value.get_ref() {
        DeValue::Integer(_) => return integer(1..=u16::MAX)(value).map(any_address),
        DeValue::String(text) => &**text,
        _ => return Err(complaint()),
    };
    if text.starts_with('/') {
        if text.len() > SOCKET_PATH_BYTES_MAX {
            let tail = format!("has a socket path longer than {SOCKET_PATH_BYTES_MAX} bytes");
            return Err(Complaint::new(value, tail));
        }
        return Ok(ListenAddress::Unix(PathBuf::from(text)));
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return if port == 0 { Err(complaint()) } else { Ok(any_address(port)) };
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(ListenAddress::Tcp(address)),
        Ok(_) => Err(complaint().hint("port 0 is no port")),
        Err(_) if text.starts_with("localhost:") => {
            Err(complaint().hint("names are not resolved: write 127.0.0.1 or [::1]"))
        }
        Err(_) => Err(complaint()),
    }
}

/// Names of months and weekdays in cron, with the number of the first.
const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
const WEEKDAYS: &str = "sun mon tue wed thu fri sat";

/// The five fields of crontab(5).
pub(super) fn cron(value: &Value<'_>) -> Form<String> {
    const FIELDS: [(RangeInclusive<u8>, &str); 5] =
        [(0..=59, ""), (0..=23, ""), (1..=31, ""), (1..=12, MONTHS), (0..=7, WEEKDAYS)];
    let text = text(value)?;
    let complaint = || Complaint::expected(value, "five fields: minute, hour, day, month, weekday");
    let fields: Vec<_> = text.split_ascii_whitespace().collect();
    match fields.len() {
        5 => {}
        6 => return Err(complaint().hint("there is no field for seconds")),
        _ => return Err(complaint()),
    }
    for (field, (range, names)) in fields.iter().zip(&FIELDS) {
        if !field.split(',').all(|item| is_cron_item(item, range, names)) {
            return Err(complaint().hint(format!(
                "`{field}` is none of {} to {}, `*`, a list, a range or a step",
                range.start(),
                range.end()
            )));
        }
    }
    Ok(fields.join(" "))
}

/// Whether `item` is `*`, `n` or `n-m`, with or without `/step`.
fn is_cron_item(item: &str, range: &RangeInclusive<u8>, names: &str) -> bool {
    let (span, step) = item.split_once('/').map_or((item, "1"), |(span, step)| (span, step));
    let number = |text: &str| {
        let lower = text.to_ascii_lowercase();
        let position = names.split(' ').position(|name| !name.is_empty() && name == lower);
        match position.and_then(|at| u8::try_from(at).ok()) {
            Some(at) => at.checked_add(*range.start()),
            None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            None => None,
        }
    };
    let within = |text: &str| number(text).filter(|n| range.contains(n));
    let valid_step = step.parse::<u8>().is_ok_and(|step| step > 0 && step <= *range.end());
    valid_step
        && match span.split_once('-') {
            _ if span == "*" => true,
            Some((from, to)) => matches!((within(from), within(to)), (Some(a), Some(b)) if a <= b),
            None => within(span).is_some(),
        }
}

/// An address for webhooks.
pub(super) fn webhook(value: &Value<'_>) -> Form<String> {
    let url = text(value)?;
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match rest {
        Some(rest)
            if !rest.is_empty()
                && !rest.starts_with('/')
                && rest.chars().all(|c| c.is_ascii_graphic()) =>
        {
            Ok(url.to_owned())
        }
        Some(_) | None => Err(Complaint::expected(value, "an `https://` or `http://` address")),
    }
}

/// `path` below `directory`, without the `.` that mean nothing. A `..` stays: what it means is up
/// to the symlinks before it.
pub(super) fn absolute(directory: &Path, path: Option<&Path>) -> PathBuf {
    path.map_or_else(|| directory.to_owned(), |path| directory.join(path)).components().collect()
}
