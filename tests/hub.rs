//! Weights from the Hugging Face Hub, against a server of our own on this machine: downloading,
//! resuming, checksums, the cache that Python shares, and what is said when something is wrong.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wgrad::Error;
use wgrad::checkpoint::hub::{Hub, Progress};

const REPO: &str = "timm/resnet18.tv_in1k";
const FILE: &str = "model.safetensors";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves, and what it saw.
#[derive(Default)]
struct Behaviour {
    /// The file, behind a redirect as on the Hub.
    content: Vec<u8>,
    /// The checksum it claims.
    etag: String,
    /// Answer everything with this status instead.
    status: Option<u16>,
    /// Cut the connection after so many bytes, so many times.
    cuts: Vec<usize>,
    /// `Range` of every request for the content, and whether it came with a token.
    ranges: Vec<String>,
    tokens: Vec<Option<String>>,
}

struct Server {
    address: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Server {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (shared, base) = (behaviour.clone(), address.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, base) = (shared.clone(), base.clone());
                thread::spawn(move || drop(serve(stream.unwrap(), &base, &shared)));
            }
        });
        Self { address, behaviour }
    }

    fn ranges(&self) -> Vec<String> {
        self.behaviour.lock().unwrap().ranges.clone()
    }
}

/// Answers one request and closes.
fn serve(mut stream: TcpStream, base: &str, shared: &Mutex<Behaviour>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut behaviour = shared.lock().unwrap();
    if let Some(status) = behaviour.status {
        return write!(
            stream,
            "HTTP/1.1 {status} Trouble\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if path == format!("/{REPO}/resolve/main/{FILE}") {
        behaviour.tokens.push(headers.get("authorization").cloned());
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {base}/content\r\nx-repo-commit: {COMMIT}\r\n\
             x-linked-etag: \"{}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            behaviour.etag
        );
    }
    if path != "/content" {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let range = headers.get("range").cloned().unwrap_or_default();
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let size = behaviour.content.len();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(size, |last: usize| last + 1);
    behaviour.ranges.push(range.clone());
    if from >= size {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{size}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        to - 1,
        to - from
    )?;
    let is_probe = to - from == 1;
    let sent = match behaviour.cuts.first().copied() {
        Some(cut) if !is_probe => {
            behaviour.cuts.remove(0);
            (from + cut).min(to)
        }
        _ => to,
    };
    stream.write_all(&behaviour.content[from..sent])
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content() -> Vec<u8> {
    (0..300_000u64).map(|i| ((i * i) >> 7) as u8).collect()
}

fn honest() -> Behaviour {
    Behaviour { content: content(), etag: sha256(&content()), ..Behaviour::default() }
}

fn hub(variables: &[(&str, &str)]) -> Hub {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    Hub::from_vars(|name| variables.get(name).map(|value| value.to_string()))
}

/// A Hub at the server, its cache in `home`.
fn hub_at(server: &Server, home: &TempDir) -> Hub {
    hub(&[("HF_ENDPOINT", &server.address), ("HF_HOME", home.path().to_str().unwrap())])
}

fn fetch(hub: &Hub) -> Result<PathBuf, Error> {
    hub.fetch(REPO, FILE, &mut |_| {})
}

#[track_caller]
fn refusal(hub: &Hub) -> String {
    match fetch(hub) {
        Err(error @ Error::Checkpoint { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The repository's folder in a cache.
fn repo_folder(cache: &Path) -> PathBuf {
    cache.join("models--timm--resnet18.tv_in1k")
}

/// A cache as Python's huggingface_hub leaves it.
fn prepare_cache(cache: &Path, content: &[u8], etag: &str) -> PathBuf {
    let repo = repo_folder(cache);
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [repo.join("refs"), repo.join("blobs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    fs::write(repo.join("blobs").join(etag), content).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(format!("../../blobs/{etag}"), snapshot.join(FILE)).unwrap();
    #[cfg(not(unix))]
    fs::write(snapshot.join(FILE), content).unwrap();
    snapshot.join(FILE)
}

fn number_of_blobs(home: &TempDir) -> usize {
    let blobs = repo_folder(&home.path().join("hub")).join("blobs");
    let files = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_none_or(|extension| extension != "lock")).count()
}

#[test]
fn a_download_lands_in_the_cache_and_is_found_again_offline() {
    let (server, home) = (Server::start(honest()), home());
    let mut seen = Vec::new();
    let path = hub_at(&server, &home).fetch(REPO, FILE, &mut |now| seen.push(now)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content());
    assert!(path.ends_with(format!("models--timm--resnet18.tv_in1k/snapshots/{COMMIT}/{FILE}")));
    let size = content().len() as u64;
    assert_eq!(seen.last(), Some(&Progress { downloaded: size, total: size }));
    assert!(seen.is_sorted_by_key(|now| now.downloaded), "progress goes back");

    let offline = [("HF_HOME", home.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")];
    assert_eq!(fetch(&hub(&offline)).unwrap(), path);
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let (server, home) =
        (Server::start(Behaviour { cuts: vec![100_000, 50_000], ..honest() }), home());
    let path = fetch(&hub_at(&server, &home)).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    let ranges = server.ranges();
    let downloads: Vec<_> = ranges.iter().filter(|range| range.ends_with('-')).collect();
    assert_eq!(downloads, ["bytes=0-", "bytes=100000-", "bytes=150000-"]);
}

#[test]
fn what_has_arrived_is_kept_for_the_next_run() {
    let (server, home) = (Server::start(Behaviour { cuts: vec![70_000; 3], ..honest() }), home());
    let message = refusal(&hub_at(&server, &home));
    assert!(message.contains("kept and resumed"), "{message}");
    let path = fetch(&hub_at(&server, &home)).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    assert_eq!(server.ranges().last().unwrap(), "bytes=210000-");
}

#[test]
fn a_part_that_is_already_whole_does_not_get_in_the_way() {
    let (server, home) = (Server::start(honest()), home());
    let blobs = repo_folder(&home.path().join("hub")).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(sha256(&content())).with_extension("part"), vec![7; content().len()])
        .unwrap();
    assert_eq!(fs::read(fetch(&hub_at(&server, &home)).unwrap()).unwrap(), content());
}

#[test]
fn a_download_with_another_checksum_is_removed() {
    let (server, home) = (Server::start(honest()), home());
    server.behaviour.lock().unwrap().content[1000] ^= 1;
    let message = refusal(&hub_at(&server, &home));
    assert!(message.contains("SHA-256") && message.contains("removed"), "{message}");
    assert_eq!(number_of_blobs(&home), 0);

    server.behaviour.lock().unwrap().content[1000] ^= 1;
    assert_eq!(fs::read(fetch(&hub_at(&server, &home)).unwrap()).unwrap(), content());
}

#[test]
fn what_python_has_downloaded_is_found_without_asking_anyone() {
    let (home, cache) = (home(), home());
    let (home, cache) = (home.path(), cache.path());
    let nowhere = ("HF_ENDPOINT", "http://127.0.0.1:1");
    let in_home = prepare_cache(&home.join("hub"), &content(), &sha256(&content()));
    let in_cache = prepare_cache(cache, &content(), &sha256(&content()));
    let (home, cache) = (home.to_str().unwrap(), cache.to_str().unwrap());
    assert_eq!(fetch(&hub(&[nowhere, ("HF_HOME", home)])).unwrap(), in_home);
    let both = [nowhere, ("HF_HOME", home), ("HF_HUB_CACHE", cache)];
    assert_eq!(fetch(&hub(&both)).unwrap(), in_cache);
    let xdg = Path::new(home).join("xdg");
    let in_xdg = prepare_cache(&xdg.join("huggingface/hub"), &content(), &sha256(&content()));
    assert_eq!(fetch(&hub(&[nowhere, ("XDG_CACHE_HOME", xdg.to_str().unwrap())])).unwrap(), in_xdg);
}

#[cfg(unix)]
#[test]
fn a_damaged_file_in_the_cache_is_found_and_removed() {
    let home = home();
    let path = prepare_cache(&home.path().join("hub"), b"cut off", &sha256(&content()));
    let message = refusal(&hub(&[("HF_HOME", home.path().to_str().unwrap())]));
    assert!(message.contains("damaged") && message.contains("run again"), "{message}");
    assert!(!path.is_symlink());
    assert_eq!(number_of_blobs(&home), 0);
}

#[test]
fn small_files_whose_tag_is_no_sha256_are_taken_as_they_are() {
    let etag = "da39a3ee5e6b4b0d3255bfef95601890afd80709".to_owned();
    let (server, home) = (Server::start(Behaviour { etag, ..honest() }), home());
    assert_eq!(fs::read(fetch(&hub_at(&server, &home)).unwrap()).unwrap(), content());
}

#[test]
fn without_network_the_message_says_what_to_do() {
    let home = home();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{closed}");
    let folder = home.path().to_str().unwrap();
    let message = refusal(&hub(&[("HF_ENDPOINT", &endpoint), ("HF_HOME", folder)]));
    for part in
        ["hf:timm/resnet18.tv_in1k/model.safetensors", &endpoint, folder, "--weights bundled"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    for yes in ["1", "true", "YES", "on"] {
        let message = refusal(&hub(&[("HF_HOME", folder), ("HF_HUB_OFFLINE", yes)]));
        assert!(message.contains("HF_HUB_OFFLINE is set") && message.contains(folder), "{message}");
    }
}

#[test]
fn https_is_spoken_and_nonsense_for_an_endpoint_is_an_error() {
    let home = home();
    let folder = ("HF_HOME", home.path().to_str().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let first_byte = thread::spawn(move || {
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        byte[0]
    });
    refusal(&hub(&[("HF_ENDPOINT", &endpoint), folder]));
    const TLS_HANDSHAKE: u8 = 22;
    assert_eq!(first_byte.join().unwrap(), TLS_HANDSHAKE);

    for endpoint in ["huggingface.co", "ftp://huggingface.co", "http://", "not an address"] {
        assert!(refusal(&hub(&[("HF_ENDPOINT", endpoint), folder])).contains(endpoint));
    }
}

#[test]
fn refusals_of_the_server_are_explained() {
    for (status, part) in [(404, "no such repository"), (401, "HF_TOKEN"), (503, "try again later")]
    {
        let (server, home) =
            (Server::start(Behaviour { status: Some(status), ..honest() }), home());
        let message = refusal(&hub_at(&server, &home));
        assert!(message.contains(part) && message.contains(&status.to_string()), "{message}");
    }
}

#[test]
fn the_token_comes_from_the_environment_or_from_the_login() {
    let (server, home) = (Server::start(honest()), home());
    fs::write(home.path().join("token"), "saved\n").unwrap();
    let folder = home.path().to_str().unwrap();
    let endpoint = ("HF_ENDPOINT", server.address.as_str());
    let elsewhere = home.path().join("elsewhere");
    let elsewhere = ("HF_HUB_CACHE", elsewhere.to_str().unwrap());
    fetch(&hub(&[endpoint, ("HF_HOME", folder)])).unwrap();
    fetch(&hub(&[endpoint, ("HF_HOME", folder), elsewhere, ("HF_TOKEN", "given")])).unwrap();
    let tokens = server.behaviour.lock().unwrap().tokens.clone();
    assert_eq!(tokens.first().unwrap().as_deref(), Some("Bearer saved"));
    assert_eq!(tokens.last().unwrap().as_deref(), Some("Bearer given"));
}
