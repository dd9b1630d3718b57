//! What upstream's programs write, as structured log lines.
//!
//! Follows: klog's text format (`I1121 07:22:20.000000   12345 file.go:123] message`).

use tracing::Level;

/// The longest line that is kept.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// One line with what its head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Nothing when the line has no head of its own, such as those of a stack trace.
    pub level: Option<Level>,
    /// File and line of the program's source.
    pub at: &'a str,
    pub message: &'a str,
}

/// Reads the head of a line.
pub(super) fn parse(line: &str) -> Line<'_> {
    let plain = Line { level: None, at: "", message: line };
    // Some builds put that before every line.
    let line = line.strip_prefix("??? ").unwrap_or(line);
    let mut chars = line.chars();
    let level = match chars.next() {
        Some('I') => Level::INFO,
        Some('W') => Level::WARN,
        Some('E' | 'F') => Level::ERROR,
        _ => return tracing_line(line).unwrap_or(plain),
    };
    let date = line.get(1..5).is_some_and(|date| date.bytes().all(|b| b.is_ascii_digit()));
    let Some((head, message)) = line.split_once("] ").filter(|_| date) else {
        return tracing_line(line).unwrap_or(plain);
    };
    let at = head.rsplit(' ').next().unwrap_or_default();
    Line { level: Some(level), at, message }
}

/// `2026-11-21T07:22:20.000000Z  WARN target: message`, as programs of our own write.
fn tracing_line(line: &str) -> Option<Line<'_>> {
    let (time, rest) = line.split_once(' ')?;
    if !time.ends_with('Z') || !time.contains('T') {
        return None;
    }
    let (word, rest) = rest.trim_start().split_once(' ')?;
    let level = match word {
        "ERROR" => Level::ERROR,
        "WARN" => Level::WARN,
        "INFO" => Level::INFO,
        "DEBUG" | "TRACE" => Level::DEBUG,
        _ => return None,
    };
    let (at, message) = rest.split_once(": ").unwrap_or(("", rest));
    Some(Line { level: Some(level), at, message })
}

/// Writes a line of a program to the log; `level` is that of the line before, and becomes this one's.
pub(super) fn log(component: &str, text: &str, level: &mut Level) {
    let text = cut(text);
    let line = parse(text);
    *level = line.level.unwrap_or(*level);
    let (at, message) = (line.at, line.message);
    match *level {
        Level::ERROR => tracing::error!(program = component, at, "{message}"),
        Level::WARN => tracing::warn!(program = component, at, "{message}"),
        Level::INFO => tracing::info!(program = component, at, "{message}"),
        _ => tracing::debug!(program = component, at, "{message}"),
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_lines_are_read() {
        for (line, want) in [
            (
                "I1121 07:22:20.123456   12345 server.go:218] \"Version info\" version=\"v1.36.2\"",
                (Some(Level::INFO), "server.go:218", "\"Version info\" version=\"v1.36.2\""),
            ),
            ("??? I1121 07:22:20.1 1 a.go:1] odd", (Some(Level::INFO), "a.go:1", "odd")),
            ("W1121 07:22:20.1 1 a.go:1] b] c", (Some(Level::WARN), "a.go:1", "b] c")),
            ("F1121 07:22:20.1 1 a.go:1] gone", (Some(Level::ERROR), "a.go:1", "gone")),
            ("E1121 07:22:20.1 1 a.go:1] bad", (Some(Level::ERROR), "a.go:1", "bad")),
            ("goroutine 1 [running]:", (None, "", "goroutine 1 [running]:")),
            ("Error: unknown flag: --x", (None, "", "Error: unknown flag: --x")),
            ("", (None, "", "")),
            (
                "2026-11-21T07:22:20.1Z  WARN apiserver::health: a health check failed check=\"etcd\"",
                (Some(Level::WARN), "apiserver::health", "a health check failed check=\"etcd\""),
            ),
        ] {
            let got = parse(line);
            assert_eq!((got.level, got.at, got.message), want, "{line}");
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let long = "ä".repeat(LINE_BYTES_MAX);
        assert!(cut(&long).len() <= LINE_BYTES_MAX);
        assert_eq!(cut("short"), "short");
    }
}
