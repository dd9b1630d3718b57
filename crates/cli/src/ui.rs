//! What is said while a command works: a spinner on a terminal, plain lines otherwise. All of it on standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::LogOutput;

pub struct Ui {
    silent: bool,
    terminal: bool,
    json: bool,
}

impl Ui {
    pub fn new(silent: bool, output: LogOutput) -> Ui {
        Ui {
            silent,
            terminal: output == LogOutput::Plain && std::io::stderr().is_terminal(),
            json: output == LogOutput::Json,
        }
    }

    fn line(&self, word: &str, text: &str) {
        if self.json {
            let time = crate::clusters::now().to_rfc3339();
            eprintln!("{}", serde_json::json!({"time": time, "level": word, "message": text}));
        } else {
            eprintln!("{word:<5} {text}");
        }
    }
    pub fn info(&self, text: &str) {
        if !self.silent {
            self.line("info", text);
        }
    }
    pub fn done(&self, text: &str) {
        if !self.silent {
            self.line("done", text);
        }
    }
    pub fn warn(&self, text: &str) {
        self.line("warn", text);
    }
    pub fn error(&self, text: &str) {
        self.line("error", text);
    }
    pub fn hint(&self, text: &str) {
        self.line("hint", text);
    }

    /// Something that takes a while begins. Dropping the step without [`Step::done`] says nothing more.
    pub fn step(&self, text: &str) -> Step<'_> {
        let bar = if self.silent {
            None
        } else if self.terminal {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(text.to_string());
            bar.enable_steady_tick(Duration::from_millis(100));
            Some(bar)
        } else {
            self.info(text);
            None
        };
        Step { ui: self, bar, started: Instant::now() }
    }
}

pub struct Step<'a> {
    ui: &'a Ui,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step<'_> {
    /// Changes what is being waited for; shown on a terminal only.
    pub fn update(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_string());
        }
    }
    /// Something that the user should know of while this goes on.
    pub fn warn(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.ui.warn(text)),
            None => self.ui.warn(text),
        }
    }
    pub fn done(mut self, text: &str) -> Duration {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let elapsed = self.started.elapsed();
        self.ui.done(text);
        elapsed
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
