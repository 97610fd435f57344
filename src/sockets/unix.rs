//! Listening Unix sockets, whose files outlive them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::address::{Address, UnixName};
use crate::config::SocketOptions;
use crate::engine::socket;

/// Makes a listening Unix socket. A file that a server left behind, on which nobody listens any more, is replaced; nothing
/// else ever is.
///
/// Two servers that start at the same moment may both find the old file, and the later one win.
pub(crate) fn listen_unix(name: &UnixName, options: &SocketOptions) -> io::Result<OwnedFd> {
    let address = socket::sock_addr(&Address::Unix(name.clone()))?;
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    super::apply(&SockRef::from(&listener), Domain::UNIX, options)?;
    if let Err(error) = listener.bind(&address) {
        let Some(path) = name.path().filter(|_| error.kind() == io::ErrorKind::AddrInUse) else {
            return Err(error);
        };
        if !is_abandoned(path, &address)? {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        listener.bind(&address)?;
    }
    listener.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// Whether there is a socket's file at `path`.
pub(crate) fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// Whether `path` is a socket on which nobody listens (unix(7): then a connect is refused).
fn is_abandoned(path: &Path, address: &SockAddr) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "there is a file of this name, and it is no socket",
        ));
    }
    let visitor = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog must not make this wait.
    visitor.set_nonblocking(true)?;
    Ok(visitor.connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    /// A path in a directory of its own, which goes with it.
    struct Place(std::path::PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let folder = std::env::temp_dir().join(format!("wharf-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a folder");
            Place(folder.join("socket"))
        }

        fn listen(&self) -> io::Result<OwnedFd> {
            listen_unix(&UnixName::of_path(&self.0), &SocketOptions::default())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(self.0.parent().expect("its folder")));
        }
    }

    #[test]
    fn a_unix_socket_that_somebody_listens_on_is_in_use() {
        let place = Place::new("in-use");
        let listener = place.listen().expect("it listens");
        assert_eq!(place.listen().expect_err("it is in use").kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&place.0).expect("the first one still listens");
        drop(listener);

        // Also if nobody can be let in at the moment.
        let full = listen_unix(&UnixName::of_abstract(b"wharf-in-use"), &SocketOptions::default().backlog(1));
        let _full = full.expect("it listens");
        let again = listen_unix(&UnixName::of_abstract(b"wharf-in-use"), &SocketOptions::default());
        assert_eq!(again.expect_err("it is in use").kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_unix_socket_that_was_left_behind_is_replaced() {
        let place = Place::new("left-behind");
        drop(UnixListener::bind(&place.0).expect("it listens"));
        assert!(fs::exists(&place.0).expect("it can be asked"), "its file stays");
        let _listener = place.listen().expect("it listens");
        UnixStream::connect(&place.0).expect("it can be reached");
    }

    #[test]
    fn what_is_no_listening_unix_socket_is_never_removed() {
        let place = Place::new("no-socket");
        fs::write(&place.0, "precious").expect("a file");
        let error = place.listen().expect_err("there is a file");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&place.0).expect("it is still there"), b"precious");

        let target = place.0.with_file_name("target");
        drop(UnixListener::bind(&target).expect("it listens"));
        fs::remove_file(&place.0).expect("it was there");
        std::os::unix::fs::symlink(&target, &place.0).expect("a link");
        assert_eq!(place.listen().expect_err("there is a link").kind(), io::ErrorKind::AddrInUse);
        assert!(fs::symlink_metadata(&place.0).expect("it is still there").is_symlink());

        fs::remove_file(&place.0).expect("it was there");
        let _datagrams = UnixDatagram::bind(&place.0).expect("it is bound");
        assert_eq!(place.listen().expect_err("it is in use").kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_unix_listener_does_not_wait_and_is_not_inherited() {
        use rustix::io::{FdFlags, fcntl_getfd};
        let listener = listen_unix(&UnixName::of_abstract(b"wharf-flags"), &SocketOptions::default());
        let listener = listener.expect("it listens");
        assert!(fcntl_getfd(&listener).expect("its flags").contains(FdFlags::CLOEXEC));
        let accepted = UnixListener::from(listener).accept();
        assert_eq!(accepted.expect_err("nobody is there").kind(), io::ErrorKind::WouldBlock);
    }
}
