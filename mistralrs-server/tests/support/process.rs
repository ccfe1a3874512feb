//! What the kernel says about a process: CPU time, memory, open files, children.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Context;

/// A moment's reading of `/proc/PID`.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// CPU time of all threads, user and system, in clock ticks (100 a second on Linux).
    pub cpu_ticks: u64,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// Open file descriptors: sockets and pipes are among them.
    pub num_fds: usize,
}

/// Reads `/proc/PID`.
pub fn read(pid: u32) -> anyhow::Result<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat_fields_after_name(&stat)?;
    let ticks = |index: usize| -> anyhow::Result<u64> { Ok(fields.get(index).context("short stat line")?.parse()?) };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS line")?;
    Ok(Reading {
        // Fields 14 and 15 of proc(5); the slice starts at field 3.
        cpu_ticks: ticks(11)? + ticks(12)?,
        resident_kib: resident.trim().trim_end_matches("kB").trim().parse()?,
        num_fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
    })
}

/// Processes whose parent is `pid`, zombies left out.
pub fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    matching(|fields| fields[1].parse() == Ok(pid))
}

/// All descendants of `pid`, zombies left out.
pub fn descendants(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = children(pid)?;
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next])?);
        next += 1;
    }
    Ok(found)
}

/// Processes of the group that `leader` founded, zombies left out.
pub fn group(leader: u32) -> anyhow::Result<Vec<u32>> {
    matching(|fields| fields[2].parse() == Ok(leader))
}

/// How many bytes wait in the pipe that is the stdin of `pid`.
pub fn unread_input(pid: u32) -> anyhow::Result<usize> {
    let stdin = fs::File::open(format!("/proc/{pid}/fd/0"))?;
    let mut num_bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `num_bytes` outlives the call.
    let status = unsafe { libc::ioctl(stdin.as_raw_fd(), libc::FIONREAD, &raw mut num_bytes) };
    anyhow::ensure!(status == 0, "FIONREAD: {}", std::io::Error::last_os_error());
    Ok(usize::try_from(num_bytes)?)
}

/// Whether a process with this id exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat_fields_after_name(&stat).is_ok_and(|fields| fields[0] != "Z")
}

/// Sends `signal` to `pid`.
pub fn send_signal(pid: u32, signal: libc::c_int) -> anyhow::Result<()> {
    // SAFETY: kill(2) takes plain integers and touches no memory of ours.
    let status = unsafe { libc::kill(libc::pid_t::try_from(pid)?, signal) };
    anyhow::ensure!(status == 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// Calls `probe` until it gives a value, at most `patience` long; the error is `probe`'s last word.
///
/// For what another process does at its own pace: there is no clock of ours to pause.
pub async fn eventually<T, F>(patience: Duration, mut probe: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {patience:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Processes whose stat line `is_meant`, zombies left out.
fn matching(is_meant: impl Fn(&[&str]) -> bool) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(candidate) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(format!("/proc/{candidate}/stat")) else { continue };
        let fields = stat_fields_after_name(&stat)?;
        if fields[0] != "Z" && is_meant(&fields) {
            found.push(candidate);
        }
    }
    Ok(found)
}

/// The fields after the command's name, which is in parentheses and may hold spaces.
fn stat_fields_after_name(stat: &str) -> anyhow::Result<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(") ").context("no `)` in a stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    anyhow::ensure!(fields.len() > 12, "short stat line");
    Ok(fields)
}
