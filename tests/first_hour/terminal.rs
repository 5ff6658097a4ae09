//! The program in a terminal: the line of a conversation, and when colours and bars are drawn. A pseudo-terminal of 80
//! columns, which is what a window gives it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::pty::{Winsize, openpty};

use super::{BASE, tune};

/// Longest wait for an output.
const PATIENCE: Duration = Duration::from_secs(60);
const ESCAPE: char = '\u{1b}';
const LEFT: &str = "\u{1b}[D";
const UP: &str = "\u{1b}[A";
const BACKSPACE: &str = "\u{7f}";
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";

/// A running command, and the terminal that it runs in.
struct Terminal {
    child: Child,
    keys: File,
    output: Receiver<Vec<u8>>,
    unread: Vec<u8>,
}

impl Terminal {
    fn new(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(&size, None).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tune"))
            .args(arguments)
            .current_dir(folder)
            .env_remove("CI")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .env_remove("XDG_STATE_HOME")
            .env("TERM", "xterm-256color")
            .env("HOME", folder)
            .env("HF_HUB_CACHE", folder.join("no-cache"))
            .envs(variables.iter().copied())
            .stdin(ends.slave.try_clone().unwrap())
            .stdout(ends.slave.try_clone().unwrap())
            .stderr(ends.slave)
            .spawn()
            .unwrap();
        let keys = File::from(ends.master);
        let (mut screen, (sender, output)) = (keys.try_clone().unwrap(), channel());
        // Until all of the program's ends are closed.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                let _left = sender.send(bytes[..length].to_vec());
            }
        });
        Self { child, keys, output, unread: Vec::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// What is shown up to `text`, since the last call.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let shown = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(at) = shown.find(text) {
                self.unread = shown.as_bytes()[at + text.len()..].to_vec();
                return shown[..at].to_owned();
            }
            let more = self.output.recv_timeout(PATIENCE);
            self.unread.extend(more.unwrap_or_else(|_| panic!("no {text:?} in {shown:?}")));
        }
    }

    /// The next prompt of a conversation: pasted text is to be bracketed from there on.
    #[track_caller]
    fn wait_for_prompt(&mut self) {
        self.wait_for("\u{1b}[?2004h");
    }

    /// The exit code, and the rest of the output.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(more) = self.output.recv_timeout(PATIENCE) {
            self.unread.extend(more);
        }
        (self.child.wait().unwrap().code(), String::from_utf8(self.unread).unwrap())
    }
}

fn chat(folder: &Path, more: &[&str], variables: &[(&str, &str)]) -> Terminal {
    Terminal::new(folder, &[&["chat", BASE, "--max-new-tokens", "2"], more].concat(), variables)
}

#[test]
fn a_line_is_edited_and_recalled() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let history = folder.join(".local/state/tune/chat_history");
    let mut first = chat(folder, &[], &[]);
    // An unknown command shows the line as it was read.
    let entered = |terminal: &mut Terminal, keys: &str, line: &str| {
        terminal.wait_for_prompt();
        terminal.press(keys);
        terminal.press("\r");
        terminal.wait_for(&format!("unknown command `{line}`"));
    };
    entered(&mut first, &format!("/wrld{LEFT}{LEFT}{LEFT}o"), "/world");
    entered(&mut first, &format!("/水é!{LEFT}{LEFT}{BACKSPACE}ß"), "/ßé!");
    entered(&mut first, &format!("{UP}{UP}{UP}{BACKSPACE}"), "/worl");
    // What is pasted without brackets, or typed ahead, is not lost.
    entered(&mut first, "/a\r/b", "/a");
    first.wait_for("unknown command `/b`");
    // Ctrl-C empties the line and says how to leave.
    first.wait_for_prompt();
    first.press(&format!("not sent{CTRL_C}"));
    first.wait_for("Ctrl-D or /exit leaves");
    first.wait_for_prompt();
    first.press("Hello.\r");
    first.wait_for_prompt();
    first.press(" not kept\r");
    // A terminal's own line ends at 4,096 bytes.
    first.wait_for_prompt();
    first.press(&format!("/{}\r", "x".repeat(5000)));
    first.wait_for("unknown command");
    first.wait_for_prompt();
    first.press("/exit\r");
    assert_eq!(first.end().0, Some(0));
    let kept = fs::read_to_string(&history).unwrap();
    let mut lines: Vec<&str> = kept.lines().skip(1).collect();
    assert_eq!(lines.pop(), Some(format!("/{}", "x".repeat(5000)).as_str()));
    assert_eq!(lines, ["/world", "/ßé!", "/worl", "/a", "/b", "Hello."]);
    assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);

    // Another conversation remembers them.
    let mut second = chat(folder, &[], &[]);
    entered(&mut second, &format!("{UP}{UP}{UP}!"), "/b!");
    second.wait_for_prompt();
    second.press(CTRL_D);
    assert_eq!(second.end().0, Some(0));
    let kept = fs::read_to_string(&history).unwrap();
    assert!(kept.ends_with("\n/b!\n"), "{kept}");

    // Without a history nothing is read or written.
    let mut third = chat(folder, &["--no-history"], &[]);
    entered(&mut third, &format!("{UP}/c"), "/c");
    third.wait_for_prompt();
    third.press(CTRL_D);
    assert_eq!(third.end().0, Some(0));
    assert_eq!(fs::read_to_string(&history).unwrap(), kept);

    // A chat goes on where its history cannot be written.
    let mut fourth = chat(folder, &[], &[("XDG_STATE_HOME", "/dev/null/state")]);
    entered(&mut fourth, "/d", "/d");
    entered(&mut fourth, &format!("{UP}e"), "/de");
    fourth.wait_for_prompt();
    fourth.press(CTRL_D);
    assert_eq!(fourth.end().0, Some(0));
}

#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = chat(folder.path(), &[], &[("TERM", "dumb")]);
    let mut shown = terminal.wait_for("\n> ");
    terminal.press("/x\n");
    shown += &terminal.wait_for("unknown command `/x`");
    shown += &terminal.wait_for("\n> ");
    terminal.press(CTRL_D);
    let (code, rest) = terminal.end();
    assert_eq!(code, Some(0));
    assert!(!(shown + &rest).contains(ESCAPE));
}

#[test]
fn colours_and_bars_are_drawn_on_terminals_that_take_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "."]).status.success());
    let run = ["run", "quickstart.toml", "--overwrite", "--set", "train.max_steps=2"];
    let shown = |variables: &[(&str, &str)]| {
        let (code, shown) = Terminal::new(folder, &run, variables).end();
        assert_eq!(code, Some(0), "{shown}");
        shown
    };
    let drawn = shown(&[]);
    assert!(drawn.contains("\u{1b}[1m") && drawn.contains('━'), "neither colours nor bars: {drawn:?}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb"), ("CI", "true")] {
        let shown = shown(&[plain]);
        assert!(!shown.contains([ESCAPE, '━']), "{plain:?}: {shown:?}");
        assert!(shown.contains("step 2/2"), "{plain:?}: {shown:?}");
        // Text is broken between words at the terminal's width; a command to type is not.
        let long = shown.lines().find(|line| line.trim_end().chars().count() > 80 && !line.starts_with("  "));
        assert_eq!(long, None, "{plain:?}");
    }
}
