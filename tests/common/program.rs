//! The program from the outside.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// The program, run in an empty folder of its own and untouched by the caller's environment.
pub struct Wgrad {
    folder: tempfile::TempDir,
}

impl Wgrad {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wgrad"));
        command.args(arguments).current_dir(self.folder.path());
        for variable in ["WGPU_BACKEND", "WGPU_ADAPTER_NAME", "WGPU_POWER_PREF"] {
            command.env_remove(variable);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stderr.contains("panicked"), "{stderr}");
        Self { code: output.status.code(), stdout, stderr }
    }
}

impl Ran {
    /// Standard output of a success.
    pub fn answer(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        &self.stdout
    }

    /// The only line that starts with `error:`, of a failure with exit code `code`.
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        // Mesa's own lines, where there is no display.
        let own = |line: &&str| line.starts_with("error: ") && !line.contains("XDG_RUNTIME_DIR");
        let errors: Vec<&str> = self.stderr.lines().filter(own).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        errors[0]
    }

    #[allow(dead_code, reason = "some tests read no JSON")]
    pub fn objects(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}
