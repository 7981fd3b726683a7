//! Why the service manager did not do what it was asked.

use std::fmt;
use std::io;

/// The unit of polkit, which the bus starts when systemd asks whether a caller may do something.
const POLKIT_UNIT: &str = "polkit.service";

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusError {
    /// There is no bus, or it does not let us in.
    Unreachable(String),
    /// The same of the bus of a user's service manager.
    UserUnreachable(String),
    /// Nothing was answered in time.
    NoAnswer,
    /// The connection ended.
    Lost,
    /// There is a bus, but no service manager on it.
    NoManager,
    /// The caller may not do this.
    Denied,
    /// There is no such unit.
    NoUnit,
    /// The unit is masked.
    Masked,
    /// The unit has no `[Install]`.
    NothingToEnable,
    /// Something else, in systemd's words.
    Refused(String),
}

impl BusError {
    /// Whether nobody was there to ask: a socket may still do something.
    pub(in crate::cli) fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::UserUnreachable(_)
            | Self::NoAnswer
            | Self::Lost
            | Self::NoManager => true,
            Self::Denied
            | Self::NoUnit
            | Self::Masked
            | Self::NothingToEnable
            | Self::Refused(_) => false,
        }
    }

    /// The error of this D-Bus name.
    fn named(name: &str, message: String) -> Self {
        match name {
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.AuthFailed"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => Self::Denied,
            "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner"
            | "org.freedesktop.DBus.Error.Spawn.ChildExited"
            | "org.freedesktop.DBus.Error.Spawn.ChildSignaled"
            | "org.freedesktop.DBus.Error.Spawn.ServiceNotFound" => Self::NoManager,
            "org.freedesktop.DBus.Error.NoReply"
            | "org.freedesktop.DBus.Error.Timeout"
            | "org.freedesktop.DBus.Error.TimedOut" => Self::NoAnswer,
            "org.freedesktop.DBus.Error.Disconnected" => Self::Lost,
            "org.freedesktop.DBus.Error.FileNotFound" | "org.freedesktop.systemd1.NoSuchUnit" => {
                Self::NoUnit
            }
            // polkit itself is not there: only root may do it, then. Where its unit is masked, the
            // bus passes on what systemd says of that.
            "org.freedesktop.systemd1.UnitMasked" if message.contains(POLKIT_UNIT) => Self::Denied,
            "org.freedesktop.systemd1.UnitMasked" => Self::Masked,
            name if name.starts_with("org.freedesktop.PolicyKit1.Error.") => Self::Denied,
            name if message.is_empty() => Self::Refused(name.to_owned()),
            _ => Self::Refused(message),
        }
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "systemd cannot be reached over D-Bus: {why}"),
            Self::UserUnreachable(why) => {
                write!(f, "this user's systemd cannot be reached over D-Bus: {why}")
            }
            Self::NoAnswer => write!(f, "systemd does not answer over D-Bus"),
            Self::Lost => write!(f, "the connection to systemd ended"),
            Self::NoManager => write!(f, "there is a D-Bus, but systemd is not on it"),
            Self::Denied => write!(f, "systemd lets only root do this, or whom polkit allows it"),
            Self::NoUnit => write!(f, "systemd knows no unit pmr@.service"),
            Self::Masked => write!(f, "its unit is masked"),
            Self::NothingToEnable => write!(f, "the unit pmr@.service has no [Install] section"),
            Self::Refused(why) => write!(f, "systemd says: {}", why.trim_end_matches('.')),
        }
    }
}

impl std::error::Error for BusError {}

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, message, _) => {
                Self::named(name.as_str(), message.unwrap_or_default())
            }
            zbus::Error::InputOutput(source) => match source.kind() {
                io::ErrorKind::TimedOut => Self::NoAnswer,
                _ => Self::Lost,
            },
            zbus::Error::Connection(source, _) => Self::Unreachable(source.to_string()),
            zbus::Error::Address(why) => Self::Unreachable(format!("its address is wrong: {why}")),
            zbus::Error::Handshake(why) => Self::Unreachable(why),
            other => Self::Refused(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_bus_has_its_meaning() {
        let named = |name: &str| BusError::named(name, "Some words.".to_owned());
        for (name, error) in [
            ("org.freedesktop.DBus.Error.AccessDenied", BusError::Denied),
            ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", BusError::Denied),
            ("org.freedesktop.PolicyKit1.Error.Failed", BusError::Denied),
            ("org.freedesktop.DBus.Error.NoReply", BusError::NoAnswer),
            ("org.freedesktop.DBus.Error.ServiceUnknown", BusError::NoManager),
            ("org.freedesktop.systemd1.NoSuchUnit", BusError::NoUnit),
            ("org.freedesktop.systemd1.UnitMasked", BusError::Masked),
        ] {
            assert_eq!(named(name), error, "{name}");
        }
        let masked = "Unit polkit.service is masked.".to_owned();
        let denied = BusError::named("org.freedesktop.systemd1.UnitMasked", masked);
        assert_eq!(denied, BusError::Denied);
        let other = named("org.freedesktop.systemd1.JobTypeNotApplicable");
        assert_eq!(other.to_string(), "systemd says: Some words");
        let nameless = BusError::named("org.freedesktop.systemd1.LoadFailed", String::new());
        assert!(nameless.to_string().ends_with("LoadFailed"), "{nameless}");
    }
}
