//! The programs that are imitated.

use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::files::{FileError, Node};
use super::words::{self, Joint, Simple};
use super::{Io, Session, ShellError};

const PROGRAMS: [&str; 31] = [
    "[", "ash", "bash", "cat", "cd", "date", "echo", "env", "exit", "export", "false", "head", "hostname", "id", "ls",
    "mkdir", "nslookup", "printenv", "printf", "pwd", "rm", "sh", "sleep", "stty", "tar", "test", "touch", "true",
    "uname", "wc", "whoami",
];
/// A script in a script in a script.
const DEPTH_MAX: usize = 16;
/// The output of a program in the middle of a pipe.
const PIPE_BYTES_MAX: usize = 64 << 20;

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

pub(super) fn is_known(program: &str) -> bool {
    PROGRAMS.contains(&base(program))
}

type Code = Result<i32, ShellError>;

impl Session {
    /// Runs one program with its words.
    pub(super) fn program<'a>(&'a mut self, words: &'a [String]) -> Pin<Box<dyn Future<Output = Code> + Send + 'a>> {
        Box::pin(async move {
            let Some((program, arguments)) = words.split_first() else { return Ok(0) };
            let argument = |at: usize| arguments.get(at).map(String::as_str);
            match base(program) {
                "true" => Ok(0),
                "false" => Ok(1),
                "echo" => {
                    let plain = argument(0) == Some("-n");
                    let text = arguments[usize::from(plain)..].join(" ");
                    self.out(if plain { text } else { text + "\n" }).await?;
                    Ok(0)
                }
                "printf" => {
                    let text = argument(0).unwrap_or_default().replace("\\n", "\n").replace("\\t", "\t");
                    let mut values = arguments.iter().skip(1);
                    let mut parts = text.split("%s");
                    let mut out = parts.next().unwrap_or_default().to_owned();
                    for part in parts {
                        out.push_str(values.next().map_or("", String::as_str));
                        out.push_str(part);
                    }
                    self.out(out).await?;
                    Ok(0)
                }
                "hostname" => self.say(self.hostname.clone()).await,
                "whoami" => self.say("root").await,
                "id" => self.say("uid=0(root) gid=0(root) groups=0(root)").await,
                "uname" => {
                    let all = argument(0) == Some("-a");
                    let host = self.hostname.clone();
                    self.say(if all { format!("Linux {host} simulated") } else { "Linux".to_owned() }).await
                }
                "pwd" => self.say(self.folder.clone()).await,
                "date" => {
                    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    let now = apimachinery::time::Timestamp::from_seconds(since.as_secs() as i64);
                    self.say(now.to_rfc3339()).await
                }
                "env" | "printenv" => match argument(0) {
                    Some(name) if base(program) == "printenv" => match self.env.get(name).cloned() {
                        Some(value) => self.say(value).await,
                        None => Ok(1),
                    },
                    _ => {
                        let all: String = self.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
                        self.out(all).await?;
                        Ok(0)
                    }
                },
                "export" => {
                    for (name, value) in arguments.iter().filter_map(|argument| argument.split_once('=')) {
                        self.env.insert(name.to_owned(), value.to_owned());
                    }
                    Ok(0)
                }
                "cd" => {
                    let to = self.path(argument(0).unwrap_or("/root"));
                    let found = self.files.lock().get(&to).cloned();
                    match found {
                        Some(Node::Folder) => {
                            self.folder = to;
                            Ok(0)
                        }
                        _ => {
                            self.complain("sh", format!("cd: can't cd to {}", argument(0).unwrap_or_default()), 2).await
                        }
                    }
                }
                "exit" => {
                    let code = argument(0).and_then(|code| code.parse::<i32>().ok()).unwrap_or(self.last_code) & 255;
                    self.ended = Some(code);
                    Ok(code)
                }
                "sleep" => {
                    let text = argument(0).unwrap_or_default();
                    if text != "infinity" && super::super::behaviour::seconds(text).is_none() {
                        return self.complain("sleep", format!("invalid time interval '{text}'"), 1).await;
                    }
                    let seconds = super::super::behaviour::seconds(text).unwrap_or(f64::MAX).min(86_400.0 * 365.0);
                    let output = self.io.stdout.clone();
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => Ok(0),
                        // Nobody waits for it any more.
                        () = output.closed() => Err(ShellError::Abandoned),
                    }
                }
                "stty" => {
                    let size = self.io.size.borrow().unwrap_or((80, 24));
                    match argument(0) {
                        Some("size") => self.say(format!("{} {}", size.1, size.0)).await,
                        _ => Ok(0),
                    }
                }
                "cat" => self.cat(arguments).await,
                "head" | "wc" => self.count(base(program), arguments).await,
                "ls" => self.list(arguments).await,
                "test" | "[" => Ok(i32::from(!self.test(arguments))),
                "mkdir" => {
                    let parents = arguments.iter().any(|argument| argument == "-p");
                    self.each("mkdir", arguments, |session, path| {
                        let exists = session.files.lock().get(path).is_some();
                        if exists && !parents {
                            return Err("File exists".to_owned());
                        }
                        session.files.lock().make_folder(path, parents).map_err(|error| error.to_string())
                    })
                    .await
                }
                "touch" => {
                    self.each("touch", arguments, |session, path| {
                        let mut files = session.files.lock();
                        if files.get(path).is_some() {
                            Ok(())
                        } else {
                            files.write(path, Vec::new()).map_err(|e| e.to_string())
                        }
                    })
                    .await
                }
                "rm" => {
                    let force = arguments.iter().any(|argument| argument.starts_with('-') && argument.contains('f'));
                    let deep = arguments.iter().any(|argument| argument.starts_with('-') && argument.contains('r'));
                    self.each("rm", arguments, |session, path| {
                        let mut files = session.files.lock();
                        match files.get(path) {
                            Some(Node::Folder) if !deep => Err("is a directory".to_owned()),
                            None if !force => Err(FileError::Missing.to_string()),
                            _ => {
                                files.remove(path);
                                Ok(())
                            }
                        }
                    })
                    .await
                }
                "nslookup" => {
                    self.complain("nslookup", "names are not resolved in a simulated container".to_owned(), 1).await
                }
                "tar" => self.tar(arguments).await,
                "sh" | "bash" | "ash" => self.shell(arguments).await,
                other => self.complain("sh", format!("{other}: not found"), 127).await,
            }
        })
    }

    async fn say(&mut self, text: impl Into<String>) -> Code {
        self.out(text.into() + "\n").await?;
        Ok(0)
    }

    async fn complain(&mut self, program: &str, text: String, code: i32) -> Code {
        self.err(format!("{program}: {text}\n")).await?;
        Ok(code)
    }

    /// Does the same with every path among the arguments.
    async fn each(
        &mut self,
        program: &str,
        arguments: &[String],
        mut work: impl FnMut(&mut Session, &str) -> Result<(), String> + Send,
    ) -> Code {
        let mut code = 0;
        for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
            let path = self.path(argument);
            let done = work(self, &path);
            if let Err(error) = done {
                code = self.complain(program, format!("{argument}: {error}"), 1).await?;
            }
        }
        Ok(code)
    }

    async fn cat(&mut self, arguments: &[String]) -> Code {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == "-") {
            if self.io.tty {
                while let Some(line) = self.line().await? {
                    self.out(line + "\n").await?;
                }
                return Ok(0);
            }
            while let Some(piece) = self.piece().await {
                self.out(piece).await?;
            }
            return Ok(0);
        }
        let mut code = 0;
        for argument in arguments {
            let content = self.content(argument);
            match content {
                Ok(content) => self.out(content).await?,
                Err(error) => code = self.complain("cat", format!("can't open '{argument}': {error}"), 1).await?,
            }
        }
        Ok(code)
    }

    fn content(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let path = self.path(path);
        match path.as_str() {
            "/etc/hostname" => Ok(format!("{}\n", self.hostname).into_bytes()),
            path => self.files.lock().read(path).map(<[u8]>::to_vec),
        }
    }

    /// `wc -c`, `wc -l` and `head -c N`, `head -n N` of the input or of files.
    async fn count(&mut self, program: &str, arguments: &[String]) -> Code {
        let mut all = Vec::new();
        let files: Vec<&String> =
            arguments.iter().filter(|a| !a.starts_with('-') && a.parse::<usize>().is_err()).collect();
        if files.is_empty() {
            while let Some(piece) = self.piece().await {
                all.extend_from_slice(&piece);
                if all.len() > PIPE_BYTES_MAX {
                    return self.complain(program, "the input is too large".to_owned(), 1).await;
                }
            }
        }
        for file in files {
            match self.content(file) {
                Ok(content) => all.extend(content),
                Err(error) => return self.complain(program, format!("{file}: {error}"), 1).await,
            }
        }
        let lines = all.iter().filter(|byte| **byte == b'\n').count();
        let has = |flag: &str| arguments.iter().any(|argument| argument.starts_with(flag));
        if program == "head" {
            let number = |text: &String| text.trim_start_matches(['-', 'c', 'n']).parse::<usize>().ok();
            let limit = arguments.iter().find_map(number).unwrap_or(10);
            let kept = if has("-c") {
                all[..limit.min(all.len())].to_vec()
            } else {
                all.split_inclusive(|byte| *byte == b'\n').take(limit).flatten().copied().collect()
            };
            self.out(kept).await?;
            return Ok(0);
        }
        let words = String::from_utf8_lossy(&all).split_whitespace().count();
        match (has("-c"), has("-l")) {
            (true, _) => self.say(all.len().to_string()).await,
            (_, true) => self.say(lines.to_string()).await,
            _ => self.say(format!("{lines} {words} {}", all.len())).await,
        }
    }

    async fn list(&mut self, arguments: &[String]) -> Code {
        let mut paths: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
        if paths.is_empty() {
            paths.push(".");
        }
        let mut code = 0;
        for path in paths {
            let full = self.path(path);
            let found = {
                let files = self.files.lock();
                match files.get(&full) {
                    Some(Node::Folder) => Some(files.list(&full)),
                    Some(Node::File(_)) => Some(vec![path.to_owned()]),
                    None => None,
                }
            };
            match found {
                Some(names) => {
                    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
                    self.out(text).await?;
                }
                None => code = self.complain("ls", format!("{path}: No such file or directory"), 1).await?,
            }
        }
        Ok(code)
    }

    fn test(&self, arguments: &[String]) -> bool {
        let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "]").collect();
        let is = |path: &str, wanted: &dyn Fn(&Node) -> bool| {
            let full = self.path(path);
            full == "/etc/hostname" || self.files.lock().get(&full).is_some_and(wanted)
        };
        match words.as_slice() {
            ["!", rest @ ..] => {
                let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
                !self.test(&rest)
            }
            ["-d", path] => self.files.lock().get(&self.path(path)) == Some(&Node::Folder),
            ["-f", path] => is(path, &|node| matches!(node, Node::File(_))),
            ["-e", path] => is(path, &|_| true),
            ["-s", path] => is(path, &|node| matches!(node, Node::File(content) if !content.is_empty())),
            ["-z", text] => text.is_empty(),
            ["-n", text] => !text.is_empty(),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => a.parse::<i64>().is_ok_and(|a| Ok(a) == b.parse()),
            [text] => !text.is_empty(),
            _ => false,
        }
    }

    /// `tar cf - PATH...` and `tar xf - -C FOLDER`, which is what `kubectl cp` runs.
    async fn tar(&mut self, arguments: &[String]) -> Code {
        let Some((mode, rest)) = arguments.split_first() else {
            return self.complain("tar", "must specify one of -c, -x, -t".to_owned(), 1).await;
        };
        let mut folder = self.folder.clone();
        let mut paths = Vec::new();
        let mut rest = rest.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-C" => folder = self.path(rest.next().map_or("", String::as_str)),
                "-" => {}
                option if option.starts_with('-') => {}
                path => paths.push(path.to_owned()),
            }
        }
        if mode.contains('x') {
            let mut archive = Vec::new();
            while let Some(piece) = self.piece().await {
                archive.extend_from_slice(&piece);
                if archive.len() > PIPE_BYTES_MAX {
                    return self
                        .complain("tar", "the archive is too large for a simulated container".to_owned(), 1)
                        .await;
                }
            }
            return match self.unpack(&archive, &folder) {
                Ok(()) => Ok(0),
                Err(error) => self.complain("tar", error, 1).await,
            };
        }
        if !mode.contains('c') {
            return self.complain("tar", format!("{mode} is not simulated"), 1).await;
        }
        match self.pack(&paths, &folder) {
            Ok(archive) => {
                for piece in archive.chunks(32 << 10) {
                    self.io.stdout.send(Bytes::copy_from_slice(piece)).await.map_err(|_| ShellError::Abandoned)?;
                }
                Ok(0)
            }
            Err(error) => self.complain("tar", error, 2).await,
        }
    }

    fn unpack(&mut self, archive: &[u8], folder: &str) -> Result<(), String> {
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let mut entry = entry.map_err(|error| error.to_string())?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = super::files::normal(&format!("{folder}/{name}"));
            let mut files = self.files.lock();
            if entry.header().entry_type().is_dir() {
                files.make_folder(&path, true).map_err(|error| format!("{name}: {error}"))?;
                continue;
            }
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
            if !parent.is_empty() {
                files.make_folder(parent, true).map_err(|error| format!("{name}: {error}"))?;
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|error| error.to_string())?;
            files.write(&path, content).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    }

    fn pack(&self, paths: &[String], folder: &str) -> Result<Vec<u8>, String> {
        let files = self.files.lock();
        let mut tar = tar::Builder::new(Vec::new());
        for path in paths {
            let full = if path.starts_with('/') {
                super::files::normal(path)
            } else {
                super::files::normal(&format!("{folder}/{path}"))
            };
            if files.get(&full).is_none() {
                return Err(format!("{path}: No such file or directory"));
            }
            // As tar does: names keep the form in which they were asked for, without a slash before them.
            let shown = path.trim_start_matches('/');
            for (name, node) in files.below(&full) {
                let name = format!("{shown}{}", &name[full.len()..]);
                let name = name.trim_start_matches('/');
                let mut header = tar::Header::new_gnu();
                header.set_mtime(0);
                let appended = match node {
                    Node::Folder if name.is_empty() => Ok(()),
                    Node::Folder => {
                        header.set_entry_type(tar::EntryType::Directory);
                        header.set_mode(0o755);
                        header.set_size(0);
                        tar.append_data(&mut header, format!("{name}/"), &[][..])
                    }
                    Node::File(content) => {
                        header.set_mode(0o644);
                        header.set_size(content.len() as u64);
                        tar.append_data(&mut header, name, &content[..])
                    }
                };
                appended.map_err(|error| error.to_string())?;
            }
        }
        tar.into_inner().map_err(|error| error.to_string())
    }

    /// `sh`, `sh -c SCRIPT`, or a script from the input, with a prompt on a terminal.
    async fn shell(&mut self, arguments: &[String]) -> Code {
        if self.depth >= DEPTH_MAX {
            return self.complain("sh", "too many shells in one another".to_owned(), 2).await;
        }
        self.depth += 1;
        let script = arguments.iter().position(|argument| argument.starts_with('-') && argument.ends_with('c'));
        let code = match script {
            Some(at) => {
                let script = arguments.get(at + 1).cloned().unwrap_or_default();
                self.script(&script).await
            }
            None => self.interactive().await,
        };
        self.depth -= 1;
        // `exit` ends the innermost shell only.
        match self.ended.take().filter(|_| self.depth > 0) {
            Some(code) => Ok(code),
            None => code,
        }
    }

    async fn interactive(&mut self) -> Code {
        let mut code = 0;
        loop {
            if self.io.tty {
                let folder = self.folder.clone();
                self.out(format!("{folder} # ")).await?;
            }
            let Some(line) = self.line().await? else { return Ok(code) };
            code = self.script(&line).await?;
            if let Some(code) = self.ended {
                return Ok(code);
            }
        }
    }

    async fn script(&mut self, text: &str) -> Code {
        for (joint, part) in words::split(text) {
            let skipped = match joint {
                Joint::Then => false,
                Joint::And => self.last_code != 0,
                Joint::Or => self.last_code == 0,
            };
            if skipped {
                continue;
            }
            let parsed = {
                let (env, last) = (self.env.clone(), self.last_code);
                words::parse(part, &move |name| match name {
                    "?" => last.to_string(),
                    name => env.get(name).cloned().unwrap_or_default(),
                })
            };
            let pipelines = match parsed {
                Ok(pipelines) => pipelines,
                Err(error) => return self.complain("sh", error, 2).await,
            };
            for pipeline in &pipelines {
                self.last_code = self.pipeline(&pipeline.commands).await?;
            }
            if self.ended.is_some() {
                break;
            }
        }
        Ok(self.ended.unwrap_or(self.last_code))
    }

    /// Runs commands one after another, each with the whole output of the one before it.
    async fn pipeline(&mut self, commands: &[Simple]) -> Code {
        let mut input: Option<Vec<u8>> = None;
        let mut code = 0;
        for (at, command) in commands.iter().enumerate() {
            let last = at + 1 == commands.len();
            if let Some((name, value)) = assignment(&command.words) {
                self.env.insert(name, value);
                code = 0;
                continue;
            }
            if !is_known(&command.words[0]) {
                code = self.complain("sh", format!("{}: not found", command.words[0]), 127).await?;
                input = Some(Vec::new());
                continue;
            }
            if last
                && command.output.is_none()
                && input.is_none()
                && !command.errors_to_output
                && !command.errors_dropped
            {
                return self.program(&command.words).await;
            }
            let (output, ended) = self.captured(command, input.take()).await?;
            code = ended;
            if let Some((file, append)) = &command.output {
                if let Err(error) = self.redirect(file, *append, output) {
                    code = self.complain("sh", format!("can't create {file}: {error}"), 1).await?;
                }
                input = Some(Vec::new());
            } else if last {
                self.io.stdout.send(self.on_terminal(output)).await.map_err(|_| ShellError::Abandoned)?;
            } else {
                input = Some(output);
            }
        }
        Ok(code)
    }

    /// Runs a command with an input of its own and collects its output.
    async fn captured(&mut self, command: &Simple, input: Option<Vec<u8>>) -> Result<(Vec<u8>, i32), ShellError> {
        let (out, mut collected) = mpsc::channel::<Bytes>(16);
        let (feed, stdin) = mpsc::channel::<Bytes>(1);
        let has_input = input.is_some();
        if let Some(input) = input.filter(|input| !input.is_empty()) {
            // There is room for one.
            let _ = feed.try_send(input.into());
        }
        drop(feed);
        let (sink, mut dropped) = mpsc::channel::<Bytes>(16);
        let errors = match (command.errors_dropped, command.errors_to_output) {
            (true, _) => sink,
            (_, true) => out.clone(),
            _ => self.io.stderr.clone(),
        };
        let inner = Io { stdin, stdout: out, stderr: errors, size: self.io.size.clone(), tty: false };
        let mut outer = std::mem::replace(&mut self.io, inner);
        let unread = std::mem::take(&mut self.unread);
        let ended = self.input_ended;
        if has_input {
            self.input_ended = false;
        } else {
            // It reads what the shell would have read.
            std::mem::swap(&mut self.io.stdin, &mut outer.stdin);
            self.unread.clone_from(&unread);
        }
        let mut output = Vec::new();
        let code = {
            let run = self.program(&command.words);
            tokio::pin!(run);
            loop {
                tokio::select! {
                    code = &mut run => break code,
                    Some(_) = dropped.recv() => {}
                    Some(piece) = collected.recv() => {
                        if output.len() + piece.len() <= PIPE_BYTES_MAX {
                            output.extend_from_slice(&piece);
                        }
                    }
                }
            }
        };
        if has_input {
            self.unread = unread;
            self.input_ended = ended;
        } else {
            std::mem::swap(&mut self.io.stdin, &mut outer.stdin);
        }
        self.io = outer;
        while let Ok(piece) = collected.try_recv() {
            output.extend_from_slice(&piece);
        }
        Ok((output, code?))
    }

    fn redirect(&mut self, file: &str, append: bool, output: Vec<u8>) -> Result<(), FileError> {
        let path = self.path(file);
        if path == "/dev/null" {
            return Ok(());
        }
        let mut files = self.files.lock();
        let mut content = match append {
            true => files.read(&path).map(<[u8]>::to_vec).unwrap_or_default(),
            false => Vec::new(),
        };
        content.extend(output);
        files.write(&path, content)
    }
}

/// `NAME=value` alone.
fn assignment(words: &[String]) -> Option<(String, String)> {
    let [word] = words else { return None };
    let (name, value) = word.split_once('=')?;
    let good = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    good.then(|| (name.to_owned(), value.to_owned()))
}
