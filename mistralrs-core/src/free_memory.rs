//! How much memory this process can have: what the machine has free, and what its control groups leave of that.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Bytes that can be had without swapping and without being killed; `None` where the system does not say.
pub(crate) fn free_bytes() -> Option<usize> {
    free_bytes_below(Path::new("/"))
}

/// The same of a system whose files are below `root`.
fn free_bytes_below(root: &Path) -> Option<usize> {
    let machine = available(&read_to_string(root.join("proc/meminfo")).ok()?)?;
    let groups = control_groups(root).into_iter().filter_map(|group| group.num_free_bytes());
    Some(groups.fold(machine, usize::min))
}

fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: usize = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A control group with a limit of memory, of either version.
struct ControlGroup {
    dir: PathBuf,
    files: &'static Files,
}

/// What the two versions call the same things.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` that tells what of the usage is page cache, which gives way: model files are in it.
    reclaimable: &'static str,
}

const V1: Files =
    Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file" };
const V2: Files = Files { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

impl ControlGroup {
    /// `None` without a limit (`max`, no file), or where the files say nothing.
    fn num_free_bytes(&self) -> Option<usize> {
        let number = |name| read_to_string(self.dir.join(name)).ok()?.trim().parse::<usize>().ok();
        let (limit, usage) = (number(self.files.limit)?, number(self.files.usage)?);
        let stat = read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| line.strip_prefix(self.files.reclaimable)?.trim().parse().ok());
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable.unwrap_or(0))))
    }
}

/// The process's group and all above it: each can have a limit. In a container the path is often that of the host, and
/// the group's files are at the mount itself, which is the last ancestor.
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let membership = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", &V2),
            names if names.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", &V1),
            _ => continue,
        };
        let mount = root.join(mount);
        let group = mount.join(path.trim_start_matches('/'));
        groups.extend(
            group
                .ancestors()
                .take_while(|dir| dir.starts_with(&mount))
                .map(|dir| ControlGroup { dir: dir.to_owned(), files }),
        );
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    /// Free bytes of a machine with 8 GiB available and these files besides.
    fn check(files: &[(&str, &str)], expected: Option<usize>) {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nBuffers: 1 kB\n");
        for (path, text) in [&meminfo].into_iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(free_bytes_below(root.path()), expected);
    }

    #[test]
    fn without_control_groups_it_is_what_the_machine_has_available() {
        check(&[], Some(8 * GIB));
        check(&[("proc/meminfo", "MemFree: 1 kB\n")], None);
        assert_eq!(free_bytes_below(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_tightest_limit_of_a_group_and_its_ancestors_counts() {
        let membership = ("proc/self/cgroup", "0::/service/worker\n");
        check(&[membership, ("sys/fs/cgroup/service/worker/memory.max", "max\n")], Some(8 * GIB));
        let worker = [
            membership,
            ("sys/fs/cgroup/service/worker/memory.max", "6442450944\n"),
            ("sys/fs/cgroup/service/worker/memory.current", "1073741824\n"),
        ];
        check(&worker, Some(5 * GIB));
        let service = [
            ("sys/fs/cgroup/service/memory.max", "3221225472"),
            ("sys/fs/cgroup/service/memory.current", "2147483648"),
        ];
        check(&[&worker[..], &service].concat(), Some(GIB));
    }

    #[test]
    fn page_cache_that_gives_way_counts_as_free() {
        check(
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("sys/fs/cgroup/memory.max", "4294967296\n"),
                ("sys/fs/cgroup/memory.current", "4294967296\n"),
                ("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 3221225472\nactive_file 5\n"),
            ],
            Some(3 * GIB),
        );
    }

    #[test]
    fn the_older_version_is_read_too_and_no_limit_is_a_large_number() {
        let membership = ("proc/self/cgroup", "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n");
        let unlimited = "9223372036854771712\n";
        let group = [
            membership,
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", unlimited),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n"),
        ];
        check(&group, Some(8 * GIB));
        let limited = [
            ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1610612736\n"),
            ("sys/fs/cgroup/memory/docker/abc/memory.stat", "inactive_file 0\ntotal_inactive_file 536870912\n"),
        ];
        check(&[&group[..], &limited].concat(), Some(GIB));
    }
}
