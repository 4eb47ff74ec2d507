//! A resolver with scripted answers: for each name, the addresses for the first query, the second, and so on.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

/// Query type of IPv4 addresses (RFC 1035).
const A: u16 = 1;
/// Length of the message header.
const HEADER: usize = 12;

/// A resolver at 127.0.0.1:53, for use in a [`namespace`](crate::namespace). It stops on drop.
#[derive(Debug)]
pub struct DnsServer {
    names: Arc<Mutex<HashMap<String, Name>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Name {
    answers: Vec<Vec<Ipv4Addr>>,
    queries: usize,
}

impl DnsServer {
    /// Starts the resolver.
    ///
    /// # Panics
    /// If the port is taken or may not be bound.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").await.expect("the port is free in a network of one's own");
        let names: Arc<Mutex<HashMap<String, Name>>> = Arc::default();
        let known = Arc::clone(&names);
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                if let Some(answer) = answer(&packet[..length], &known) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { names, task }
    }

    /// Sets a name's addresses, one list per query; the last list repeats. Other names do not exist.
    ///
    /// # Panics
    /// If an address is not IPv4.
    pub fn set_answers(&self, name: &str, answers: &[&[&str]]) -> &Self {
        let address = |text: &&str| text.parse().expect("an address");
        let answers = answers.iter().map(|addresses| addresses.iter().map(address).collect()).collect();
        self.names.lock().expect("the names are whole").insert(name.to_owned(), Name { answers, queries: 0 });
        self
    }

    /// Counts the queries for IPv4 addresses of a name.
    pub fn query_count(&self, name: &str) -> usize {
        self.names.lock().expect("the names are whole").get(name).map_or(0, |name| name.queries)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(packet: &[u8], names: &Mutex<HashMap<String, Name>>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (HEADER, Vec::new());
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + length)?).to_ascii_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([*packet.get(at + 1)?, *packet.get(at + 2)?]);
    let question = packet.get(HEADER..at + 5)?;
    let mut names = names.lock().expect("the names are whole");
    let known = names.get_mut(&labels.join("."));
    let (code, addresses) = match known {
        None => (3, Vec::new()),
        Some(name) if kind == A => {
            let found = name.answers.get(name.queries).or(name.answers.last()).cloned().unwrap_or_default();
            name.queries += 1;
            (0, found)
        }
        Some(_) => (0, Vec::new()),
    };
    // Flags: response, recursion desired and available. One question, some answers.
    let mut all =
        vec![packet[0], packet[1], 0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0];
    all.extend_from_slice(question);
    for address in addresses {
        // The question's name, type A, class IN, TTL 0.
        all.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        all.extend_from_slice(&address.octets());
    }
    Some(all)
}
