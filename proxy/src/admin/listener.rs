//! The admin listener's socket: TCP or unix.

use std::{
    fmt, fs, io,
    net::{SocketAddr, TcpListener as StdTcp},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener as StdUnix, UnixStream as StdUnixStream},
        },
    },
    path::{Path, PathBuf},
};

use outrigger_config::{Admin, AdminAddress};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

/// Bound, and not served yet.
#[derive(Debug)]
pub enum AdminListener {
    Tcp(StdTcp),
    Unix(StdUnix, SocketFile),
}

/// A unix socket's name in the file system, which goes with it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process's socket of this name stays.
    id: Option<(u64, u64)>,
}

impl AdminListener {
    /// Binds what `admin` asks for. To be called before other threads make files.
    ///
    /// # Errors
    /// When the address or path is taken, or cannot be had.
    pub fn bind(admin: &Admin) -> io::Result<Self> {
        let listener = match &admin.listen {
            AdminAddress::Tcp(address) => Self::Tcp(StdTcp::bind(address)?),
            AdminAddress::Unix(path) => {
                remove_stale(path)?;
                // Nobody else may connect before the mode is the one that was asked for.
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let bound = StdUnix::bind(path);
                rustix::process::umask(before);
                let listener = bound?;
                let file = SocketFile {
                    id: id_of(path),
                    path: path.clone(),
                };
                fs::set_permissions(path, fs::Permissions::from_mode(admin.mode.0))?;
                Self::Unix(listener, file)
            }
        };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    /// One that somebody else has bound, and whose file is not ours to remove.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let address = rustix::net::getsockname(&socket)?;
        let listener = if SocketAddr::try_from(address.clone()).is_ok() {
            Self::Tcp(socket.into())
        } else {
            let listener = StdUnix::from(socket);
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
            let path = path.unwrap_or_default();
            Self::Unix(listener, SocketFile { path, id: None })
        };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    /// Where it really is.
    pub fn address(&self) -> Option<AdminAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(AdminAddress::Tcp),
            Self::Unix(_, file) => Some(AdminAddress::Unix(file.path.clone())),
        }
    }

    pub(crate) fn watch(&self) -> io::Result<Accepting> {
        Ok(match self {
            Self::Tcp(listener) => Accepting::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Self::Unix(listener, _) => {
                Accepting::Unix(UnixListener::from_std(listener.try_clone()?)?)
            }
        })
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener, _) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for AdminListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.id == id_of(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that a dead process has left behind is in the way of the next; anything else stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        // Binding says what is wrong.
        _ => Ok(()),
    }
}

fn id_of(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// This host, by way of a file that has permissions of its own.
    Unix,
    Loopback,
    Elsewhere,
}

pub(crate) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Accepting {
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, From)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let from = match peer.ip().to_canonical().is_loopback() {
                    true => From::Loopback,
                    false => From::Elsewhere,
                };
                Ok((Box::new(stream), from))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), From::Unix))
            }
        }
    }
}

impl fmt::Debug for Accepting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accepting")
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::SocketMode;

    use super::*;

    fn admin(name: &str) -> (Admin, PathBuf) {
        let path =
            std::env::temp_dir().join(format!("outrigger-{name}-{}.sock", std::process::id()));
        let admin = Admin {
            listen: AdminAddress::Unix(path.clone()),
            mode: SocketMode(0o640),
            ..Admin::default()
        };
        (admin, path)
    }

    #[test]
    fn a_socket_that_was_left_behind_is_no_hindrance_and_a_served_one_is() {
        let (admin, path) = admin("stale");
        drop(StdUnix::bind(&path).expect("a socket"));
        assert!(path.exists());
        let listener = AdminListener::bind(&admin).expect("it takes its place");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let taken = AdminListener::bind(&admin).expect_err("somebody listens");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_and_what_another_has_put_there_stay() {
        let (admin, path) = admin("file");
        fs::write(&path, "data").expect("a file");
        AdminListener::bind(&admin).expect_err("a file is in the way");
        assert_eq!(fs::read(&path).expect("it stays"), b"data");
        fs::remove_file(&path).expect("ours");
        let listener = AdminListener::bind(&admin).expect("a socket");
        fs::remove_file(&path).expect("ours");
        let other = StdUnix::bind(&path).expect("another's");
        drop(listener);
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).expect("another's");
    }
}
