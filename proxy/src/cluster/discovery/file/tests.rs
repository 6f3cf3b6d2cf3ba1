use std::{fs, os::unix::fs::symlink, time::Duration};

use tokio::task::LocalSet;

use super::*;

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outrigger-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, ports: &[u16]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        let lines = ports.iter().map(|p| format!("- address: 192.0.2.1:{p}\n"));
        fs::write(path, lines.collect::<String>()).expect("written");
    }

    /// As `ln -s` to a name beside it, renamed over.
    fn swap_link(&self, name: &str, target: impl AsRef<Path>) {
        let next = self.0.join("next-link");
        symlink(target, &next).expect("linked");
        fs::rename(next, self.0.join(name)).expect("renamed");
    }

    fn watch(&self, name: &str) -> (File, Arc<DiscoveryStatus>) {
        let status = Arc::new(DiscoveryStatus::default());
        let files = Rc::new(Files::default());
        let file = File::watch(&self.0.join(name), &files, status.clone());
        (file.expect("watched"), status)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn ports(file: &mut File) -> Vec<u16> {
    let next = tokio::time::timeout(Duration::from_secs(10), file.next()).await;
    let endpoints = next.expect("a change is seen");
    endpoints.iter().map(|e| e.address.port()).collect()
}

#[tokio::test]
async fn a_file_renamed_over_is_read_and_a_bad_one_changes_nothing_and_is_told() {
    let test = async {
        let directory = Directory::new("endpoints-renamed");
        directory.write("e", &[1]);
        let (mut file, status) = directory.watch("e");
        assert_eq!(ports(&mut file).await, [1]);
        fs::write(directory.0.join("next"), "- address: nowhere\n").expect("written");
        fs::rename(directory.0.join("next"), directory.0.join("e")).expect("renamed");
        let silence = tokio::time::timeout(Duration::from_millis(200), file.next()).await;
        assert!(silence.is_err());
        assert!(status.state().failure.is_some());
        directory.write("next", &[1, 2]);
        fs::rename(directory.0.join("next"), directory.0.join("e")).expect("renamed");
        assert_eq!(ports(&mut file).await, [1, 2]);
        assert_eq!(status.state().failure, None);
    };
    LocalSet::new().run_until(test).await;
}

/// As Kubernetes mounts a ConfigMap: `e` → `..data/e`, `..data` → a directory, which is swapped.
#[tokio::test]
async fn a_config_map_swapped_twice_is_read_twice() {
    let test = async {
        let directory = Directory::new("endpoints-config-map");
        directory.write("..1/e", &[1]);
        directory.swap_link("..data", "..1");
        symlink("..data/e", directory.0.join("e")).expect("linked");
        let (mut file, _) = directory.watch("e");
        assert_eq!(ports(&mut file).await, [1]);
        for port in [2, 3] {
            directory.write(&format!("..{port}/e"), &[port]);
            directory.swap_link("..data", format!("..{port}"));
            assert_eq!(ports(&mut file).await, [port]);
        }
    };
    LocalSet::new().run_until(test).await;
}

/// The private watch of before looked at the link's own directory only.
#[tokio::test]
async fn a_link_into_another_directory_is_followed_there_and_when_it_is_swapped() {
    let test = async {
        let directory = Directory::new("endpoints-linked");
        directory.write("a/real", &[1]);
        directory.write("b/real", &[7]);
        symlink(directory.0.join("a/real"), directory.0.join("e")).expect("linked");
        let (mut file, _) = directory.watch("e");
        assert_eq!(ports(&mut file).await, [1]);
        directory.write("a/real", &[2]);
        assert_eq!(ports(&mut file).await, [2]);
        directory.swap_link("e", directory.0.join("b/real"));
        assert_eq!(ports(&mut file).await, [7]);
        directory.write("b/real", &[8]);
        assert_eq!(ports(&mut file).await, [8]);
    };
    LocalSet::new().run_until(test).await;
}
