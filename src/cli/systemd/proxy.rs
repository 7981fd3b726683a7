//! What is asked of the service manager, as `org.freedesktop.systemd1(5)` has it.

use std::collections::BTreeMap;

use zbus::zvariant::{OwnedObjectPath, OwnedValue};

/// The bus name of a service manager.
pub(super) const SERVICE: &str = "org.freedesktop.systemd1";

/// Its object.
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// The interface of every unit.
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// The interface of services.
pub(super) const SERVICE_UNIT: &str = "org.freedesktop.systemd1.Service";

/// What the manager does. Where polkit asks a person first, it may.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
pub(super) trait Systemd1 {
    /// Signals of jobs are sent from now on.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Enqueues a job.
    #[zbus(allow_interactive_auth)]
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Enqueues a job.
    #[zbus(allow_interactive_auth)]
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Forgets that it failed, and how often it was started.
    #[zbus(allow_interactive_auth)]
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    /// Says whether there is anything to enable in the unit, and the links that were made: what was
    /// done, the link, what it points to.
    #[zbus(allow_interactive_auth)]
    fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<(String, String, String)>)>;

    /// The links that were removed.
    #[zbus(allow_interactive_auth)]
    fn disable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
    ) -> zbus::Result<Vec<(String, String, String)>>;

    /// Reads all unit files again.
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
}

/// What a unit is, in one message for each interface. (Its path is enough: it need not be loaded.)
#[zbus::proxy(
    interface = "org.freedesktop.DBus.Properties",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
pub(super) trait Properties {
    /// All properties of an interface.
    fn get_all(&self, interface: &str) -> zbus::Result<BTreeMap<String, OwnedValue>>;
}

/// The name of the unit of an app.
pub(in crate::cli) fn unit_name(app: &str) -> String {
    format!("pmr@{app}.service")
}

/// The object of a unit: whatever is no letter or digit is written in hexadecimal, as
/// `sd_bus_path_encode(3)` does. A unit's name begins with a letter here, so the first character
/// needs no more.
pub(super) fn unit_path(app: &str) -> String {
    let unit = unit_name(app);
    let encoded = unit.bytes().map(|byte| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("_{byte:02x}"),
    });
    format!("{MANAGER_PATH}/unit/{}", encoded.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_paths_that_systemd_gives_them() {
        // As `busctl tree org.freedesktop.systemd1` shows them.
        let path = "/org/freedesktop/systemd1/unit/pmr_40track_2dbackend_2eservice";
        assert_eq!(unit_path("track-backend"), path);
        assert!(unit_path("a_1.b").ends_with("/pmr_40a_5f1_2eb_2eservice"));
    }
}
