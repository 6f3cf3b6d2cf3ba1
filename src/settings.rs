//! Settings as a command line asks for them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use outrigger_config::{Problem, Settings};
use serde_json::{Value, json};

use crate::problems;

/// What the command line could not be understood with, as for clap's own errors.
pub(crate) const USAGE_ERROR: u8 = 2;

/// Reads `path`, or takes the defaults without one; problems are printed, all of them.
pub(crate) fn load(path: Option<&Path>, as_json: bool) -> Result<Settings, ExitCode> {
    load_with_text(path, as_json).map(|(settings, _)| settings)
}

/// As [`load`], with the text that the settings come from.
pub(crate) fn load_with_text(
    path: Option<&Path>,
    as_json: bool,
) -> Result<(Settings, String), ExitCode> {
    let Some(path) = path else {
        return Ok((Settings::default(), String::new()));
    };
    let read = || {
        let text = outrigger_config::text(path).map_err(|problem| vec![problem])?;
        Ok((outrigger_config::parse(&text)?, text))
    };
    read().map_err(|problems: Vec<Problem>| {
        let errors = problems.iter().filter(|problem| problem.is_error());
        if as_json {
            let file = path.display().to_string();
            let told = errors.map(|problem| {
                let mut told = json!(problem);
                told["file"] = json!(file);
                told
            });
            return refuse_as_json(told.collect());
        }
        for problem in errors {
            eprintln!("{}", problems::one_line(path, problem));
        }
        ExitCode::from(USAGE_ERROR)
    })
}

/// Checks what the command line has put over a file that was without a problem by itself.
///
/// # Errors
/// Once every problem has been printed.
pub(crate) fn check(
    settings: Settings,
    command: &str,
    as_json: bool,
) -> Result<Settings, ExitCode> {
    let problems = settings.problems();
    if problems.is_empty() {
        return Ok(settings);
    }
    if as_json {
        let problems = problems.iter();
        let problems = problems
            .map(|(key, message)| json!({ "option": format!("--{key}"), "message": message }));
        return Err(refuse_as_json(problems.collect()));
    }
    for (key, message) in problems {
        eprintln!("proxyctl {command}: --{key}: {message}");
    }
    Err(ExitCode::from(USAGE_ERROR))
}

/// In the shape of every other refusal, with the problems one by one.
fn refuse_as_json(problems: Vec<Value>) -> ExitCode {
    let messages: Vec<_> = problems
        .iter()
        .filter_map(|p| p["message"].as_str())
        .collect();
    println!(
        "{}",
        json!({
            "result": "refused",
            "check": "configuration",
            "message": messages.join("; "),
            "advice": "correct the configuration; every problem found is listed in `problems`",
            "problems": problems,
        })
    );
    ExitCode::from(USAGE_ERROR)
}

/// The value of `--listen`.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an address and port, such as 127.0.0.1:15001 or [::1]:15001".into())
}

/// The value of `--port`.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("write a port, 1 to 65535".into()),
    }
}

/// Which proxy a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Instance {
    /// Configuration file, for the port in `listen` [default: all defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The proxy's listen port, instead of what the file says
    #[arg(long, value_name = "PORT", value_parser = port)]
    port: Option<u16>,
}

impl Instance {
    /// The port that names it. A file that is given must be valid even where it does not decide.
    pub(crate) fn port(&self, as_json: bool) -> Result<u16, ExitCode> {
        let settings = load(self.config.as_deref(), as_json)?;
        Ok(self.port.unwrap_or_else(|| settings.port()))
    }
}
