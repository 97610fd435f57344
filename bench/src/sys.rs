//! What the harness asks of Linux that std does not offer.
//!
//! Every call here passes plain values or pointers to locals that outlive the call, so each safety note is short.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// Keeps the calling thread, and those it starts later, on one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a bit array, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `core` was checked against the set's size.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` lives across the call and its true size is given.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// How many cores the machine has, whatever this process is pinned to.
pub fn cores_of_the_machine() -> io::Result<usize> {
    // SAFETY: no pointers.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cores).map_err(|_| io::Error::last_os_error())
}

/// Puts the calling thread, and those it starts later, under SCHED_BATCH with a long time slice: being woken never
/// preempts who runs, and a batch of a thousand messages ends before the slice does, so a client and a server on one
/// core take turns, each working until it has nothing left. Or, without, back to the usual policy.
pub fn take_turns(take_turns: bool) -> io::Result<()> {
    // SAFETY: all fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    if take_turns {
        attributes.sched_policy = libc::SCHED_BATCH as u32;
        // Honoured for this policy from Linux 6.12 on, and ignored before: sched_setattr(2), kernel/sched/syscalls.c.
        attributes.sched_runtime = TIME_SLICE.as_nanos() as u64;
    }
    let (this_thread, no_flags) = (0, 0);
    // SAFETY: `attributes` lives across the call and carries its true size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, this_thread, &attributes, no_flags) };
    check(result as libc::c_int)?;
    Ok(())
}

const TIME_SLICE: Duration = Duration::from_millis(20);

/// Has the calling thread give way to those of the usual rank.
pub fn step_back() -> io::Result<()> {
    let this_thread = 0;
    // SAFETY: no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, this_thread, NICE) })?;
    Ok(())
}

const NICE: libc::c_int = 10;

/// Has the kernel kill this process when the thread that started it ends, however it ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    Ok(())
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` lives across both calls.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// Has the kernel keep nothing of a connection that was closed: it tells the peer's FIN so, and there is no TIME_WAIT.
pub fn forget_when_closed(stream: &TcpStream) -> io::Result<()> {
    let no_time: libc::c_int = -1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `no_time` lives across the call and its true size is given.
    check(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_LINGER2,
            ptr::from_ref(&no_time).cast(),
            length,
        )
    })?;
    Ok(())
}

/// Accepts a connection that does not block, in one system call; `None` when no more wait.
pub fn accept_nonblocking(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (no_address, no_length) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: no pointers but null ones, for which no address is written.
    match check(unsafe { libc::accept4(listener.as_raw_fd(), no_address, no_length, flags) }) {
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }.into())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// CPU time of a whole process, ended threads and the current time slice included.
///
/// The scheduler's own nanosecond count behind one system call. /proc/PID/schedstat has the same source, but leaves out
/// ended threads and the running slice, and getrusage rounds to microseconds.
pub fn cpu_time_of_process(pid: u32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` lives across the call.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    read_clock(clock)
}

/// CPU time of the calling thread.
pub fn cpu_time_of_thread() -> io::Result<Duration> {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read_clock(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` lives across the call.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// An epoll instance and the list that it reports into.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// How to be told of a descriptor.
#[derive(Copy, Clone)]
pub enum Interest {
    Level,
    Edge,
}

impl Epoll {
    /// `events_max` is the most that one `wait` returns.
    pub fn new(events_max: usize) -> io::Result<Epoll> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; events_max],
        })
    }

    /// Reports `key` when `fd` can be read (`Level`), or whenever it becomes readable or writable (`Edge`).
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Level => libc::EPOLLIN,
            Interest::Edge => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
        };
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: key,
        };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: `event` lives across the call, which copies it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// Waits for events and returns how many there are; 0 after `timeout` (`None`: never).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout_ms = timeout.map_or(-1, |timeout| timeout.as_millis() as libc::c_int);
        loop {
            // SAFETY: the pointer and the length are those of one live vector.
            let count = check(unsafe {
                libc::epoll_wait(
                    self.fd.as_raw_fd(),
                    self.events.as_mut_ptr(),
                    self.events.len() as libc::c_int,
                    timeout_ms,
                )
            });
            match count {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => return Ok(count? as usize),
            }
        }
    }

    /// The key of the event at `index` of the last `wait`.
    pub fn key(&self, index: usize) -> u64 {
        self.events[index].u64
    }

    /// Whether that event tells that no more bytes will follow those that wait.
    pub fn is_end(&self, index: usize) -> bool {
        let ends = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        self.events[index].events & ends as u32 != 0
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
