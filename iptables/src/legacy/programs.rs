//! Runs `iptables-save` and `iptables-restore` in their variants; the only file that runs programs.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use serde::Serialize;

use super::IptablesError;
use crate::{lock, plan::Family};

/// Which of the two kernel interfaces the programs speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Variant {
    #[serde(rename = "iptables-legacy")]
    Legacy,
    #[serde(rename = "iptables-nft")]
    Nft,
}

/// The pair of programs of one variant and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) variant: Variant,
    pub(crate) family: Family,
    save: PathBuf,
    restore: PathBuf,
}

/// Where the programs are although many users' PATH lacks it.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How long another program may hold the lock of the legacy tables, in seconds.
const LOCK_PATIENCE: u32 = 10;

impl Variant {
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }

    /// What the host's plain `iptables` is.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of_host() -> Result<Self, IptablesError> {
        let program = find("iptables-restore")?;
        let output = run(&program, &["--version"], "")?;
        // Before 1.8 there was no other, and it did not say so.
        let is_nft = String::from_utf8_lossy(&output.stdout).contains("nf_tables");
        Ok(if is_nft { Self::Nft } else { Self::Legacy })
    }
}

impl Programs {
    /// Of the one that shows what is loaded.
    pub(crate) fn name(&self) -> String {
        name(&self.save)
    }

    /// # Errors
    /// When one of them is not installed.
    pub(crate) fn find(variant: Variant, family: Family) -> Result<Self, IptablesError> {
        let command = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let suffix = match variant {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
        };
        let pair = |stem: &str| -> Result<_, IptablesError> {
            let save = find(&format!("{stem}-save"))?;
            Ok((save, find(&format!("{stem}-restore"))?))
        };
        // Some systems ship one variant only, under the plain name.
        let (save, restore) =
            pair(&format!("{command}-{suffix}")).or_else(|missing| match Variant::of_host() {
                Ok(host) if host == variant => pair(command),
                _ => Err(missing),
            })?;
        Ok(Self {
            variant,
            family,
            save,
            restore,
        })
    }

    /// Everything that is loaded, in the words of `iptables-save`; makes no table.
    ///
    /// # Errors
    /// When the program fails.
    pub(crate) fn save(&self) -> Result<String, IptablesError> {
        let output = run(&self.save, &[], "")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(reason) = text.lines().find(|line| line.contains("is incompatible")) {
            return Err(IptablesError::Failed {
                program: name(&self.save),
                reason: reason.trim_start_matches("# ").into(),
            });
        }
        Ok(text)
    }

    /// Loads `script`, each of its tables in one transaction, and leaves all else as it is.
    ///
    /// # Errors
    /// When the program fails; then nothing of the table that it failed at is loaded.
    pub(crate) fn restore(&self, script: &str) -> Result<(), IptablesError> {
        let wait = format!("--wait={LOCK_PATIENCE}");
        run(&self.restore, &["--noflush", &wait], script).map(drop)
    }
}

fn find(program: &str) -> Result<PathBuf, IptablesError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| IptablesError::NoProgram(program.into()))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<Output, IptablesError> {
    let failed = |reason: String| IptablesError::Failed {
        program: name(program),
        reason,
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = lock::share_with(&mut command)
        .and_then(|()| command.spawn())
        .map_err(|error| failed(error.to_string()))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = thread::scope(|scope| {
        // A program that ends early does not read it all; its own words say why.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })
    .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said.lines().map(str::trim).collect();
    Err(failed(format!("{} ({})", said.join(" "), output.status)))
}

fn name(program: &Path) -> String {
    program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = find("iptables-of-nobody-save").unwrap_err();
        assert!(
            matches!(error, IptablesError::NoProgram(name) if name == "iptables-of-nobody-save")
        );
    }

    #[test]
    fn what_a_failing_program_said_is_kept() {
        let error = run(
            "/bin/sh".as_ref(),
            &["-c", "echo why >&2; exit 3"],
            "unread",
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("why") && text.contains("sh"), "{text}");
    }
}
