//! Runs the command. Every process ends with its test, and nothing is waited for longer than [`LIMIT`].

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a loaded machine; whoever reaches it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const STYLES: [&str; 2] = ["async", "event"];

/// Those that work on this machine.
pub(crate) fn backends() -> &'static [&'static str] {
    if uring_works() { &["uring", "readiness"] } else { &["readiness"] }
}

/// Whether io_uring works here. If not, says that tests on it are skipped, and why; or fails, where that was asked for.
pub(crate) fn uring_works() -> bool {
    static REFUSAL: LazyLock<Option<String>> =
        LazyLock::new(|| wharf::probe().uring.err().map(|refusal| refusal.to_string()));
    if !cfg!(target_os = "linux") {
        return false;
    }
    let Some(refusal) = &*REFUSAL else { return true };
    let required = std::env::var("WHARF_REQUIRE_URING").is_ok_and(|value| value == "1");
    assert!(!required, "WHARF_REQUIRE_URING is set, and {refusal}");
    let test = thread::current().name().unwrap_or("a test").to_owned();
    skipped(&format!("{test} on io_uring: {refusal}"));
    false
}

pub(crate) fn wharf<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharf"));
    command.args(args);
    command
}

/// Each backend with each style.
pub(crate) fn combinations() -> impl Iterator<Item = (&'static str, &'static str)> {
    backends().iter().flat_map(|backend| STYLES.map(|style| (*backend, style)))
}

/// The same, and the style that has no backend.
pub(crate) fn all_styles() -> impl Iterator<Item = (&'static str, &'static str)> {
    combinations().chain([("auto", "blocking")])
}

/// How a process ended and what it left.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A process that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Receiver<String>,
}

impl Process {
    /// Starts it with all of its streams in our hands, but for those that `command` says something about.
    pub(crate) fn start(command: &mut Command) -> Process {
        Process::fed_by(Stdio::piped(), command)
    }

    /// The same with an input that is there already.
    pub(crate) fn fed_by(input: impl Into<Stdio>, command: &mut Command) -> Process {
        let mut child = command.stdin(input).stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = lines_of(child.stderr.take().expect("stderr is a pipe"));
        Process { stdout: child.stdout.take(), stderr, child }
    }

    /// Starts it and reads all of its output from the beginning, so that it never has to wait for us.
    pub(crate) fn run(command: &mut Command, input: Vec<u8>) -> Outcome {
        let mut process = Process::start(command.stdout(Stdio::piped()));
        let mut stdin = process.stdin();
        // It may have ended already; then the outcome tells why.
        thread::spawn(move || drop(stdin.write_all(&input)));
        process.outcome()
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("nobody took it before")
    }

    pub(crate) fn stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("nobody took it before")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has a thread whose name begins so.
    #[cfg(target_os = "linux")]
    pub(crate) fn await_thread(&self, name: &str) {
        let began = std::time::Instant::now();
        let folder = format!("/proc/{}/task", self.id());
        let is_there = || {
            let tasks = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            names.any(|found| found.starts_with(name))
        };
        while !is_there() {
            assert!(began.elapsed() < LIMIT, "it has no thread {name}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }

    /// Waits for a line on standard error that contains `text`; returns all lines up to it.
    pub(crate) fn await_message(&self, text: &str) -> String {
        let mut lines = String::new();
        while let Ok(line) = self.stderr.recv_timeout(LIMIT) {
            lines.push_str(&line);
            if line.contains(text) {
                return lines;
            }
        }
        panic!("no line with {text:?} on standard error, only: {lines}");
    }

    /// Waits for the end. Output that was read before is not in the outcome.
    pub(crate) fn outcome(mut self) -> Outcome {
        let (stdout, rest) = (self.stdout.take(), mpsc::channel());
        thread::spawn(move || {
            let mut output = Vec::new();
            if let Some(mut stdout) = stdout {
                drop(stdout.read_to_end(&mut output));
            }
            drop(rest.0.send(output));
        });
        // Both streams end with the process.
        let stdout = rest.1.recv_timeout(LIMIT).expect("it ends in time");
        let mut stderr = String::new();
        loop {
            match self.stderr.recv_timeout(LIMIT) {
                Ok(line) => stderr.push_str(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end; it said: {stderr}"),
            }
        }
        let code = self.child.wait().expect("it is our child").code();
        Outcome { code, stdout, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither fails but for a process that has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A `wharf serve` that listens.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    stdout: Receiver<String>,
}

impl Server {
    pub(crate) fn start(service: &str, style: &str, more: &[&str]) -> Server {
        let mut command = wharf(["serve", service, "--listen", "127.0.0.1:0", "--style", style]);
        command.args(more);
        Server::of(command)
    }

    /// The server that `command` starts, with a listener that has an IP address first.
    pub(crate) fn of(mut command: Command) -> Server {
        let mut process = Process::start(command.stdout(Stdio::piped()));
        let stdout = lines_of(process.stdout());
        let address = next_listener(&stdout);
        Server { address: address.parse().expect(&address), process, stdout }
    }

    /// Where it listens besides: each listener in turn.
    pub(crate) fn next_listener(&self) -> String {
        next_listener(&self.stdout)
    }

    /// What it tells of itself on SIGUSR1.
    pub(crate) fn snapshot(&self) -> String {
        self.process.signal(Signal::USR1);
        self.process.await_message("stalls ")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        self.try_connect().expect("it listens")
    }

    /// Connects; a reset that comes at once may be the result of that already.
    pub(crate) fn try_connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect_timeout(&self.address, LIMIT).map(bounded)
    }

    /// Sends `signal` and waits for the end.
    pub(crate) fn end(self, signal: Signal) -> Outcome {
        self.process.signal(signal);
        self.process.outcome()
    }
}

fn next_listener(stdout: &Receiver<String>) -> String {
    let line = stdout.recv_timeout(LIMIT).expect("it says where it listens");
    line.trim_end().strip_prefix("listening on ").expect(&line).to_owned()
}

/// A folder that goes with its test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("wharf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("there is room");
        Folder(folder)
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("it is made of letters").to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("it can be written");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A listener of our own, for what a `wharf connect` should meet.
pub(crate) fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// The number of the listener in processes that start from now on.
pub(crate) fn inherited(listener: &TcpListener) -> i32 {
    fcntl_setfd(listener, FdFlags::empty()).expect("it is open");
    listener.as_raw_fd()
}

/// Accepts one connection; a listener of the standard library has no deadline of its own.
pub(crate) fn accept(listener: TcpListener) -> TcpStream {
    let (accepted, stream) = mpsc::channel();
    thread::spawn(move || drop(accepted.send(listener.accept())));
    let (stream, _) = stream.recv_timeout(LIMIT).expect("somebody connects").expect("it can be accepted");
    bounded(stream)
}

pub(crate) fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).expect("the limit is not zero");
    stream.set_write_timeout(Some(LIMIT)).expect("the limit is not zero");
    stream
}

/// Asserts that a client was refused with a reset, then or now.
pub(crate) fn assert_reset(client: io::Result<TcpStream>) {
    let error = client.and_then(|mut client| client.read(&mut [0; 1])).expect_err("it is refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Asserts that what a client sends comes back.
pub(crate) fn assert_echoes(client: &mut (impl Read + Write)) {
    client.write_all(b"hello").expect("it takes the question");
    let mut came = [0; 5];
    client.read_exact(&mut came).expect("it answers");
    assert_eq!(&came, b"hello");
}

/// Says that a test could not run. Past the test harness, which shows only what failing tests print.
pub(crate) fn skipped(why: &str) {
    drop(writeln!(io::stderr(), "\n*** SKIPPED: {why} ***\n"));
}

/// The lines of `stream`, each with its end, as they come.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}
