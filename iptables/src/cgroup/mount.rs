//! Where cgroup2 is mounted, from `/proc/self/mountinfo`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The cgroup that is seen there, counted from this process' cgroup namespace.
    root: String,
    point: PathBuf,
    is_writable: bool,
}

/// The writable ones first.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let mut mounts = parse(&fs::read_to_string("/proc/self/mountinfo")?);
    mounts.sort_by_key(|mount| !mount.is_writable);
    Ok(mounts)
}

impl Mount {
    /// Where this mount shows the cgroup `path`, if it does.
    pub(super) fn directory_of(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }

    /// The cgroup that `directory` shows, if it is of this mount.
    pub(super) fn path_of(&self, directory: &Path) -> Option<String> {
        let below = directory.strip_prefix(&self.point).ok()?;
        // One from outside of the namespace cannot be named from within.
        let is_outside = self.root.starts_with("/..");
        (!is_outside).then(|| Path::new(&self.root).join(below).display().to_string())
    }
}

/// The columns are: id, parent, device, root, mount point, options, optional fields, `-`, file system
/// type, source, options of the file system.
fn parse(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        if file_system.next()? != "cgroup2" {
            return None;
        }
        let of_file_system = file_system.nth(1)?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point, options) = (mount.next()?, mount.next()?, mount.next()?);
        let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
        Some(Mount {
            root: unescape(root),
            point: unescape(point).into(),
            is_writable: !is_read_only(options) && !is_read_only(of_file_system),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The kernel writes space, tab, line end and backslash as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let byte = part
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[3..]);
            }
            None => bytes.extend_from_slice(part.as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_found_wherever_it_is_mounted() {
        let hybrid = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
";
        let mounts = parse(hybrid);
        let [mount] = mounts.as_slice() else {
            panic!("{mounts:?}");
        };
        assert!(mount.is_writable);
        let directory = PathBuf::from("/sys/fs/cgroup/unified/a/b");
        assert_eq!(mount.directory_of("/a/b"), Some(directory.clone()));
        assert_eq!(mount.path_of(&directory).as_deref(), Some("/a/b"));
        assert_eq!(mount.path_of("/sys/fs/cgroup/memory/a".as_ref()), None);
    }

    #[test]
    fn a_mount_shows_what_is_below_its_root_only() {
        let part = "31 30 0:27 /pod /mnt/my\\040cgroups rw - cgroup2 none ro\n";
        let mount = &parse(part)[0];
        assert!(!mount.is_writable);
        let directory = PathBuf::from("/mnt/my cgroups/a");
        assert_eq!(mount.directory_of("/pod/a"), Some(directory.clone()));
        assert_eq!(mount.directory_of("/other"), None);
        assert_eq!(mount.path_of(&directory).as_deref(), Some("/pod/a"));
    }

    #[test]
    fn what_lies_outside_of_the_namespace_has_no_path() {
        let outside = &parse("31 30 0:27 /../.. /host rw - cgroup2 none rw\n")[0];
        assert_eq!(outside.path_of("/host/a".as_ref()), None);
        assert_eq!(outside.directory_of("/a"), None);
    }
}
