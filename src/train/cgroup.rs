//! The memory limits of Linux control groups, versions 1 and 2, which containers and batch systems set.
//!
//! A process may use what the tightest of its group and the groups above leaves: limit − usage, where the page cache of
//! files that were not used lately counts as free.

use std::path::{Path, PathBuf};

/// The tightest limits of a process's groups, in bytes; `None` without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// The lowest limit.
    pub limit: Option<u64>,
    /// The least memory left below a limit.
    pub available: Option<u64>,
}

/// The names of a version's files.
struct Layout {
    limit: &'static str,
    usage: &'static str,
    inactive_file: &'static str,
}

const VERSION_1: Layout = Layout {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file",
};
const VERSION_2: Layout =
    Layout { limit: "memory.max", usage: "memory.current", inactive_file: "inactive_file" };

/// Limits from which on version 1 means none: it reports the largest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

/// The limits of this process.
pub(super) fn own() -> Limits {
    below(Path::new("/"))
}

/// The limits of the process that a file system at `root` describes.
fn below(root: &Path) -> Limits {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut limits = Limits::default();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(group) = groups.lines().find_map(|line| mount.group(line)) else { continue };
        let top = root.join(mount.point.trim_start_matches('/'));
        for folder in mount.folder(&top, group).ancestors().take_while(|folder| folder.starts_with(&top)) {
            limits.add(folder, mount.layout());
        }
    }
    limits
}

impl Limits {
    /// Takes the limit of one group into account.
    fn add(&mut self, folder: &Path, layout: &Layout) {
        let number = |file: &str| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let Some(limit) = number(layout.limit).filter(|limit| *limit < UNLIMITED) else { return };
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| {
            line.strip_prefix(layout.inactive_file)?.strip_prefix(' ')?.trim().parse::<u64>().ok()
        });
        let used = number(layout.usage).unwrap_or(0).saturating_sub(inactive.unwrap_or(0));
        let available = limit.saturating_sub(used);
        self.limit = Some(self.limit.map_or(limit, |least| least.min(limit)));
        self.available = Some(self.available.map_or(available, |least| least.min(available)));
    }
}

/// A mounted hierarchy of groups that limits memory.
struct Mount<'a> {
    /// The group that is visible at the mount point.
    root: &'a str,
    point: &'a str,
    is_version_2: bool,
}

impl<'a> Mount<'a> {
    /// Reads a line of `/proc/self/mountinfo`: `ID PARENT DEVICE ROOT POINT … - TYPE SOURCE OPTIONS`.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut system = system.split(' ');
        let is_version_2 = match system.next()? {
            "cgroup2" => true,
            "cgroup" if system.nth(1)?.split(',').any(|option| option == "memory") => false,
            _ => return None,
        };
        Some(Self { root, point, is_version_2 })
    }

    /// The process's group in this hierarchy, from a line of `/proc/self/cgroup`: `ID:CONTROLLERS:GROUP`.
    fn group<'b>(&self, line: &'b str) -> Option<&'b str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let is_ours = match self.is_version_2 {
            true => controllers.is_empty(),
            false => controllers.split(',').any(|controller| controller == "memory"),
        };
        is_ours.then_some(group)
    }

    /// The folder of a group. A group outside the visible part of the hierarchy is represented by the mount point.
    fn folder(&self, top: &Path, group: &str) -> PathBuf {
        let inside = match self.root {
            "/" => Some(group),
            root => group.strip_prefix(root),
        };
        let inside = inside.filter(|inside| !inside.split('/').any(|part| part == ".."));
        top.join(inside.unwrap_or_default().trim_start_matches('/'))
    }

    fn layout(&self) -> &'static Layout {
        if self.is_version_2 { &VERSION_2 } else { &VERSION_1 }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The limits of a machine with these files.
    fn limits(files: &[(&str, &str)]) -> Limits {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        below(root.path())
    }

    const MOUNT_2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_tightest_group_of_version_2_decides() {
        let files = [
            ("proc/self/mountinfo", MOUNT_2),
            ("proc/self/cgroup", "0::/jobs/one\n"),
            ("sys/fs/cgroup/jobs/memory.max", "1000000\n"),
            ("sys/fs/cgroup/jobs/memory.current", "900000\n"),
            ("sys/fs/cgroup/jobs/memory.stat", "anon 1\nactive_file 5\ninactive_file 200000\n"),
            ("sys/fs/cgroup/jobs/one/memory.max", "800000\n"),
            ("sys/fs/cgroup/jobs/one/memory.current", "100000\n"),
        ];
        assert_eq!(limits(&files), Limits { limit: Some(800_000), available: Some(300_000) });
        let unlimited = [files[0], files[1], ("sys/fs/cgroup/jobs/one/memory.max", "max\n")];
        assert_eq!(limits(&unlimited), Limits::default());
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount_point() {
        let group = ("sys/fs/cgroup/memory.max", "400000000\n");
        let usage = ("sys/fs/cgroup/memory.current", "100000000\n");
        let expected = Limits { limit: Some(400_000_000), available: Some(300_000_000) };
        for cgroup in ["0::/\n", "0::/../outside\n"] {
            let files = [("proc/self/mountinfo", MOUNT_2), ("proc/self/cgroup", cgroup), group, usage];
            assert_eq!(limits(&files), expected, "{cgroup}");
        }
    }

    #[test]
    fn version_1_has_a_hierarchy_for_memory() {
        let files = [
            (
                "proc/self/mountinfo",
                "30 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 31 25 0:28 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "150000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50000000\n"),
        ];
        assert_eq!(limits(&files), Limits { limit: Some(400_000_000), available: Some(300_000_000) });
        let unlimited =
            [files[0], files[1], ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")];
        assert_eq!(limits(&unlimited), Limits::default());
    }
}
