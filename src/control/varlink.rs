//! Varlink's framing and envelope, and `org.varlink.service`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::protocol::{DESCRIPTION, INTERFACE};

/// The interface every Varlink service has.
pub(super) const SERVICE: &str = "org.varlink.service";

/// Its description, from the Varlink specification.
const SERVICE_DESCRIPTION: &str = "\
# The Varlink Service Interface is provided by every varlink service. It
# describes the service and the interfaces it implements.
interface org.varlink.service

method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// A request as it stands on the wire. Parameters of all methods in one type: a message is read
/// once, into a bounded number of fields, whatever else it contains.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    pub(super) method: String,
    #[serde(default)]
    pub(super) parameters: Option<Object<Parameters>>,
    #[serde(default)]
    pub(super) more: bool,
    #[serde(default)]
    pub(super) oneway: bool,
}

/// A value that must be written as an object: serde would also take its fields as an array.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// What any method may be given.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    pub(super) slot: Option<u16>,
    pub(super) count: Option<u16>,
    pub(super) signal: Option<i32>,
    pub(super) lines: Option<u32>,
    pub(super) follow: Option<bool>,
    pub(super) values: Option<BTreeMap<String, String>>,
    pub(super) interface: Option<String>,
}

/// An answer as it stands on the wire.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) parameters: Value,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) continues: bool,
}

/// Why no more input is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overflow {
    /// A message is too long.
    Bytes,
    /// Too many messages wait.
    Messages,
}

/// Bytes that come in, cut into messages.
#[derive(Debug)]
pub(super) struct Frames {
    complete: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
    bytes: usize,
    bytes_max: usize,
    messages_max: usize,
}

impl Frames {
    /// Holds so much and no more.
    pub(super) fn new(bytes_max: usize, messages_max: usize) -> Self {
        Self { complete: VecDeque::new(), partial: Vec::new(), bytes: 0, bytes_max, messages_max }
    }

    /// Takes bytes. Says how many messages they completed.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<usize, Overflow> {
        let mut completed: usize = 0;
        for part in bytes.split_inclusive(|&byte| byte == 0) {
            self.bytes = self.bytes.saturating_add(part.len());
            if self.bytes > self.bytes_max {
                return Err(Overflow::Bytes);
            }
            let Some(end) = part.strip_suffix(&[0]) else {
                self.partial.extend_from_slice(part);
                continue;
            };
            if self.complete.len() >= self.messages_max {
                return Err(Overflow::Messages);
            }
            self.partial.extend_from_slice(end);
            self.complete.push_back(std::mem::take(&mut self.partial));
            completed = completed.saturating_add(1);
        }
        Ok(completed)
    }

    /// The next message, without its NUL.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.complete.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.len()).saturating_sub(1);
        Some(message)
    }

    /// Whether a message waits.
    pub(super) fn has_message(&self) -> bool {
        !self.complete.is_empty()
    }

    /// Whether a message has begun and not ended.
    pub(super) fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max, self.messages_max);
    }
}

/// A message's bytes, with its NUL.
pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    // Only a map with keys that are no strings can fail, and the wire types have none.
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(0);
    bytes
}

/// Answers a method of `org.varlink.service`.
pub(super) fn answer_service(method: &str, parameters: &Parameters) -> Answer {
    match method {
        "GetInfo" => success(json!({
            "vendor": "pmr",
            "product": "pmr",
            "version": env!("CARGO_PKG_VERSION"),
            "url": env!("CARGO_PKG_REPOSITORY"),
            "interfaces": [SERVICE, INTERFACE],
        })),
        "GetInterfaceDescription" => match parameters.interface.as_deref() {
            Some(INTERFACE) => success(json!({ "description": DESCRIPTION })),
            Some(SERVICE) => success(json!({ "description": SERVICE_DESCRIPTION })),
            Some(other) => service_error("InterfaceNotFound", json!({ "interface": other })),
            None => invalid_parameter("interface"),
        },
        _ => method_not_found(&format!("{SERVICE}.{method}")),
    }
}

/// The end of a call that went well.
pub(super) fn success(parameters: Value) -> Answer {
    Answer { error: None, parameters, continues: false }
}

/// `org.varlink.service.InvalidParameter`.
pub(super) fn invalid_parameter(parameter: &str) -> Answer {
    service_error("InvalidParameter", json!({ "parameter": parameter }))
}

/// `org.varlink.service.MethodNotFound`.
pub(super) fn method_not_found(method: &str) -> Answer {
    service_error("MethodNotFound", json!({ "method": method }))
}

/// An error that every Varlink service has.
pub(super) fn service_error(name: &str, parameters: Value) -> Answer {
    Answer { error: Some(format!("{SERVICE}.{name}")), parameters, continues: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_at_nuls_however_they_arrive() {
        let bytes = b"one\0two\0\0thr";
        for chunk in 1..bytes.len() {
            let mut frames = Frames::new(100, 10);
            for part in bytes.chunks(chunk) {
                frames.push(part).unwrap();
            }
            assert!(frames.has_partial());
            let messages: Vec<_> = std::iter::from_fn(|| frames.pop()).collect();
            assert_eq!(messages, [&b"one"[..], b"two", b""]);
            frames.push(b"ee\0").unwrap();
            assert!(!frames.has_partial());
            assert_eq!(frames.pop().unwrap(), b"three");
            assert_eq!(frames.bytes, 0);
        }
    }

    #[test]
    fn bytes_and_messages_are_bounded() {
        let mut frames = Frames::new(10, 2);
        assert_eq!(frames.push(b"123456789"), Ok(0));
        assert_eq!(frames.push(b"\0"), Ok(1));
        assert_eq!(frames.push(b"x"), Err(Overflow::Bytes));
        let mut frames = Frames::new(10, 2);
        assert_eq!(frames.push(b"1\x002\0"), Ok(2));
        assert_eq!(frames.push(b"3"), Ok(0));
        assert_eq!(frames.push(b"\0"), Err(Overflow::Messages));
        frames.clear();
        assert!(!frames.has_message() && !frames.has_partial());
        assert_eq!(frames.push(b"123456789\0"), Ok(1));
    }
}
