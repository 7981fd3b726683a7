//! Sizes and durations as people write them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    /// The largest 1024-based unit in which the number is at least 1, with one decimal where the
    /// number is below 10 and not whole: `85M`, `1.2G`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        for (size, letter) in UNITS {
            let whole = self.0.checked_div(size).unwrap_or_default();
            if whole == 0 {
                continue;
            }
            let rest = self.0.checked_rem(size).unwrap_or_default();
            let tenths = rest.saturating_mul(10).checked_div(size).unwrap_or_default();
            return if whole < 10 && tenths > 0 {
                write!(f, "{whole}.{tenths}{letter}")
            } else {
                write!(f, "{whole}{letter}")
            };
        }
        write!(f, "{}B", self.0)
    }
}

/// Why a text is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuantityError {
    /// There is no number where one is needed.
    Number,
    /// The unit is not known, or missing where one is needed.
    Unit(String),
    /// It does not fit: a size up to 2^63 bytes, a duration up to 2^53 ms.
    TooLarge,
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number => write!(f, "a number is missing"),
            Self::Unit(unit) if unit.is_empty() => write!(f, "a unit is missing"),
            Self::Unit(unit) => write!(f, "unknown unit `{unit}`"),
            Self::TooLarge => write!(f, "the number is too large"),
        }
    }
}

impl std::error::Error for QuantityError {}

/// Most milliseconds of a duration: what JSON carries exactly.
const DURATION_MS_MAX: u64 = 1 << 53;
const BYTES_MAX: u64 = 1 << 63;

/// Splits `text` into its leading digits and the word behind them.
fn number_and_unit(text: &str) -> Result<(u64, &str, &str), QuantityError> {
    let text = text.trim_start();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(QuantityError::Number);
    }
    let number = number.parse().map_err(|_| QuantityError::TooLarge)?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_alphabetic() && c != '\u{b5}').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    Ok((number, unit, rest))
}

/// Reads a size: digits and one of `B K M G T`, also `KB` and `KiB`; all 1024-based as in systemd
/// and PM2. Digits alone are bytes.
pub fn parse_bytes(text: &str) -> Result<Bytes, QuantityError> {
    let (number, unit, rest) = number_and_unit(text)?;
    if !rest.trim().is_empty() {
        return Err(QuantityError::Unit(format!("{unit}{}", rest.trim())));
    }
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let factor: u64 = match letter {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return Err(QuantityError::Unit(unit.to_owned())),
    };
    match number.checked_mul(factor) {
        Some(bytes) if bytes <= BYTES_MAX => Ok(Bytes(bytes)),
        Some(_) | None => Err(QuantityError::TooLarge),
    }
}

/// Reads a duration as systemd.time(7) writes it: a sum of numbers with units (`1min 30s`). Digits
/// alone are milliseconds, as in PM2.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    let single = rest.chars().all(|c| c.is_ascii_digit());
    loop {
        let (number, unit, tail) = number_and_unit(rest)?;
        let unit_ms: u64 = match unit {
            "" if single => 1,
            "ms" | "msec" => 1,
            "s" | "sec" | "second" | "seconds" => 1000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000,
            "d" | "day" | "days" => 86_400_000,
            "w" | "week" | "weeks" => 604_800_000,
            _ => return Err(QuantityError::Unit(unit.to_owned())),
        };
        total_ms = number
            .checked_mul(unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .filter(|&ms| ms <= DURATION_MS_MAX)
            .ok_or(QuantityError::TooLarge)?;
        rest = tail.trim_start();
        if rest.is_empty() {
            return Ok(Duration::from_millis(total_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_1024_based() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1g", 1 << 30),
            ("2 GiB", 2 << 30),
            ("10KB", 10 << 10),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(Bytes(bytes)), "{text}");
        }
        assert_eq!(parse_bytes("M"), Err(QuantityError::Number));
        assert_eq!(parse_bytes(""), Err(QuantityError::Number));
        assert_eq!(parse_bytes("12Q"), Err(QuantityError::Unit("Q".to_owned())));
        assert_eq!(parse_bytes("1.5G"), Err(QuantityError::Unit(".5G".to_owned())));
        assert_eq!(parse_bytes("99999999T"), Err(QuantityError::TooLarge));
        assert_eq!(parse_bytes("99999999999999999999"), Err(QuantityError::TooLarge));
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (85 << 20, "85M"),
            ((1 << 30) + (205 << 20), "1.2G"),
            (12 << 30, "12G"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations_are_those_of_systemd_and_bare_milliseconds() {
        for (text, ms) in [
            ("2000", 2000),
            ("10s", 10_000),
            ("1min 30s", 90_000),
            ("1min30s", 90_000),
            ("2h", 7_200_000),
            ("100ms", 100),
            (" 5 sec ", 5000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration(""), Err(QuantityError::Number));
        assert_eq!(parse_duration("s"), Err(QuantityError::Number));
        assert_eq!(parse_duration("10parsec"), Err(QuantityError::Unit("parsec".to_owned())));
        assert_eq!(parse_duration("1s 5"), Err(QuantityError::Unit(String::new())));
        assert_eq!(QuantityError::Unit(String::new()).to_string(), "a unit is missing");
        assert_eq!(parse_duration("99999999999w"), Err(QuantityError::TooLarge));
    }
}
