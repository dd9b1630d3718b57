//! Snapshots in real object stores: moto for S3, Debian's registry for OCI. Ignored, and reported so, where one is missing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use snapshot::{Environment, Target, TargetError};

/// A server of this test; killed at the end.
struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program on a free port and waits until it accepts connections.
    fn start(command: impl FnOnce(&Path, u16) -> Command) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut command = command(folder.path(), port);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let server = Server { child, port, folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not answer\n{}", log());
            std::thread::yield_now();
        }
        server
    }

    /// One plain request; the first line of the answer.
    fn request(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

fn target(url: &str) -> Target {
    // A test process installs the provider once; another test may have done so.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Target::parse(url, &Environment::EMPTY).unwrap()
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// What every place must do.
async fn holds_snapshots(url: &str, other: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    let place = target(url);
    let missing = place.get(&got).await.unwrap_err();
    assert!(matches!(missing, TargetError::NotFound { .. }), "{missing}");
    for length in [10_usize, 3 << 20] {
        // Twice: a snapshot replaces the one before it.
        let content: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
        std::fs::write(&sent, &content).unwrap();
        place.put(&sent).await.unwrap();
        place.get(&got).await.unwrap();
        assert_eq!(std::fs::read(&got).unwrap(), content, "{length} bytes");
        let found = place.list().await.unwrap();
        let own: Vec<_> = found.iter().filter(|found| found.url == place.url()).collect();
        assert_eq!(own.len(), 1, "{found:?}");
        assert_eq!(own[0].size_bytes, Some(length as u64));
        assert!(own[0].saved_at.is_some());
    }
    // Another content: a registry removes what is the same together.
    std::fs::write(&sent, "another").unwrap();
    target(other).put(&sent).await.unwrap();
    assert_eq!(place.list().await.unwrap().len(), 2, "both are found");
    place.delete().await.unwrap();
    let gone = place.get(&got).await.unwrap_err();
    assert!(matches!(gone, TargetError::NotFound { .. }), "{gone}");
    target(other).get(&got).await.unwrap();
}

#[tokio::test]
#[cfg_attr(not(moto), ignore = "moto_server is not installed")]
async fn s3_holds_snapshots() {
    let server = Server::start(|folder, port| {
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).current_dir(folder);
        command
    });
    assert!(server.request("PUT /backups").contains("200"));
    let parameters = format!(
        "url={}&access-key-id={}&secret-access-key={}&region=us-east-1",
        base64(&format!("http://127.0.0.1:{}", server.port)),
        base64("key"),
        base64("secret")
    );
    let url = |key: &str| format!("s3://backups/{key}?{parameters}");
    holds_snapshots(&url("team/a"), &url("team/a-later")).await;
    let tagged = format!("{}&tagging={}&server-side-encryption={}", url("tagged"), base64("a=b"), base64("AES256"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    std::fs::write(&file, "content").unwrap();
    target(&tagged).put(&file).await.unwrap();
    let nowhere = target(&format!("s3://nowhere/key?{parameters}")).put(&file).await.unwrap_err();
    assert!(nowhere.to_string().contains("NoSuchBucket"), "{nowhere}");
    assert!(!nowhere.to_string().contains("secret"), "{nowhere}");
}

#[tokio::test]
#[cfg_attr(not(docker_registry), ignore = "docker-registry is not installed")]
async fn a_registry_holds_snapshots() {
    let server = Server::start(|folder, port| {
        let config = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            folder.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config);
        command
    });
    let url = |tag: &str| format!("oci://127.0.0.1:{}/backups/team-a:{tag}", server.port);
    holds_snapshots(&url("friday"), &url("saturday")).await;
}

#[tokio::test]
async fn an_address_at_which_nobody_answers_is_said() {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    std::fs::write(&file, "content").unwrap();
    let place = base64(&format!("http://127.0.0.1:{port}"));
    for url in [format!("s3://b/k?url={place}&region=r"), format!("oci://127.0.0.1:{port}/a:b")] {
        let error = target(&url).put(&file).await.unwrap_err();
        assert!(matches!(error, TargetError::Http { .. }), "{error:?}");
    }
}
