//! What of clients' keys is in the gateway's memory once their requests are over.
//!
//! Nothing overwrites memory that is given back, so the last keys may still be read in buffers that
//! wait to be used again; what must not be is that keys pile up with the requests. An upstream's own
//! key is in memory for as long as it is configured, of necessity, which also shows that the
//! search finds what is there.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;

use tidegate::sim::{Options, Sim};

use crate::canary::Canary;
use crate::stage::client::{CHAT, STREAM};
use crate::stage::program::Program;
use crate::stage::{Client, Http, Metrics, scrape};

/// Every client's key begins with this, behind which is its number in so many digits.
const MARK: &str = "canary-of-client-";
const DIGITS: usize = 6;
/// Requests of each kind over either protocol, each with a key of its own.
const EACH: usize = 150;
/// Fewer keys than this may be left. Some six were seen after HTTP/1.1, and after HTTP/2 160: as many of
/// the last requests as fit into the 64 KiB that a connection was read into.
const LEFT: usize = 450;

const _: () = assert!(LEFT < 4 * EACH, "a kind of request that keeps its key is seen");

/// Reads what the process `id` has in memory that it can write to, piece by piece.
fn memory(id: u32, mut look: impl FnMut(&[u8])) {
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).expect("its maps");
    let mut memory = std::fs::File::open(format!("/proc/{id}/mem")).expect("our child's memory");
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("a number");
        let (from, to) = (number(from), number(to));
        let mut piece = vec![0; usize::try_from(to - from).expect("an address space")];
        memory.seek(SeekFrom::Start(from)).expect("an address");
        // Of what is mapped but not readable, such as the kernel's own pages, there is nothing.
        if memory.read_exact(&mut piece).is_ok() {
            look(&piece);
        }
    }
}

/// The numbers of the clients whose keys are in the memory of `program`, and whether `own` is.
fn keys_in(program: &Program, own: &Canary) -> (HashSet<String>, bool) {
    let (mut clients, mut found) = (HashSet::new(), false);
    memory(program.id(), |piece| {
        found |= memchr::memmem::find(piece, own.text.as_bytes()).is_some();
        for at in memchr::memmem::find_iter(piece, MARK) {
            let number = piece[at + MARK.len()..].iter().take(DIGITS).copied();
            clients.insert(String::from_utf8_lossy(&number.collect::<Vec<_>>()).into_owned());
        }
    });
    (clients, found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_keys_do_not_pile_up_in_memory() {
    let own = Canary::new("own");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sim = Sim::start(any, Options::default()).await.expect("an upstream");
    let files = tempfile::tempdir().expect("a folder");
    let config = files.path().join("gateway.toml");
    let text = format!(
        "[server]\nworkers = 1\n[log]\nlevel = \"off\"\n[limits]\nfailed_keys_per_minute = 0\n\
         [[tenant]]\nname = \"t\"\n\
         [[upstream]]\nname = \"own\"\nurls = [\"http://{0}\"]\ncredential = {{ env = \"CANARY\" }}\n\
         [[upstream]]\nname = \"plain\"\nurls = [\"http://{0}\"]\n\
         [[route]]\npath = \"/own/v1/{{*rest}}\"\nupstream = \"own\"\nauth = \"none\"\n\
         [[route]]\npath = \"/plain/v1/{{*rest}}\"\nupstream = \"plain\"\nauth = \"none\"\n\
         [[route]]\npath = \"/asks/v1/{{*rest}}\"\nupstream = \"plain\"\nauth = \"key\"\n",
        sim.addr()
    );
    std::fs::write(&config, text).expect("a file");
    let path = config.to_str().expect("UTF-8");
    let program = Program::serve_with(&["--config", path], &[("CANARY", &own.text)]);
    let mut asked = 0;
    for http in [Http::H1, Http::H2, Http::H1, Http::H2] {
        let mut client = Client::connect(program.listen, http, None).await;
        // Its key is taken away, is passed on, is refused.
        for (place, status) in [("own", 200), ("plain", 200), ("asks", 401)] {
            for _ in 0..EACH {
                let key = format!("Bearer {MARK}{asked:0DIGITS$}");
                asked += 1;
                let fields = [
                    ("authorization", key.as_str()),
                    ("x-api-key", &key["Bearer ".len()..]),
                    ("sim-count", "1"),
                ];
                let path = format!("/{place}{CHAT}");
                let answer = client.ask("POST", &path, &fields, STREAM).await;
                assert_eq!(answer.status, status, "{}", answer.text());
            }
        }
    }
    let left = |m: &Metrics| m.live() == 0.0 && m.sum("tidegate_connections_live") == 0.0;
    scrape::until(program.admin, "all have left", left).await;
    let (left, found) = keys_in(&program, &own);
    assert!(found, "the search finds what is there");
    println!("{} keys of {asked} are left in memory", left.len());
    assert!(left.len() < LEFT, "{} keys of {asked} are left: {left:?}", left.len());
}
