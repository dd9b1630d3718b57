//! Runs the image in an empty root, as a container runtime would: nothing of this machine can be seen there.

use std::io::Read;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::{USER, archive, say};

/// A name that only our own DNS server knows.
const NAME: &str = "api.alcove.test";
/// Where that server listens: no other one is likely to.
const DNS: &str = "127.77.0.1";
const DEADLINE: Duration = Duration::from_secs(60);

pub fn run(image: &[u8]) -> anyhow::Result<()> {
    let layer = archive::layer_of(image)?;
    let folder = std::env::temp_dir().join(format!("alcove-image-{}", std::process::id()));
    let result = unpack(&layer, &folder).and_then(|()| in_root(&folder));
    let removed = std::fs::remove_dir_all(&folder);
    result?;
    removed.with_context(|| format!("remove {}", folder.display()))
}

fn unpack(layer: &[u8], folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    archive.set_preserve_permissions(true);
    archive.unpack(folder).context("unpack the layer")
}

/// A command in the new root. Root becomes the image's user; others need user namespaces.
fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("chroot");
        command.arg(format!("--userspec={USER}:{USER}")).arg(root);
        command
    } else {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--root"]).arg(root);
        command
    };
    command.arg("/usr/local/bin/alcove").args(arguments).current_dir("/").env_clear().env("HOME", "/tmp");
    // Of this machine: where the tool that changes the root is.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

fn output(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = command(root, arguments).output().with_context(|| format!("run alcove {}", arguments.join(" ")))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "alcove {}: {}\n{error}", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn in_root(root: &Path) -> anyhow::Result<()> {
    if !is_root() && !command(root, &["version"]).output().is_ok_and(|output| output.status.success()) {
        say("skipped: running the image needs root or user namespaces");
        return Ok(());
    }
    if is_root() {
        // What every container runtime provides; without root, the binary does without.
        std::fs::create_dir_all(root.join("dev"))?;
        for (name, minor) in [("null", "3"), ("random", "8"), ("urandom", "9")] {
            let device = root.join("dev").join(name);
            let made = Command::new("mknod").args(["-m", "666"]).arg(&device).args(["c", "1", minor]).status();
            ensure!(made.context("run mknod")?.success(), "{} could not be made", device.display());
        }
    }
    let version = output(root, &["version"])?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "alcove version said {version:?}");

    let started = Instant::now();
    let arguments =
        ["apiserver", "--secure-port", "0", "--bind-address", "127.0.0.1", "--kubeconfig-out", "/tmp/admin"];
    let mut server = Server(
        command(root, &arguments).stderr(Stdio::piped()).spawn().context("start alcove apiserver in the image")?,
    );
    let kubeconfig = root.join("tmp/admin");
    let text = loop {
        match std::fs::read_to_string(&kubeconfig) {
            Ok(text) if text.contains("current-context") => break text,
            _ => {}
        }
        if let Some(status) = server.0.try_wait()? {
            let mut said = String::new();
            server.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said)).transpose()?;
            bail!("alcove apiserver ended in the image: {status}\n{said}");
        }
        ensure!(started.elapsed() < DEADLINE, "alcove apiserver did not start in the image");
        std::thread::yield_now();
    };
    let list = ["--kubeconfig", "/tmp/admin", "list"];
    output(root, &list).context("a request to the API server in the image")?;

    // Names: the hosts file and DNS, without any library of the machine.
    let served = |name: &str| text.replace("https://127.0.0.1:", &format!("https://{name}:"));
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    std::fs::write(root.join("tmp/by-hosts"), served("localhost"))?;
    output(root, &["--kubeconfig", "/tmp/by-hosts", "list"]).context("a name of /etc/hosts")?;
    let mut names = "hosts file";
    if is_root() {
        let socket = UdpSocket::bind((DNS, 53)).with_context(|| format!("listen on {DNS}:53"))?;
        std::thread::spawn(move || answer(&socket));
        std::fs::write(root.join("etc/resolv.conf"), format!("nameserver {DNS}\n"))?;
        let by_dns = served(NAME)
            .replace("certificate-authority-data:", "ignored:")
            .replace("    server:", "    insecure-skip-tls-verify: true\n    server:");
        std::fs::write(root.join("tmp/by-dns"), by_dns)?;
        output(root, &["--kubeconfig", "/tmp/by-dns", "list"]).context("a name of DNS")?;
        names = "hosts file and DNS";
    }
    say(&format!("verified in an empty root: version, apiserver, requests by address, {names}"));
    Ok(())
}

/// Answers A questions about [`NAME`] with 127.0.0.1, and others with nothing.
fn answer(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        if let Some(reply) = reply(&buffer[..length]) {
            let _ = socket.send_to(&reply, peer);
        }
    }
}

fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let address = query.get(at..at + 2)? == [0, 1] && labels.join(".") == NAME;
    let question = query.get(12..at + 4)?;
    let mut reply = query.get(..2)?.to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(address), 0, 0, 0, 0]);
    reply.extend(question);
    if address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dns_server_knows_one_name() {
        let query = |name: &str, kind: u8| {
            let mut bytes = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                bytes.push(label.len() as u8);
                bytes.extend(label.as_bytes());
            }
            bytes.extend([0, 0, kind, 0, 1]);
            bytes
        };
        let found = reply(&query("API.alcove.test", 1)).unwrap();
        assert_eq!(found[..2], [7, 9]);
        assert_eq!(found[7], 1);
        assert!(found.ends_with(&[127, 0, 0, 1]));
        assert_eq!(reply(&query("api.alcove.test", 28)).unwrap()[7], 0);
        assert_eq!(reply(&query("other.test", 1)).unwrap()[7], 0);
        assert_eq!(reply(&[1, 2, 3]), None);
    }
}
