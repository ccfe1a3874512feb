//! An upstream that is a child process.
//!
//! It lives in a process group of its own, so that what it started ends with it, and it is always reaped. When this
//! process dies without warning the kernel closes the child's stdin, which is how the protocol ends a stdio server.
//! (`PR_SET_PDEATHSIG` would need code between fork and exec, and so a fork that copies the page tables of a process
//! that holds a model.)

use std::io;
use std::process::Stdio;
use std::time::Duration;

use process_wrap::tokio::{ChildWrapper, CommandWrap, KillOnDrop, ProcessGroup};
use rmcp::RoleClient;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::config::{StdioConfig, UpstreamId};

/// After its stdin is closed a child may finish what it is doing.
const STDIN_CLOSED_GRACE: Duration = Duration::from_secs(2);
/// After SIGTERM it may clean up. Both together stay below the time that a shutdown of the whole process has.
const SIGTERM_GRACE: Duration = Duration::from_secs(1);
const SIGTERM: i32 = 15;
/// What a child must not learn from our environment unless its configuration passes it on by name.
const OWN_SECRETS: [&str; 2] = ["MISTRALRS_HTTP_MCP_AUTH_KEY", "HF_TOKEN"];

/// A child with its stdin and stdout as a transport: one JSON-RPC message a line.
pub(super) struct ChildTransport {
    child: ReapedChild,
    lines: AsyncRwTransport<RoleClient, ChildStdout, ChildStdin>,
}

/// Kills its group when dropped.
struct ReapedChild {
    upstream: UpstreamId,
    process: Box<dyn ChildWrapper>,
    has_exited: bool,
}

/// Starts the child.
///
/// # Errors
/// What the system says, with the program's name.
pub(super) fn spawn(upstream: &UpstreamId, config: &StdioConfig) -> io::Result<(ChildTransport, ChildStderr)> {
    let mut command = Command::new(&config.command);
    command.args(&config.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in OWN_SECRETS {
        command.env_remove(name);
    }
    command.envs(config.env.iter().map(|(name, value)| (name, value.expose())));
    if let Some(cwd) = &config.cwd {
        command.current_dir(cwd);
    }
    let mut command = CommandWrap::from(command);
    command.wrap(ProcessGroup::leader()).wrap(KillOnDrop);
    let mut process = command.spawn().map_err(|error| explain(&error, config))?;
    let pipes = (process.stdin().take(), process.stdout().take(), process.stderr().take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(io::Error::other("a pipe to the child is missing"));
    };
    let child = ReapedChild { upstream: upstream.clone(), process, has_exited: false };
    Ok((ChildTransport { child, lines: AsyncRwTransport::new(stdout, stdin) }, stderr))
}

/// The system says "No such file" for a missing program and for a missing working directory.
fn explain(error: &io::Error, config: &StdioConfig) -> io::Error {
    let is_cwd_missing = config.cwd.as_ref().is_some_and(|cwd| !cwd.is_dir());
    let text = match error.kind() {
        io::ErrorKind::NotFound if is_cwd_missing => "its `cwd` is not a directory".to_owned(),
        io::ErrorKind::NotFound => format!("the program `{}` was not found in PATH", config.command),
        _ => format!("the program `{}` could not be started: {error}", config.command),
    };
    io::Error::new(error.kind(), text)
}

impl Transport<RoleClient> for ChildTransport {
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.lines.send(message)
    }

    fn receive(&mut self) -> impl Future<Output = Option<RxJsonRpcMessage<RoleClient>>> + Send {
        self.lines.receive()
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        // A message that the child does not read keeps its stdin open, and then there is nothing to wait for.
        let is_stdin_closed = timeout(STDIN_CLOSED_GRACE, self.lines.close()).await.is_ok();
        self.child.end(if is_stdin_closed { STDIN_CLOSED_GRACE } else { Duration::ZERO }).await
    }
}

impl ReapedChild {
    /// Waits for the child to end by itself, then asks it to, then makes it.
    async fn end(&mut self, grace: Duration) -> io::Result<()> {
        if self.exits_within(grace).await? {
            return Ok(());
        }
        let _ = self.process.signal(SIGTERM);
        if self.exits_within(SIGTERM_GRACE).await? {
            return Ok(());
        }
        tracing::warn!(upstream = %self.upstream, "did not end when asked to, and is killed");
        self.process.start_kill()?;
        self.process.wait().await?;
        self.has_exited = true;
        Ok(())
    }

    async fn exits_within(&mut self, grace: Duration) -> io::Result<bool> {
        let Ok(status) = timeout(grace, self.process.wait()).await else { return Ok(false) };
        let status = status?;
        self.has_exited = true;
        tracing::debug!(upstream = %self.upstream, %status, "ended");
        // Whatever it left running in its group goes too; a group that has members keeps its number.
        let _ = self.process.start_kill();
        Ok(true)
    }
}

impl Drop for ReapedChild {
    fn drop(&mut self) {
        if !self.has_exited {
            // tokio reaps it afterwards.
            let _ = self.process.start_kill();
        }
    }
}
