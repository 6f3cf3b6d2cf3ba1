//! Tells the story: to a person as text, to a program as one JSON object a line.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What a person needs to read on before the next step begins.
const PAUSE: Duration = Duration::from_millis(1200);

pub(super) struct Narrator {
    format: Format,
    pause: Duration,
    started: Instant,
    steps: u32,
    claims: u32,
}

#[derive(Clone, Copy)]
enum Format {
    Text { colours: bool },
    JsonLines,
}

/// A claim that was checked and is not true.
#[derive(Debug)]
pub(super) struct Untrue(pub(super) String);

impl Narrator {
    pub(super) fn new(json: bool, no_pause: bool) -> Self {
        let is_watched = io::stdout().is_terminal() && !json;
        let format = if json {
            Format::JsonLines
        } else {
            // https://no-color.org
            let colours = is_watched && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            Format::Text { colours }
        };
        Self {
            format,
            pause: if is_watched && !no_pause {
                PAUSE
            } else {
                Duration::ZERO
            },
            started: Instant::now(),
            steps: 0,
            claims: 0,
        }
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) {
        if self.steps > 0 {
            thread::sleep(self.pause);
        }
        self.steps += 1;
        let number = self.steps;
        match self.format {
            Format::Text { .. } => self.line(&format!(
                "\n{}",
                self.paint(Colour::Bold, &format!("{number}. {title}"))
            )),
            Format::JsonLines => self.object(&json!({"step": number, "title": title})),
        }
    }

    /// Explains, in as many lines as the text has.
    pub(super) fn say(&self, text: &str) {
        match self.format {
            Format::Text { .. } => text.lines().for_each(|l| self.line(&format!("   {l}"))),
            Format::JsonLines => self.object(&json!({"step": self.steps, "text": text})),
        }
    }

    /// Shows a command that is about to run, as the user would type it.
    pub(super) fn command(&self, command: &str) {
        match self.format {
            Format::Text { .. } => {
                self.line(&self.paint(Colour::Cyan, &format!("   $ {command}")));
            }
            Format::JsonLines => self.object(&json!({"step": self.steps, "command": command})),
        }
    }

    /// Shows what a command, or a file, said.
    pub(super) fn output(&self, text: &str) {
        match self.format {
            Format::Text { .. } => text
                .lines()
                .for_each(|l| self.line(&self.paint(Colour::Dim, &format!("   | {l}")))),
            Format::JsonLines => self.object(&json!({"step": self.steps, "output": text})),
        }
    }

    /// Tells a claim that was checked, and what was seen.
    ///
    /// # Errors
    /// When it is not true: the story ends here.
    pub(super) fn claim(
        &mut self,
        claim: &str,
        holds: bool,
        seen: impl Display,
    ) -> Result<(), Untrue> {
        self.claims += 1;
        match self.format {
            Format::Text { .. } if holds => {
                self.line(&format!("   {} {claim}", self.paint(Colour::Green, "✓")));
            }
            Format::Text { .. } => self.line(&format!(
                "   {} {claim}\n     but seen: {seen}",
                self.paint(Colour::Red, "✗ NOT TRUE:")
            )),
            Format::JsonLines => self.object(&json!({
                "step": self.steps,
                "claim": claim,
                "holds": holds,
                "seen": seen.to_string(),
            })),
        }
        if holds {
            Ok(())
        } else {
            Err(Untrue(claim.into()))
        }
    }

    /// The last line, after the last step or the first claim that failed.
    pub(super) fn end(&self, is_true: bool) {
        let (claims, seconds) = (self.claims, self.started.elapsed().as_secs_f64());
        match self.format {
            Format::Text { .. } if is_true => self.line(&format!(
                "\nAll {claims} claims were checked and are true; {seconds:.1} s."
            )),
            Format::Text { .. } => {
                self.line("\nThe demo ends at the first claim that is not true.")
            }
            Format::JsonLines => self.object(&json!({
                "claims": claims,
                "all_true": is_true,
                "seconds": seconds,
            })),
        }
    }

    fn line(&self, text: &str) {
        // A reader that has gone (`| head`) does not stop the story; what it checks still counts.
        let _ = writeln!(io::stdout(), "{text}");
    }

    fn object(&self, object: &Value) {
        self.line(&object.to_string());
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        match self.format {
            Format::Text { colours: true } => format!("\x1b[{}m{text}\x1b[0m", colour as u8),
            _ => text.to_owned(),
        }
    }
}

/// Numbers of the ANSI "select graphic rendition" sequence.
#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Cyan = 36,
}
