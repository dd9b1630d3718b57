//! What the imitated programs print, and how they end.

use apimachinery::json;

use super::*;

fn container(files: &Arc<Mutex<Files>>) -> Container {
    let pod = json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "env": [
            {"name": "COLOUR", "value": "red"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]}]}});
    Container::new(&pod, "c", files.clone())
}

/// Runs a program; gives exit code, output and errors.
async fn run(
    files: &Arc<Mutex<Files>>,
    words: &[&str],
    input: &[u8],
    tty: bool,
) -> (Result<i32, ShellError>, String, String) {
    let (feed, stdin) = mpsc::channel(64);
    let (stdout, mut out) = mpsc::channel::<Bytes>(1024);
    let (stderr, mut err) = mpsc::channel::<Bytes>(1024);
    let (_size, size) = watch::channel(Some((100, 40)));
    for piece in input.chunks(3) {
        feed.send(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    drop(feed);
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    let code = container(files).run(&words, Io { stdin, stdout, stderr, size, tty }).await;
    let all = |receiver: &mut mpsc::Receiver<Bytes>| {
        let mut text = Vec::new();
        while let Ok(piece) = receiver.try_recv() {
            text.extend_from_slice(&piece);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let printed = (all(&mut out), all(&mut err));
    (code, printed.0, printed.1)
}

#[tokio::test]
async fn programs_print_what_their_models_print() {
    let files = Arc::new(Mutex::new(Files::default()));
    for (words, input, code, out, err) in [
        (&["echo", "a", "b"][..], "", 0, "a b\n", ""),
        (&["/bin/echo", "-n", "a"], "", 0, "a", ""),
        (&["true"], "", 0, "", ""),
        (&["false"], "", 1, "", ""),
        (&["hostname"], "", 0, "web-1\n", ""),
        (&["cat"], "hello world", 0, "hello world", ""),
        (&["cat", "/etc/hostname"], "", 0, "web-1\n", ""),
        (&["cat", "/x"], "", 1, "", "cat: can't open '/x': No such file or directory\n"),
        (&["printenv", "COLOUR"], "", 0, "red\n", ""),
        (&["printenv", "NOTHING"], "", 1, "", ""),
        (&["sh", "-c", "echo $POD ${APP} '$POD' \"$POD x\""], "", 0, "web-1 web $POD web-1 x\n", ""),
        (&["sh", "-c", "exit 3"], "", 3, "", ""),
        (&["sh", "-c", "false || echo no && echo yes; true"], "", 0, "no\nyes\n", ""),
        (&["sh", "-c", "false && echo never; echo $?"], "", 0, "1\n", ""),
        (&["sh", "-c", "sh -c 'exit 4'; echo $?"], "", 0, "4\n", ""),
        (&["sh", "-c", "echo a > /tmp/f; echo b >> /tmp/f; cat /tmp/f"], "", 0, "a\nb\n", ""),
        (&["sh", "-c", "cat /tmp/f | wc -l"], "", 0, "2\n", ""),
        (&["sh", "-c", "cat | head -c 3"], "abcdef", 0, "abc", ""),
        (&["sh", "-c", "cat /none 2>&1 | wc -l"], "", 0, "1\n", ""),
        (&["sh", "-c", "cat /none 2>/dev/null; echo $?"], "", 0, "1\n", ""),
        (&["sh", "-c", "X=5; echo $X"], "", 0, "5\n", ""),
        (&["sh", "-c", "nonsense"], "", 127, "", "sh: nonsense: not found\n"),
        (&["sh", "-c", "echo 'open"], "", 2, "", "sh: syntax error: unterminated quoted string\n"),
        (&["sh", "-c", "mkdir -p /a/b && cd /a && ls && test -d b && pwd"], "", 0, "b\n/a\n", ""),
        (&["sh", "-c", "[ \"$COLOUR\" = red ] && echo ok"], "", 0, "ok\n", ""),
        (&["sh"], "echo one\necho two\nexit 7\necho three\n", 7, "one\ntwo\n", ""),
        (&["stty", "size"], "", 0, "40 100\n", ""),
    ] {
        let got = run(&files, words, input.as_bytes(), false).await;
        assert_eq!(got, (Ok(code), out.to_owned(), err.to_owned()), "{words:?}");
    }
    let missing = run(&files, &["nginx"], b"", false).await.0.unwrap_err();
    assert_eq!(missing.to_string(), "exec: \"nginx\": executable file not found in $PATH");
}

#[tokio::test]
async fn a_terminal_echoes_and_prompts() {
    let files = Arc::new(Mutex::new(Files::default()));
    let (code, out, err) = run(&files, &["sh"], b"echo hx\x7fi\rnonsense\rexit\r", true).await;
    assert_eq!(code, Ok(127));
    assert_eq!(out, "/ # echo hx\x08 \x08i\r\nhi\r\n/ # nonsense\r\nsh: nonsense: not found\r\n/ # exit\r\n");
    assert_eq!(err, "");
}

#[tokio::test]
async fn files_go_in_and_come_out_as_archives() {
    let files = Arc::new(Mutex::new(Files::default()));
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [("in/a.txt", "hello"), ("in/deep/b.txt", "world")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    assert_eq!(run(&files, &["test", "-d", "/tmp"], b"", false).await.0, Ok(0));
    // In pieces of three bytes the archive would not fit into the queue of this test.
    files.lock().write("/tmp/in.tar", archive).unwrap();
    let (code, _, err) = run(&files, &["sh", "-c", "cat /tmp/in.tar | tar xmf - -C /tmp"], b"", false).await;
    assert_eq!((code, err.as_str()), (Ok(0), ""));
    assert_eq!(run(&files, &["cat", "/tmp/in/deep/b.txt"], b"", false).await.1, "world");
    assert_eq!(run(&files, &["ls", "/tmp/in"], b"", false).await.1, "a.txt\ndeep\n");
    let (code, _, _) = run(&files, &["sh", "-c", "tar cf - /tmp/in | tar xf - -C /var"], b"", false).await;
    assert_eq!(code, Ok(0));
    assert_eq!(run(&files, &["cat", "/var/tmp/in/a.txt"], b"", false).await.1, "hello");
    let missing = run(&files, &["tar", "cf", "-", "/none"], b"", false).await;
    assert_eq!((missing.0, missing.2.as_str()), (Ok(2), "tar: /none: No such file or directory\n"));
    assert_eq!(run(&files, &["rm", "-rf", "/tmp/in"], b"", false).await.0, Ok(0));
    assert_eq!(run(&files, &["test", "-e", "/tmp/in/a.txt"], b"", false).await.0, Ok(1));
}
