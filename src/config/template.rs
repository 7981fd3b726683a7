//! The commented example that `pmr init` writes.

/// A config for an app called `name`, with every key, its default and what it means. All but the
/// script, the instances and the port is commented out.
pub fn template(name: &str) -> String {
    include_str!("template.toml").replace("@NAME@", name)
}
