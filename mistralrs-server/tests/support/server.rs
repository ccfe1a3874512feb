//! The real binary as a child process: started on ports of the kernel's choice, ready before a test sees it, gone
//! after it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Http, process, tools};

/// A debug build on a loaded machine: seconds. A server that needs a minute is broken.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How long a server may drain before a test calls that a failure.
const EXIT_PATIENCE: Duration = Duration::from_secs(45);
/// What of a log is shown with a failing test.
const SHOWN_LOG_BYTES: u64 = 8 * 1024;

/// How to start a server. The flags come before the model selector, as on the command line.
#[derive(Default, Clone)]
pub struct Launch {
    flags: Vec<OsString>,
    selector: Vec<OsString>,
    environment: Vec<(String, String)>,
    config_files: Vec<(&'static str, String, String)>,
    has_mcp_port: bool,
}

impl Launch {
    /// A server with SmolLM2 loaded.
    pub fn model() -> Self {
        let path = tools::smollm2();
        let (directory, file) =
            (path.parent().expect("a file has a directory"), path.file_name().expect("a file has a name"));
        Self::default().selector([OsStr::new("gguf"), OsStr::new("-m"), directory.as_os_str(), OsStr::new("-f"), file])
    }

    /// A server with the tiny model loaded, whose answers cost next to nothing and mean nothing.
    pub fn tiny() -> Self {
        let path = tools::tiny_llama();
        Self::default().selector([OsStr::new("plain"), OsStr::new("-m"), path.as_os_str()])
    }

    /// The gateway alone: no selector, no model.
    pub fn gateway() -> Self {
        Self::default().mcp()
    }

    /// A model selector and its flags.
    pub fn selector<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.selector = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// A server flag without a value.
    pub fn flag(mut self, name: &str) -> Self {
        self.flags.push(name.into());
        self
    }

    /// A server flag with a value.
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let mut launch = self.flag(name);
        launch.flags.push(value.as_ref().to_owned());
        launch
    }

    /// An environment variable of the server.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file named `name` with `text`, given with `flag` (`--config`, `--mcp-config`).
    pub fn file(mut self, flag: &'static str, name: &str, text: &str) -> Self {
        self.config_files.push((flag, name.to_owned(), text.to_owned()));
        self
    }

    /// Adds the MCP endpoint on a port of its own, if this build has one.
    pub fn mcp(mut self) -> Self {
        self.has_mcp_port = cfg!(feature = "http-mcp-stream");
        self
    }

    /// Starts it and waits until it can answer.
    pub async fn start(self) -> anyhow::Result<Server> {
        let mut server = self.spawn()?;
        match server.wait_until_ready().await {
            Ok(()) => Ok(server),
            Err(error) => Err(error.context(format!("the server's log:\n{}", server.log()))),
        }
    }

    /// Starts it with exactly these flags and waits for it to end by itself: for starts that must be refused.
    pub async fn run_to_exit(self) -> anyhow::Result<(ExitStatus, String)> {
        let mut server = self.spawn()?;
        let status = server.wait_for_exit(START_PATIENCE).await?;
        Ok((status, server.log()))
    }

    /// Starts it and waits for nothing: for commands that serve no port.
    pub fn spawn(&self) -> anyhow::Result<Server> {
        let directory = tempfile::tempdir()?;
        let log_path = directory.path().join("server.log");
        let log = File::create(&log_path)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_mistralrs-server"));
        // The kernel picks the ports and the log says which: nobody can take one between a look and a bind.
        if !self.flags.iter().any(|flag| flag == "--port") {
            command.args(["--port", "0"]);
        }
        if !self.flags.iter().any(|flag| flag == "--threads") {
            // Tests share the machine with other servers and clients: compute threads that meet at barriers would
            // spend their time waiting for one another to be scheduled.
            command.args(["--threads", "1"]);
        }
        if self.has_mcp_port {
            command.args(["--http-mcp-port", "0"]);
        }
        for (flag, name, text) in &self.config_files {
            let path = directory.path().join(name);
            fs::write(&path, text)?;
            command.arg(flag).arg(path);
        }
        command.args(&self.flags).args(&self.selector);
        // Nothing of the developer's own configuration may reach a test.
        for name in ["MISTRALRS_CONFIG", "MISTRALRS_HTTP_MCP_PORT", "MISTRALRS_HTTP_MCP_AUTH_KEY", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.env("NO_COLOR", "1").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        let child = spawn_bound_to_this_process(command)?;
        let has_mcp_port = self.has_mcp_port;
        Ok(Server { child, port: 0, mcp_port: 0, has_mcp_port, started, ready_after: None, log_path, directory })
    }
}

/// A running server. Dropping it ends it and shows its log, which the test harness prints if the test failed.
pub struct Server {
    child: Child,
    port: u16,
    mcp_port: u16,
    has_mcp_port: bool,
    started: Instant,
    ready_after: Option<Duration>,
    log_path: PathBuf,
    directory: TempDir,
}

impl Server {
    /// The main port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of the main port.
    pub fn http(&self) -> Http {
        Http::new(self.port)
    }

    /// A client of the MCP port.
    pub fn mcp(&self) -> Http {
        assert!(self.has_mcp_port, "the test launched it without `mcp()`");
        Http::new(self.mcp_port)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From the start of the process to the first good answer.
    pub fn ready_after(&self) -> Duration {
        self.ready_after.expect("a started server was ready once")
    }

    /// A directory of this server's own; its configuration files are there.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// Asks it to end, as an init system does.
    pub fn terminate(&self) -> anyhow::Result<()> {
        process::send_signal(self.pid(), libc::SIGTERM)
    }

    /// Waits for the process to end.
    pub async fn wait_for_exit(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < deadline, "running after {patience:?}; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// That the process has not ended.
    pub fn assert_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the server ended with {status}; its log:\n{}", self.log()),
        }
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status} before it was ready");
            }
            self.port = self.announced_port("/v1").unwrap_or_default();
            self.mcp_port = self.announced_port("/mcp/stream").unwrap_or_default();
            let listens = self.port != 0 && (self.mcp_port != 0 || !self.has_mcp_port);
            if listens && self.http().get("/ready").await.is_ok_and(|answer| answer.status.is_success()) {
                self.ready_after = Some(self.started.elapsed());
                return Ok(());
            }
            anyhow::ensure!(self.started.elapsed() < START_PATIENCE, "not ready after {START_PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The port of the log's last line that announces an address with `path`.
    pub fn announced_port(&self, path: &str) -> Option<u16> {
        let log = self.log();
        let addresses =
            log.lines().filter(|line| line.contains("listening")).filter_map(|line| line.split_once("http://"));
        let mut ports = addresses.filter_map(|(_, address)| {
            let (host, found) = address.split_once('/')?;
            let is_path = found.split([' ', '"']).next() == path.strip_prefix('/');
            is_path.then(|| host.rsplit_once(':')?.1.parse().ok()).flatten()
        });
        ports.next_back()
    }

    fn show_log(&self, from: u64) {
        let mut text = String::new();
        let read = File::open(&self.log_path).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(SHOWN_LOG_BYTES))))?;
            file.read_to_string(&mut text)
        });
        match read {
            Ok(_) => println!("--- log of the server on port {} ---\n{text}", self.port),
            Err(error) => println!("--- no log of the server on port {}: {error}", self.port),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.show_log(0);
        let _ = self.terminate();
        let deadline = Instant::now() + EXIT_PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("the server on port {} did not end within {EXIT_PATIENCE:?} of SIGTERM", self.port);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that all tests of one binary use; it ends with the process.
pub struct Shared {
    cell: OnceCell<Server>,
    launch: fn() -> Launch,
}

impl Shared {
    /// Started by `launch` when the first test asks.
    pub const fn new(launch: fn() -> Launch) -> Self {
        Self { cell: OnceCell::const_new(), launch }
    }

    /// The server.
    pub async fn get(&'static self) -> anyhow::Result<Borrowed> {
        let server = self.cell.get_or_try_init(|| (self.launch)().start()).await?;
        let log_start = fs::metadata(&server.log_path).map_or(0, |metadata| metadata.len());
        Ok(Borrowed { server, log_start })
    }
}

/// A shared server in one test's hands; on drop it shows what was logged meanwhile.
pub struct Borrowed {
    server: &'static Server,
    log_start: u64,
}

impl Deref for Borrowed {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.server.show_log(self.log_start);
    }
}

/// A port that nobody listened on a moment ago, for programs that cannot be told to pick one.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts `command` so that it gets SIGTERM when this test process ends, however it ends.
pub fn spawn_bound_to_this_process(mut command: Command) -> anyhow::Result<Child> {
    type Job = (Command, SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let bind = || {
        // SAFETY: prctl(2) with these arguments reads no memory, and is safe between fork and exec.
        let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(bind) };
    // The signal comes when the *thread* that spawned ends, and a test's thread ends with the test.
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = sync_channel::<Job>(16);
        std::thread::spawn(move || {
            for (mut command, reply) in jobs {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, child) = sync_channel(1);
    spawner.send((command, reply)).context("the spawning thread has ended")?;
    child.recv().context("the spawning thread has ended")?.context("cannot start the process")
}
