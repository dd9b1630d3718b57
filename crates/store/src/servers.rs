//! Real database servers for tests: private instances on free ports, gone with the test.
//!
//! A server is started from the programs that the machine has. Where they are missing, `start` says so and the test reports
//! that it was skipped.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Longest time for a server to answer.
const START: Duration = Duration::from_secs(60);

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    /// MariaDB, or MySQL.
    Mysql,
    Etcd,
}

/// Certificates of a server that takes connections with TLS alone, as PEM.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Authorities of clients' certificates; every client needs one.
    pub client_authorities: Option<String>,
    pub certificate: String,
    pub key: String,
}

impl ServerTls {
    /// Keeps them in `folder`, readable for the server.
    fn keep(&self, folder: &Path, user: &str) -> Result<(), StartError> {
        use std::os::unix::fs::PermissionsExt;
        let io = |source| StartError::Program { program: "the certificate of a server".to_string(), source };
        let authorities = self.client_authorities.as_deref();
        let files =
            [("tls.crt", Some(self.certificate.as_str())), ("tls.key", Some(&self.key)), ("ca.crt", authorities)];
        for (name, text) in files {
            let (path, Some(text)) = (folder.join(name), text) else { continue };
            std::fs::write(&path, text).map_err(io)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
            if is_root() && !user.is_empty() {
                run(Path::new("chown"), Command::new("chown").arg(format!("{user}:")).arg(&path))?;
            }
        }
        Ok(())
    }
}

/// The user of a MySQL server with TLS.
const TLS_USER: &str = "tls";

/// A server that runs until this is dropped.
pub struct Server {
    kind: Kind,
    child: Child,
    /// The thread that has started it ends with this.
    _parent: Sender<()>,
    folder: PathBuf,
    port: u16,
    tls: Option<ServerTls>,
    member: Option<Member>,
}

/// One of several members of an etcd cluster.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    peer: String,
    /// All of them, as `--initial-cluster` has it.
    cluster: String,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is not installed")]
    NotInstalled(&'static str),
    #[error("{program} could not be started: {source}")]
    Program { program: String, source: io::Error },
    #[error("{program} failed: {output}")]
    Failed { program: String, output: String },
    #[error("the server did not answer in time, its log: {log}")]
    Silent { log: String },
}

/// A program in one of the places where Debian and others put it.
fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin", "/usr/libexec"].map(PathBuf::from));
    // Newest first; before the PATH, where wrappers for the system's own instance may be.
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    versions
        .into_iter()
        .rev()
        .chain(folders)
        .find_map(|folder| names.iter().map(|name| folder.join(name)).find(|program| program.is_file()))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn is_root() -> bool {
    // The owner of what this process makes; no call into libc is needed.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// A command that ends with this process, and runs as `user` when this process is root.
fn command(program: &Path, user: &str) -> Command {
    let Some(setpriv) = find(&["setpriv"]) else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "SIGKILL"]);
    if is_root() && !user.is_empty() {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    command.arg("--").arg(program);
    command
}

/// Starts a process from a thread that stays: "with this process" is for the kernel "with the thread that started it", and
/// the threads of a runtime come and go.
fn spawn_from_thread(mut command: Command) -> io::Result<(Child, Sender<()>)> {
    let (stays, ends) = channel();
    let (answer, answered) = channel();
    std::thread::Builder::new().name("server".to_string()).spawn(move || {
        if answer.send(command.spawn()).is_ok() {
            // Until the other end is dropped.
            let _ = ends.recv();
        }
    })?;
    let child = answered.recv().map_err(io::Error::other)??;
    Ok((child, stays))
}

fn run(program: &Path, command: &mut Command) -> Result<(), StartError> {
    let shown = program.display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| StartError::Program { program: shown.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(StartError::Failed { program: shown, output: String::from_utf8_lossy(&text).into_owned() })
}

impl Server {
    /// Starts a server with its data below `folder`, and waits until it answers. Blocks.
    pub fn start(kind: Kind, folder: &Path) -> Result<Server, StartError> {
        Server::start_with(kind, folder, None)
    }

    /// The same with TLS.
    pub fn start_with(kind: Kind, folder: &Path, tls: Option<ServerTls>) -> Result<Server, StartError> {
        let name = match kind {
            Kind::Postgres => "postgres",
            Kind::Mysql => "mysql",
            Kind::Etcd => "etcd",
        };
        let io = |source| StartError::Program { program: name.to_string(), source };
        let folder = folder.join(format!("{name}-{:08x}", rand::random::<u32>()));
        std::fs::create_dir_all(&folder).map_err(io)?;
        let user = match kind {
            Kind::Postgres => "postgres",
            Kind::Mysql => "mysql",
            Kind::Etcd => "",
        };
        if is_root() && !user.is_empty() {
            // Temporary folders are for their owner only; the server has a user of its own.
            open_up(&folder).map_err(io)?;
            run(Path::new("chown"), Command::new("chown").arg(format!("{user}:")).arg(&folder))?;
        }
        if let Some(tls) = &tls {
            tls.keep(&folder, user)?;
        }
        let data = folder.join("data");
        match kind {
            Kind::Postgres => {
                let initdb = find(&["initdb"]).ok_or(StartError::NotInstalled("postgresql"))?;
                let mut init = command(&initdb, user);
                init.args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C", "-D"]).arg(&data);
                run(&initdb, init.current_dir(&folder))?;
                if let Some(tls) = &tls {
                    let client = if tls.client_authorities.is_some() { " clientcert=verify-ca" } else { "" };
                    let rules = format!("hostssl all all 127.0.0.1/32 trust{client}\n");
                    std::fs::write(data.join("pg_hba.conf"), rules).map_err(io)?;
                }
            }
            Kind::Mysql => {
                let program = find(&["mariadb-install-db", "mysql_install_db"]);
                let program = program.ok_or(StartError::NotInstalled("mariadb-server"))?;
                let mut init = command(&program, user);
                init.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
                // Temporary tables of several servers have the same names.
                init.arg(format!("--tmpdir={}", folder.display()));
                init.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]);
                run(&program, init.current_dir(&folder))?;
                if let Some(tls) = &tls {
                    let client = if tls.client_authorities.is_some() { "X509" } else { "SSL" };
                    let user = format!(
                        "CREATE USER IF NOT EXISTS {TLS_USER}@'%' REQUIRE {client};\nGRANT ALL ON *.* TO {TLS_USER}@'%';\n"
                    );
                    std::fs::write(folder.join("users.sql"), user).map_err(io)?;
                }
            }
            Kind::Etcd => {}
        }
        let port = free_port().map_err(io)?;
        let (child, _parent) = Server::spawn(kind, &folder, port, tls.as_ref(), None)?;
        let mut server = Server { kind, child, _parent, folder, port, tls, member: None };
        server.wait()?;
        Ok(server)
    }

    /// Starts etcd on a data directory that is there already. Blocks.
    pub fn start_etcd_on(folder: &Path, data: &Path) -> Result<Server, StartError> {
        let io = |source| StartError::Program { program: "etcd".to_string(), source };
        let folder = folder.join(format!("etcd-{:08x}", rand::random::<u32>()));
        std::fs::create_dir_all(&folder).map_err(io)?;
        std::fs::rename(data, folder.join("data")).map_err(io)?;
        let port = free_port().map_err(io)?;
        let (child, _parent) = Server::spawn(Kind::Etcd, &folder, port, None, None)?;
        let mut server = Server { kind: Kind::Etcd, child, _parent, folder, port, tls: None, member: None };
        server.wait()?;
        Ok(server)
    }

    /// Starts an etcd cluster of so many members. Blocks.
    pub fn start_etcd_members(folder: &Path, count: usize) -> Result<Vec<Server>, StartError> {
        let io = |source| StartError::Program { program: "etcd".to_string(), source };
        let mut peers = Vec::new();
        for number in 0..count {
            peers.push((format!("member-{number}"), format!("http://127.0.0.1:{}", free_port().map_err(io)?)));
        }
        let cluster: Vec<String> = peers.iter().map(|(name, peer)| format!("{name}={peer}")).collect();
        let mut servers = Vec::new();
        for (name, peer) in peers {
            let folder = folder.join(format!("etcd-{:08x}", rand::random::<u32>()));
            std::fs::create_dir_all(&folder).map_err(io)?;
            let port = free_port().map_err(io)?;
            let member = Member { name, peer, cluster: cluster.join(",") };
            let (child, _parent) = Server::spawn(Kind::Etcd, &folder, port, None, Some(&member))?;
            let member = Some(member);
            servers.push(Server { kind: Kind::Etcd, child, _parent, folder, port, tls: None, member });
        }
        // None answers before most of them are there.
        servers.iter_mut().try_for_each(Server::wait)?;
        Ok(servers)
    }

    fn spawn(
        kind: Kind,
        folder: &Path,
        port: u16,
        tls: Option<&ServerTls>,
        member: Option<&Member>,
    ) -> Result<(Child, Sender<()>), StartError> {
        let (certificate, key, authorities) = (folder.join("tls.crt"), folder.join("tls.key"), folder.join("ca.crt"));
        let clients = tls.is_some_and(|tls| tls.client_authorities.is_some());
        let data = folder.join("data");
        let io = |source| StartError::Program { program: format!("{kind:?}"), source };
        let mut command = match kind {
            Kind::Postgres => {
                let program = find(&["postgres"]).ok_or(StartError::NotInstalled("postgresql"))?;
                let mut command = command(&program, "postgres");
                command.arg("-D").arg(&data).arg("-k").arg(folder).arg("-p").arg(port.to_string());
                for setting in [
                    "listen_addresses=127.0.0.1",
                    "shared_buffers=16MB",
                    "max_connections=60",
                    "dynamic_shared_memory_type=mmap",
                    "fsync=off",
                    "autovacuum_max_workers=1",
                ] {
                    command.arg("-c").arg(setting);
                }
                if tls.is_some() {
                    command.args(["-c", "ssl=on", "-c"]).arg(format!("ssl_cert_file={}", certificate.display()));
                    command.arg("-c").arg(format!("ssl_key_file={}", key.display()));
                }
                if clients {
                    command.arg("-c").arg(format!("ssl_ca_file={}", authorities.display()));
                }
                command
            }
            Kind::Mysql => {
                let program = find(&["mariadbd", "mysqld"]).ok_or(StartError::NotInstalled("mariadb-server"))?;
                let mut command = command(&program, "mysql");
                command.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
                command.arg(format!("--tmpdir={}", folder.display()));
                command.arg(format!("--port={port}")).arg(format!("--socket={}/socket", folder.display()));
                command.arg(format!("--pid-file={}/pid", folder.display()));
                command.args(["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=2", "--skip-log-bin"]);
                command.args(["--innodb-buffer-pool-size=32M", "--skip-name-resolve", "--performance-schema=OFF"]);
                if tls.is_some() {
                    command.arg(format!("--ssl-cert={}", certificate.display()));
                    command.arg(format!("--ssl-key={}", key.display()));
                    command.arg(format!("--init-file={}", folder.join("users.sql").display()));
                }
                if clients {
                    command.arg(format!("--ssl-ca={}", authorities.display()));
                }
                command
            }
            Kind::Etcd => {
                let program = find(&["etcd"]).ok_or(StartError::NotInstalled("etcd-server"))?;
                let mut command = command(&program, "");
                let scheme = if tls.is_some() { "https" } else { "http" };
                let client = format!("{scheme}://127.0.0.1:{port}");
                let member = match member {
                    Some(member) => member.clone(),
                    // Nobody dials the only member's peer address, but it has to be free.
                    None => {
                        let peer = format!("http://127.0.0.1:{}", free_port().map_err(io)?);
                        Member { name: "default".to_string(), cluster: format!("default={peer}"), peer }
                    }
                };
                let peer = &member.peer;
                command.arg("--data-dir").arg(&data).args(["--name", &member.name, "--log-level", "error"]);
                // Our largest value is larger than what etcd takes by default.
                command.args(["--max-request-bytes", "8388608"]);
                command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
                command.args(["--initial-cluster", &member.cluster]);
                if tls.is_some() {
                    command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
                }
                if clients {
                    command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(authorities);
                }
                command
            }
        };
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).map_err(io)?;
        let errors = log.try_clone().map_err(io)?;
        command.current_dir(folder).stdin(Stdio::null()).stdout(log).stderr(errors);
        spawn_from_thread(command).map_err(io)
    }

    /// Waits until the server takes connections.
    fn wait(&mut self) -> Result<(), StartError> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if self.answers() {
                return Ok(());
            }
            if self.has_ended() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        Err(StartError::Silent { log })
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else { return false };
        if stream.set_read_timeout(Some(Duration::from_secs(1))).is_err() {
            return false;
        }
        match self.kind {
            Kind::Postgres => {
                // A startup packet for the database that is always there; `R` says that the server is ready to talk.
                let parameters = b"user\0postgres\0database\0postgres\0\0";
                let mut packet = (8 + parameters.len() as u32).to_be_bytes().to_vec();
                packet.extend(196_608_u32.to_be_bytes());
                packet.extend(parameters);
                let mut answer = [0];
                stream.write_all(&packet).is_ok() && stream.read_exact(&mut answer).is_ok()
                    // With TLS it refuses this, for want of it.
                    && (answer == *b"R" || self.tls.is_some() && answer == *b"E" && self.log_says_ready())
            }
            // The server speaks first.
            Kind::Mysql => stream.read_exact(&mut [0; 5]).is_ok(),
            // An answer needs a certificate; that somebody listens is all that can be seen from here.
            Kind::Etcd if self.tls.is_some() => true,
            Kind::Etcd => {
                let mut answer = String::new();
                stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n").is_ok()
                    && stream.read_to_string(&mut answer).is_ok()
                    && answer.contains("\"true\"")
            }
        }
    }

    fn log_says_ready(&self) -> bool {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.contains("ready to accept connections")
    }

    /// The address of a database of this server (etcd has only one).
    pub fn url(&self, database: &str) -> String {
        match (self.kind, self.tls.is_some()) {
            (Kind::Postgres, false) => {
                format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
            }
            (Kind::Postgres, true) => format!("postgres://postgres@127.0.0.1:{}/{database}", self.port),
            (Kind::Mysql, false) => format!("mysql://root@tcp(127.0.0.1:{})/{database}", self.port),
            (Kind::Mysql, true) => format!("mysql://{TLS_USER}@tcp(127.0.0.1:{})/{database}", self.port),
            (Kind::Etcd, false) => format!("http://127.0.0.1:{}", self.port),
            (Kind::Etcd, true) => format!("https://127.0.0.1:{}", self.port),
        }
    }

    fn signal(&self, signal: &str, processes: &[u32]) {
        let processes = processes.iter().map(u32::to_string);
        // Nothing depends on it: what does not react is killed.
        let _ = Command::new("kill").args(["-s", signal]).args(processes).stderr(Stdio::null()).status();
    }

    /// The server's processes, the first one first: PostgreSQL has one for each connection.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        if self.kind == Kind::Postgres {
            let parent = |process: &u32| {
                let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
                stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
            };
            let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            found.extend(all.filter(|process| parent(process) == Some(self.child.id())));
        }
        found
    }

    /// Freezes the server: connections stay, nothing is answered.
    pub fn freeze(&self) {
        // The first process first, so that no more are made.
        self.signal("STOP", &[self.child.id()]);
        self.signal("STOP", &self.processes());
    }

    /// Ends [`Server::freeze`].
    pub fn thaw(&self) {
        self.signal("CONT", &self.processes());
    }

    /// Kills the server at once, as a machine that fails does; its data stay for [`Server::restart`].
    pub fn kill(&mut self) {
        let processes = self.processes();
        drop(self.child.kill());
        self.signal("KILL", &processes[1..]);
        let _ = self.child.wait();
    }

    /// Stops the server without ceremony; its data stay for [`Server::restart`].
    pub fn stop(&mut self) {
        match self.kind {
            // Leaves nothing behind in shared memory.
            Kind::Postgres => self.signal("QUIT", &[self.child.id()]),
            Kind::Mysql | Kind::Etcd => drop(self.child.kill()),
        }
        let _ = self.child.wait();
    }

    /// Starts the server again, on the same port and data.
    pub fn restart(&mut self) -> Result<(), StartError> {
        let until = Instant::now() + START;
        loop {
            (self.child, self._parent) = {
                let (tls, member) = (self.tls.as_ref(), self.member.as_ref());
                Server::spawn(self.kind, &self.folder, self.port, tls, member)?
            };
            match self.wait() {
                // Processes of the one that was killed may need a moment to end.
                Err(StartError::Silent { .. }) if self.has_ended() && Instant::now() < until => {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process, the first one where there are several.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its data are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.thaw();
        self.stop();
        // Temporary data: what cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Lets other users pass through the temporary folders above.
fn open_up(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let temporary = std::env::temp_dir();
    let mut next = Some(folder);
    while let Some(folder) = next.filter(|folder| folder.starts_with(&temporary) && *folder != temporary) {
        let mut permissions = std::fs::metadata(folder)?.permissions();
        permissions.set_mode(permissions.mode() | 0o011);
        std::fs::set_permissions(folder, permissions)?;
        next = folder.parent();
    }
    Ok(())
}
