//! What all workers of an app share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::address::Address;

/// Longest `data` of a server, in bytes. Node has one use for it: 48 bytes of TLS ticket keys, as
/// hexadecimal digits in an object.
pub const DATA_MAX: usize = 1024;

/// Most servers of which something is remembered: with their data they must have room in the
/// recorded state.
const SERVERS_MAX: usize = 128;

/// What all workers of an app share: the `data` of each server, and the port that the kernel chose
/// where port 0 was asked for.
///
/// It belongs to the recorded state: without it, workers of the next supervisor would not take up
/// TLS sessions of the others, and `listen(0)` would give them another port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hub {
    servers: BTreeMap<String, Server>,
    /// Grows with each request.
    requests: u64,
}

/// What is shared of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Server {
    /// JSON text: what the first worker that had any said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// The last request for it.
    request: u64,
}

impl Hub {
    /// A worker asks for a server. The first `data` of a server holds for all workers.
    ///
    /// `index` counts the servers that one worker has at the same address. It tells two with port
    /// 0 apart; any other port is the same socket for all of them, as with Node since 22.
    ///
    /// When there is no room, the server that was not asked for the longest is forgotten: workers
    /// that are started later will share less with those of before, and work as well.
    pub(super) fn enter(&mut self, address: &Address, index: u32, data: Option<&str>) {
        self.requests = self.requests.wrapping_add(1);
        if data.is_none() && address.port() != Some(0) {
            return;
        }
        let server = self.servers.entry(name(address, index)).or_default();
        server.request = self.requests;
        if server.data.is_none() {
            server.data = data.map(str::to_owned);
        }
        if self.servers.len() > SERVERS_MAX {
            let oldest = self.servers.iter().min_by_key(|(_, server)| server.request);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.servers.remove(&name);
            }
        }
    }

    /// The address with the port that it has for all workers, as far as it is known.
    pub(super) fn resolved(&self, address: &Address, index: u32) -> Address {
        let port = self.servers.get(&name(address, index)).and_then(|server| server.port);
        port.map_or_else(|| address.clone(), |port| address.with_port(port))
    }

    /// The kernel chose a port: it is that of all workers from now on.
    pub(super) fn resolve(&mut self, address: &Address, index: u32, chosen: Option<u16>) {
        if address.port() == Some(0)
            && let Some(server) = self.servers.get_mut(&name(address, index))
        {
            server.port = server.port.or(chosen);
        }
    }

    /// What a worker is told as the server's `data`: JSON text.
    pub(super) fn data(&self, address: &Address, index: u32) -> Option<&str> {
        self.servers.get(&name(address, index))?.data.as_deref()
    }

    /// Forgets the servers at addresses that are not used any more. To be called when a release is
    /// gone, with what is left: addresses with their real ports.
    pub fn retain(&mut self, used: impl Fn(&Address) -> bool) {
        self.servers.retain(|name, server| {
            let text = match name.split_once('#') {
                Some((address, _)) if !name.starts_with('/') => address,
                _ => name,
            };
            let address = text.parse::<Address>().ok();
            let address = address.map(|it| match server.port {
                Some(port) => it.with_port(port),
                None => it,
            });
            address.is_some_and(|address| used(&address))
        });
    }
}

/// In the text of an address with a port there is no `#`.
fn name(address: &Address, index: u32) -> String {
    if address.port() == Some(0) { format!("{address}#{index}") } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_data_of_a_server_holds() {
        let mut hub = Hub::default();
        hub.enter(&at("[::]:80"), 0, None);
        assert_eq!(hub.data(&at("[::]:80"), 0), None);
        hub.enter(&at("[::]:80"), 0, Some("1"));
        hub.enter(&at("[::]:80"), 3, Some("2"));
        hub.enter(&at("[::]:81"), 0, Some("3"));
        assert_eq!(hub.data(&at("[::]:80"), 1), Some("1"));
        assert_eq!(hub.data(&at("[::]:81"), 0), Some("3"));
    }

    #[test]
    fn a_chosen_port_is_that_of_all_workers() {
        let mut hub = Hub::default();
        let any = at("[::]:0");
        hub.enter(&any, 0, None);
        hub.enter(&any, 1, None);
        assert_eq!(hub.resolved(&any, 0), any);
        hub.resolve(&any, 0, Some(4000));
        hub.resolve(&any, 0, Some(5000));
        hub.resolve(&any, 1, Some(6000));
        assert_eq!(hub.resolved(&any, 0), at("[::]:4000"));
        assert_eq!(hub.resolved(&any, 1), at("[::]:6000"));
        hub.resolve(&at("[::]:80"), 0, Some(7000));
        assert_eq!(hub.resolved(&at("[::]:80"), 0), at("[::]:80"));

        let text = serde_json::to_string(&hub).unwrap();
        assert_eq!(serde_json::from_str::<Hub>(&text).unwrap(), hub);
        hub.retain(|address| *address == at("[::]:6000"));
        assert_eq!(hub.resolved(&any, 0), any);
        assert_eq!(hub.resolved(&any, 1), at("[::]:6000"));
    }

    #[test]
    fn the_server_that_was_not_asked_for_the_longest_is_forgotten() {
        let mut hub = Hub::default();
        hub.enter(&at("[::]:0"), 0, None);
        hub.resolve(&at("[::]:0"), 0, Some(9));
        for port in 1..=u16::try_from(2 * SERVERS_MAX).unwrap() {
            hub.enter(&at("[::]:0").with_port(port), 0, Some("1"));
            hub.enter(&at("[::]:0"), 0, None);
            hub.enter(&at("[::1]:0").with_port(port), 0, None);
        }
        assert_eq!(hub.servers.len(), SERVERS_MAX);
        assert_eq!(hub.resolved(&at("[::]:0"), 0), at("[::]:9"));
        assert_eq!(hub.data(&at("[::]:1"), 0), None);
        assert_eq!(hub.data(&at("[::]:256"), 0), Some("1"));
    }

    #[test]
    fn what_is_not_used_any_more_is_forgotten() {
        let mut hub = Hub::default();
        for text in ["/run/a#1", "[::]:80", "udp:0.0.0.0:0"] {
            hub.enter(&at(text), 0, Some("1"));
        }
        hub.retain(|address| *address == at("/run/a#1") || *address == at("udp:0.0.0.0:0"));
        assert_eq!(hub.servers.len(), 2);
        hub.retain(|_| false);
        assert_eq!(hub.servers.len(), 0);
    }
}
