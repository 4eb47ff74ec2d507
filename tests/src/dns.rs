//! A resolver whose answers change: for each name the addresses of the first question, of the second, and so on.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

/// The type of a question for addresses of IPv4 (RFC 1035).
const A: u16 = 1;
/// The bytes before the questions.
const HEADER: usize = 12;

/// The resolver, at 127.0.0.1:53: for a [`namespace`](crate::namespace) of a test's own. It ends when it is dropped.
#[derive(Debug)]
pub struct Dns {
    names: Arc<Mutex<HashMap<String, Name>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Name {
    answers: Vec<Vec<Ipv4Addr>>,
    asked: usize,
}

impl Dns {
    /// Starts it.
    ///
    /// # Panics
    /// When the port is not free, or may not be taken.
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

    /// A name's addresses: one answer after the other, the last for good. Others do not exist.
    ///
    /// # Panics
    /// When one is no address of IPv4.
    pub fn name(&self, name: &str, answers: &[&[&str]]) -> &Self {
        let address = |text: &&str| text.parse().expect("an address");
        let answers = answers.iter().map(|addresses| addresses.iter().map(address).collect()).collect();
        self.names.lock().expect("the names are whole").insert(name.to_owned(), Name { answers, asked: 0 });
        self
    }

    /// How often a name's addresses of IPv4 were asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.names.lock().expect("the names are whole").get(name).map_or(0, |name| name.asked)
    }
}

impl Drop for Dns {
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
            let found = name.answers.get(name.asked).or(name.answers.last()).cloned().unwrap_or_default();
            name.asked += 1;
            (0, found)
        }
        Some(_) => (0, Vec::new()),
    };
    // An answer, recursion desired and available; one question, some answers.
    let mut all =
        vec![packet[0], packet[1], 0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0];
    all.extend_from_slice(question);
    for address in addresses {
        // The name of the question, type A, class IN, no time to live.
        all.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        all.extend_from_slice(&address.octets());
    }
    Some(all)
}
