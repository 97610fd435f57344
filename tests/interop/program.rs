//! Programs of others: started, spoken to and listened to. Each ends with its test, and nothing is waited for longer than [`LIMIT`].

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; whoever reaches it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Whether a program is installed. If not, says that the test is skipped; or fails, where that was asked for.
pub(crate) fn is_here(program: &str) -> bool {
    let is_required = std::env::var("WHARF_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    let is_here = is_here_by_chance(program);
    assert!(is_here || !is_required, "WHARF_REQUIRE_TOOLS is set, and {program} is not installed");
    is_here
}

/// The same of a program that not every system has: its test is skipped in any case.
pub(crate) fn is_here_by_chance(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let test = thread::current().name().unwrap_or("a test").to_owned();
    // Straight to the descriptor, for the test harness swallows what is printed; and in one piece.
    let line = format!("\n*** SKIPPED: {test}: {program} is not installed ***\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

pub(crate) fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A program that runs; it is killed when this is dropped.
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    heard: Arc<Heard>,
    /// How far [`Program::await_text`] has come.
    read: usize,
}

/// How a program ended, and what it left.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    /// Standard output and standard error, as they came.
    pub(crate) all: String,
}

#[derive(Default)]
struct Heard {
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Default)]
struct Output {
    out: Vec<u8>,
    all: Vec<u8>,
    ended: usize,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Program {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let heard = Arc::new(Heard::default());
        listen(child.stdout.take().unwrap(), &heard, true);
        listen(child.stderr.take().unwrap(), &heard, false);
        Program { stdin: child.stdin.take(), child, heard, read: 0 }
    }

    /// Runs it to its end; it gets no input.
    pub(crate) fn run(command: &mut Command) -> Outcome {
        let mut program = Program::start(command);
        program.hush();
        program.outcome()
    }

    /// Waits until it listens, and tells the port: one that the system chose, which not every program tells.
    pub(crate) fn await_port(&mut self) -> u16 {
        let began = Instant::now();
        loop {
            if let Some(port) = listening(self.child.id()) {
                return port;
            }
            let has_ended = self.child.try_wait().unwrap().is_some();
            assert!(!has_ended && began.elapsed() < LIMIT, "it does not listen: {}", self.heard.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Puts this into its input, in one piece if that fits into a pipe.
    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stdin.as_mut().unwrap().write_all(bytes.as_ref()).unwrap();
    }

    /// Feeds its input while the test goes on. The input stays open until the thread's end is asked for.
    pub(crate) fn feed(&mut self, bytes: Vec<u8>) -> thread::JoinHandle<ChildStdin> {
        let mut stdin = self.stdin.take().unwrap();
        thread::spawn(move || {
            stdin.write_all(&bytes).unwrap();
            stdin
        })
    }

    /// Ends its input.
    pub(crate) fn hush(&mut self) {
        self.stdin = None;
    }

    /// Waits until it prints `text`, behind what was awaited before.
    pub(crate) fn await_text(&mut self, text: &str) {
        let mut read = self.read;
        let output = self.heard.wait(&format!("text {text:?}"), |output| {
            let found = find(&output.all[read..], text.as_bytes());
            read += found.map_or(0, |at| at + text.len());
            found.is_some()
        });
        drop(output);
        self.read = read;
    }

    /// Waits for a line that begins with `word`; returns what follows there.
    pub(crate) fn await_line(&mut self, word: &str) -> String {
        self.await_text(word);
        let mut rest = String::new();
        let read = self.read;
        let output = self.heard.wait(&format!("end of the line {word:?}"), |output| {
            let line = &output.all[read..];
            let end = line.iter().position(|byte| *byte == b'\n');
            rest = String::from_utf8_lossy(&line[..end.unwrap_or_default()]).trim().to_owned();
            end.is_some()
        });
        drop(output);
        rest
    }

    /// Waits for so many bytes on its standard output, and returns all that there are.
    pub(crate) fn await_bytes(&mut self, count: usize) -> Vec<u8> {
        let output = self.heard.wait(&format!("{count} bytes"), |output| output.out.len() >= count);
        output.out.clone()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) fn outcome(mut self) -> Outcome {
        let mut output = self.heard.wait("end", |output| output.ended == 2);
        let (out, all) = (std::mem::take(&mut output.out), std::mem::take(&mut output.all));
        drop(output);
        let code = self.child.wait().unwrap().code();
        Outcome { code, out, all: String::from_utf8_lossy(&all).into_owned() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Neither fails but for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().all).into_owned()
    }

    fn wait(&self, what: &str, mut is_there: impl FnMut(&Output) -> bool) -> MutexGuard<'_, Output> {
        let began = Instant::now();
        let mut output = self.lock();
        while !is_there(&output) {
            let left = LIMIT.saturating_sub(began.elapsed());
            if left.is_zero() || output.ended == 2 {
                drop(output);
                let all = self.text();
                panic!("no {what}, only: {all}");
            }
            output = self.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        output
    }
}

/// Listens to one of a program's streams until it ends.
fn listen(mut stream: impl Read + Send + 'static, heard: &Arc<Heard>, is_out: bool) {
    let heard = heard.clone();
    thread::spawn(move || {
        let mut buf = vec![0; 64 * 1024];
        loop {
            let n = stream.read(&mut buf).unwrap_or(0);
            let mut output = heard.lock();
            if n == 0 {
                output.ended += 1;
            }
            output.all.extend_from_slice(&buf[..n]);
            if is_out {
                output.out.extend_from_slice(&buf[..n]);
            }
            heard.changed.notify_all();
            if n == 0 {
                return;
            }
        }
    });
}

/// The port on which a process listens for IPv4: that of a socket of its own in /proc/net/tcp (proc_pid_net(5)).
fn listening(process: u32) -> Option<u16> {
    const LISTEN: &str = "0A";
    let folder = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<_> = links.filter_map(|link| link.to_str().map(str::to_owned)).collect();
    let all = std::fs::read_to_string("/proc/net/tcp").ok()?;
    all.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let socket = format!("socket:[{}]", fields[9]);
        let port = fields[1].rsplit_once(':')?.1;
        (fields[3] == LISTEN && sockets.contains(&socket)).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

fn find(all: &[u8], text: &[u8]) -> Option<usize> {
    all.windows(text.len()).position(|window| window == text)
}
