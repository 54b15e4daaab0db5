//! The way in: one daemon per socket, and a limited number of seats for clients.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{UnixListener, UnixStream};

/// The socket in the file system and the lock beside it.
#[derive(Debug)]
pub(super) struct Door {
    path: PathBuf,
    /// Device and inode of the socket: another one in its place is not ours to remove.
    identity: (u64, u64),
    /// Held as long as the socket is: two daemons that start at once cannot both find it stale.
    _lock: File,
}

impl Door {
    pub(super) async fn open(path: &Path) -> io::Result<(Self, UnixListener)> {
        let lock = lock(path)?;
        remove_stale(path).await?;
        let listener = UnixListener::bind(path)
            .map_err(|error| because(&error, format!("listening at {}", path.display())))?;
        // Everybody may connect; who may change something is decided by the peer's uid.
        fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(|error| {
            because(&error, format!("letting everybody connect to {}", path.display()))
        })?;
        let metadata = fs::symlink_metadata(path)
            .map_err(|error| because(&error, format!("looking at {}", path.display())))?;
        let door =
            Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), _lock: lock };
        Ok((door, listener))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            // What stays is stale, and the next daemon removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks the file beside the socket. Its mode keeps others from locking it against the daemon.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| because(&error, format!("opening {}", name.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(another(path)),
        Err(TryLockError::Error(error)) => {
            Err(because(&error, format!("locking {}", name.display())))
        }
    }
}

/// Removes a socket that nobody listens at, as a crash leaves one; never anything else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let looking = |error: io::Error| because(&error, format!("looking at {}", path.display()));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(looking(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is there and is no socket: move it away", path.display()),
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| {
                because(&error, format!("removing the stale socket {}", path.display()))
            }),
        // It listens, though its queue may be full.
        Ok(_) => Err(another(path)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(another(path)),
        Err(error) => Err(looking(error)),
    }
}

fn another(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "another enid already serves {}: stop it first, or give this one another control socket",
            path.display()
        ),
    )
}

fn because(error: &io::Error, what: String) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// How many clients there may be.
const ALL: usize = 32;

/// How many of them may be such that may only read: the others always find a seat.
const READERS: usize = 24;

/// How many of those may be of one user, so that one user cannot lock the others out.
const OF_ONE_USER: usize = 8;

/// Who sits there: seats taken, by user.
#[derive(Debug, Default, Clone)]
pub(super) struct Seats(Arc<Mutex<BTreeMap<(bool, u32), usize>>>);

/// A client's seat, free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    who: (bool, u32),
}

impl Seats {
    /// A seat for a client of this user, if there is one.
    pub(super) fn take(&self, uid: u32, privileged: bool) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let who = (privileged, uid);
        let all: usize = taken.values().sum();
        let readers: usize =
            taken.iter().filter(|((privileged, _), _)| !privileged).map(|(_, n)| n).sum();
        let own = taken.get(&who).copied().unwrap_or_default();
        if all >= ALL || (!privileged && (readers >= READERS || own >= OF_ONE_USER)) {
            return None;
        }
        taken.insert(who, own + 1);
        Some(Seat { seats: self.clone(), who })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get(&self.who).copied() {
            Some(n) if n > 1 => {
                taken.insert(self.who, n - 1);
            }
            Some(_) | None => {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_who_may_only_read_leave_seats_to_the_others() {
        let seats = Seats::default();
        let mut sitting = Vec::new();
        for uid in 1000..1010 {
            for _ in 0..10 {
                sitting.extend(seats.take(uid, false));
            }
        }
        assert_eq!(sitting.len(), READERS);
        for _ in 0..10 {
            sitting.extend(seats.take(0, true));
        }
        assert_eq!(sitting.len(), ALL);
        sitting.clear();
        assert!(seats.0.lock().unwrap().is_empty());
        assert!(seats.take(1000, false).is_some());
    }

    #[test]
    fn one_user_who_may_only_read_leaves_seats_to_other_users() {
        let seats = Seats::default();
        let sitting: Vec<_> = (0..20).filter_map(|_| seats.take(1000, false)).collect();
        assert_eq!(sitting.len(), OF_ONE_USER);
        assert!(seats.take(1001, false).is_some());
    }
}
