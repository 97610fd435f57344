//! The threads that carry outgoing connections in event style: [`Service`].

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::Socket;
use super::{Handler, Queue, QueuedHandler};
use crate::client::Client;
use crate::config::Backend;
use crate::engine::Engine;
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::runtime;
use crate::worker::link::drop_guarded;
use crate::worker::{Message, Post, Worker};

/// More threads than that are a mistake.
const WORKERS_MAX: usize = 1024;

/// Worker threads for outgoing connections in event style. A clone is another handle to the same service; any thread may use it.
///
/// Servers have workers of their own ([`Server::start_events`](crate::Server::start_events)), and are stopped by their own handles: a service's
/// threads know neither a desk where newcomers wait nor a drain, and its end closes what it has. What both are to share is given to both: the
/// [`Queue`] on which handlers run ([`Server::start_queued`](crate::Server::start_queued) and [`Service::socket`]), and what the handlers
/// keep.
///
/// ```
/// use wharf::event::{Callbacks, JobQueue, Service};
/// use wharf::{Client, Server};
///
/// let game = JobQueue::new("game")?; // every handler of the program runs here: nothing of it needs a lock
/// let server = Server::bind("127.0.0.1:0").workers(2).start_queued(&game.queue(), |_| Callbacks::new())?;
/// let service = Service::new();
/// service.start()?;
/// let upstream = service.socket(&Client::new(server.local_addr()), &game.queue(), Callbacks::new());
/// upstream.connect()?;
/// # drop(upstream);
/// server.stop().wait()?;
/// service.stop_and_wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// ```
/// use wharf::event::{Connection, Flow, Handler, Service};
/// use wharf::{Client, Error};
///
/// struct Ping;
///
/// impl Handler for Ping {
///     fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
///         match conn.send(b"ping") {
///             Ok(()) => Flow::Continue,
///             Err(_) => Flow::Reset,
///         }
///     }
///
///     fn received(&mut self, _: &mut Connection<'_>, pong: &[u8]) -> Flow {
///         println!("{} bytes", pong.len());
///         Flow::Close
///     }
///
///     fn connect_failed(&mut self, error: Error) {
///         eprintln!("{error}");
///     }
/// }
///
/// let service = Service::new().workers(2).name("feed");
/// service.start()?;
/// service.connect(&Client::new("127.0.0.1:1"), Ping)?;
/// service.stop_and_wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Dropping
/// When the last handle and the last [`Socket`] are dropped, the service stops, as by [`stop`](Service::stop).
#[derive(Clone)]
pub struct Service {
    options: Options,
    owner: Arc<Owner>,
}

#[derive(Clone)]
struct Options {
    workers: usize,
    name: Arc<str>,
    backend: Backend,
    connections: usize,
    stop_within: Duration,
}

impl Service {
    /// Describes a service of one worker. Nothing happens until it is started.
    pub fn new() -> Service {
        let options = Options {
            workers: 1,
            name: Arc::from("wharf-service"),
            backend: Backend::Auto,
            connections: 10_000,
            stop_within: Duration::from_secs(5),
        };
        Service { options, owner: Arc::new(Owner(Arc::new(Hall::default()))) }
    }

    /// Sets how many threads there are, 1 to 1024. Default: 1. Each connection goes to the one that has the fewest.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Service {
        self.options.workers = workers;
        self
    }

    /// Sets what the operating system calls the threads, with a number behind it. Default: `wharf-service`.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Service {
        self.options.name = name.into();
        self
    }

    /// Sets what carries the connections. Default: [`Backend::Auto`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Service {
        self.options.backend = backend;
        self
    }

    /// Sets how many connections there may be at once, those that are being made included. Default: 10,000.
    #[must_use]
    pub fn connections_max(mut self, connections: usize) -> Service {
        self.options.connections = connections;
        self
    }

    /// Sets how long connections may take to end when the service stops, before they are reset. Default: 5 s.
    #[must_use]
    pub fn stop_within(mut self, within: Duration) -> Service {
        self.options.stop_within = within;
        self
    }

    /// Starts the threads; returns when all of them serve, or none does.
    ///
    /// # Errors
    /// If it has been started before, by any handle; if an option makes no sense; if an engine cannot be set up.
    pub fn start(&self) -> Result<()> {
        let options = &self.options;
        if options.workers == 0 || options.workers > WORKERS_MAX {
            return Err(Error::option("workers", format!("must be 1 to {WORKERS_MAX}")));
        }
        if options.name.contains('\0') {
            return Err(Error::option("name", "must not have a zero byte"));
        }
        if options.connections == 0 {
            return Err(Error::option("connections_max", "must be at least 1"));
        }
        let backend = options.backend.chosen()?;
        let hall = self.hall();
        if hall.is_begun.swap(true, Ordering::SeqCst) {
            let twice =
                "the service has been started already; a stopped one is not started again, make a new one";
            return Err(Error::new(Operation::Start, Cause::Misuse(twice)));
        }
        let started = start_threads(hall, options, backend);
        if started.is_err() {
            hall.stopping.store(true, Ordering::SeqCst);
        }
        started
    }

    /// Has `client` connect, and `handler` called on a worker with what happens: with
    /// [`connected`](Handler::connected) and all that follows, or once with [`connect_failed`](Handler::connect_failed).
    ///
    /// The client's options hold: limits, deadlines, TLS, the deadline of the connect as a whole. Never waits. The handler belongs to its
    /// connection and lives as long; [`Connection::remote`](crate::event::Connection::remote) is its handle for others.
    ///
    /// # Errors
    /// If the service is not running, has [`connections_max`](Service::connections_max) connections, or the client's address or options
    /// make no sense. The handler is dropped uncalled then.
    pub fn connect(&self, client: &Client, handler: impl Handler + Send) -> Result<()> {
        client.first_step()?;
        let hall = self.hall();
        let seat = hall.seat(client)?;
        let attempt = Attempt { handler: Some(Box::new(handler)) };
        let (client, hall_there) = (client.clone(), hall.clone());
        hall.launch(seat, move |worker, seat| {
            worker.tasks.spawn(Box::pin(host(client, attempt, hall_there, seat)));
        });
        Ok(())
    }

    /// Makes a socket whose handler is called on `queue`. It connects when it is told to: [`SocketHandle::connect`](crate::event::SocketHandle::connect).
    ///
    /// ```
    /// use std::time::Duration;
    /// use wharf::event::{Completion, JobQueue, Service};
    /// use wharf::Client;
    ///
    /// # let server = wharf::Server::bind("127.0.0.1:0").start(|mut conn: wharf::Connection| async move {
    /// #     let mut buf = [0; 4];
    /// #     while conn.recv(&mut buf).await? > 0 { conn.send(b"pong").await?; }
    /// #     Ok(())
    /// # })?;
    /// # let address = server.local_addr();
    /// let service = Service::new();
    /// service.start()?;
    /// let queue = JobQueue::new("handlers")?;
    /// let socket = service.socket(&Client::new(address), &queue.queue(), ());
    /// let done = Completion::new();
    /// socket.connect()?;
    /// socket.send_with("ping", &done)?; // queued until the connection stands
    /// socket.receive_with(&done, |_, bytes| bytes.map(|bytes| assert_eq!(&bytes[..], b"pong")))?;
    /// assert!(done.wait(Duration::from_secs(10))?);
    /// # drop(socket); service.stop_and_wait()?; server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn socket(&self, client: &Client, queue: &Queue, handler: impl QueuedHandler) -> Socket {
        Socket::new(self.clone(), client, queue, Box::new(handler))
    }

    /// Connections that there are, those that are being made included.
    pub fn connections(&self) -> usize {
        self.hall().connections.load(Ordering::Relaxed)
    }

    /// Takes no more connections, closes those that there are, and ends the threads. What was sent before is still sent; what has not
    /// ended within [`stop_within`](Service::stop_within) is reset. Handlers are told. Does not wait; stopping twice is stopping once.
    pub fn stop(&self) {
        self.hall().stop();
    }

    /// Stops, and waits until the threads have ended.
    ///
    /// # Errors
    /// On a thread of the service, which would wait for itself. If a thread of it had crashed. If it is a simulation's: running
    /// that is what ends it.
    pub fn stop_and_wait(&self) -> Result<()> {
        self.hall().stop();
        self.hall().wait()
    }

    /// Whether it was stopped, or could not start.
    pub fn is_stopped(&self) -> bool {
        self.hall().stopping.load(Ordering::SeqCst)
    }

    pub(super) fn hall(&self) -> &Arc<Hall> {
        &self.owner.0
    }

    /// A running service on a worker that somebody else turns.
    pub(crate) fn on_worker(worker: &Rc<Worker>) -> Service {
        let service = Service::new();
        let hall = service.hall();
        hall.is_begun.store(true, Ordering::SeqCst);
        drop(hall.crew.set(Crew::new(vec![worker.post.clone()], &service.options)));
        service
    }
}

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.options.name)
            .field("connections", &self.connections())
            .field("is_stopped", &self.is_stopped())
            .finish_non_exhaustive()
    }
}

/// What the handles of a service share; the service stops with the last of them.
struct Owner(Arc<Hall>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What a service, its threads and its sockets share.
#[derive(Default)]
pub(super) struct Hall {
    is_begun: AtomicBool,
    pub(super) stopping: AtomicBool,
    crew: OnceLock<Crew>,
    connections: AtomicUsize,
    threads: Mutex<Threads>,
    ended: Condvar,
}

/// The workers of a service that has started.
struct Crew {
    posts: Vec<Post>,
    loads: Vec<Arc<AtomicUsize>>,
    connections_max: usize,
    stop_within: Duration,
}

#[derive(Default)]
struct Threads {
    ids: Vec<ThreadId>,
    handles: Vec<thread::JoinHandle<()>>,
    running: usize,
    crashed: bool,
}

/// A connection's place in its service; free again when this is dropped.
pub(super) struct Seat {
    hall: Arc<Hall>,
    worker: usize,
    load: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.hall.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hall {
    /// A place for a connection of `client`, on the worker that has the fewest.
    pub(super) fn seat(self: &Arc<Self>, client: &Client) -> Result<Seat> {
        let failed = |cause| Error::new(Operation::Connect, cause).at(&client.address);
        if self.stopping.load(Ordering::SeqCst) {
            return Err(failed(Cause::Misuse("the service was stopped")));
        }
        let Some(crew) = self.crew.get() else {
            return Err(failed(Cause::Misuse("the service has not been started")));
        };
        let fits = |taken| (taken < crew.connections_max).then_some(taken + 1);
        if let Err(count) = self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            let option = "connections_max";
            return Err(failed(Cause::TooMany { count, what: "connections are there", option }));
        }
        let loads = crew.loads.iter().map(|load| load.load(Ordering::Relaxed)).enumerate();
        let worker = loads.min_by_key(|(_, load)| *load).map_or(0, |(worker, _)| worker);
        let load = crew.loads[worker].clone();
        load.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { hall: self.clone(), worker, load })
    }

    /// Has `run` called on the worker of `seat`; drops it if that has ended.
    pub(super) fn launch(&self, seat: Seat, run: impl FnOnce(&Rc<Worker>, Seat) + Send + 'static) {
        if let Some(crew) = self.crew.get() {
            let post = &crew.posts[seat.worker];
            drop(post.send(Message::Run(Box::new(move |worker| run(worker, seat)))));
        }
    }

    fn stop(&self) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(crew) = self.crew.get() {
            crew.send_home();
        }
    }

    fn wait(&self) -> Result<()> {
        let failed = |what| Err(Error::new(Operation::Wait, Cause::Misuse(what)));
        let mut threads = self.lock();
        if threads.ids.contains(&thread::current().id()) {
            return failed(
                "a thread of the service cannot wait for its end: stop it, and wait on another thread",
            );
        }
        if threads.ids.is_empty() && self.crew.get().is_some() {
            return failed("a simulation's service ends by running the simulation");
        }
        while threads.running > 0 {
            threads = self.ended.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
        let (handles, crashed) = (std::mem::take(&mut threads.handles), threads.crashed);
        drop(threads);
        for handle in handles {
            // They have done all that matters, and told if they crashed.
            drop(handle.join());
        }
        if crashed {
            failed("a thread of the service has panicked; its message is on standard error")
        } else {
            Ok(())
        }
    }

    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crew {
    fn new(posts: Vec<Post>, options: &Options) -> Crew {
        let loads = posts.iter().map(|_| Arc::default()).collect();
        Crew { posts, loads, connections_max: options.connections, stop_within: options.stop_within }
    }

    fn send_home(&self) {
        for post in &self.posts {
            let within = self.stop_within;
            drop(post.send(Message::Run(Box::new(move |worker| close_all(worker, within)))));
        }
    }
}

/// Ends a worker's connections: in order if they can be in time. Each has a task, which knows what is still to be sent.
fn close_all(worker: &Rc<Worker>, within: Duration) {
    worker.tasks.wake_all();
    let late = worker.clone();
    worker.tasks.spawn(Box::pin(async move {
        runtime::sleep(within).await;
        for link in late.slots.all() {
            link.command(|conn| conn.reset(CloseReason::Shutdown));
        }
    }));
}

fn start_threads(hall: &Arc<Hall>, options: &Options, backend: Backend) -> Result<()> {
    let (report, reports) = mpsc::channel();
    let mut failure = None;
    for index in 0..options.workers {
        let (report, theirs) = (report.clone(), hall.clone());
        let body = move || {
            let _leaving = Leaving(theirs.clone());
            match Engine::new(backend) {
                Ok(engine) => {
                    let worker = Worker::new(engine);
                    worker.index.set(index as u16);
                    drop(report.send(Ok((index, worker.post.clone()))));
                    drop(report);
                    serve(&worker, &theirs);
                }
                Err(refusal) => drop(report.send(Err(Error::os(Operation::Start, refusal.into())))),
            }
        };
        // Before it runs: it may leave before this thread sees it.
        hall.lock().running += 1;
        match thread::Builder::new().name(format!("{}-{index}", options.name)).spawn(body) {
            Ok(thread) => {
                let mut threads = hall.lock();
                threads.ids.push(thread.thread().id());
                threads.handles.push(thread);
            }
            Err(error) => {
                hall.lock().running -= 1;
                failure = Some(Error::os(Operation::Start, error));
            }
        }
    }
    drop(report);
    let mut posts = Vec::new();
    for report in reports {
        match report {
            Ok(post) => posts.push(post),
            Err(error) => failure = Some(error),
        }
    }
    posts.sort_by_key(|(index, _)| *index);
    let crew = Crew::new(posts.into_iter().map(|(_, post)| post).collect(), options);
    if let Some(failure) = failure {
        hall.stopping.store(true, Ordering::SeqCst);
        crew.send_home();
        hall.wait()?;
        return Err(failure);
    }
    drop(hall.crew.set(crew));
    if hall.stopping.load(Ordering::SeqCst) {
        // Stopped by another thread, which did not find anybody to send home yet.
        hall.crew.get().into_iter().for_each(Crew::send_home);
    }
    Ok(())
}

/// What a thread of a service does all day.
fn serve(worker: &Rc<Worker>, hall: &Arc<Hall>) {
    let _entered = worker.enter();
    let day = || {
        while !(hall.stopping.load(Ordering::SeqCst) && worker.slots.is_empty()) {
            worker.turn(true);
        }
        // Who has been told of an end tells it on.
        while worker.turn(false) {}
    };
    let crashed = catch_unwind(AssertUnwindSafe(day)).is_err();
    let crashed = catch_unwind(AssertUnwindSafe(|| worker.shut())).is_err() || crashed;
    if crashed {
        hall.lock().crashed = true;
        // The others do not go on with a part of the connections: whoever uses the service learns of it now.
        hall.stop();
        drop(catch_unwind(AssertUnwindSafe(|| drop(worker.post.close()))));
        drop(catch_unwind(AssertUnwindSafe(|| worker.slots.clear())));
    }
}

/// Tells that a thread has ended, in whichever way.
struct Leaving(Arc<Hall>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.ended.notify_all();
    }
}

/// A handler that is told one thing at least.
struct Attempt {
    handler: Option<Box<dyn Handler + Send>>,
}

impl Attempt {
    fn failed(&mut self, error: Error) {
        if let Some(mut handler) = self.handler.take() {
            let told = catch_unwind(AssertUnwindSafe(|| handler.connect_failed(error)));
            drop_guarded(told);
            drop_guarded(handler);
        }
    }
}

impl Drop for Attempt {
    /// The service ended before the attempt did.
    fn drop(&mut self) {
        self.failed(Error::new(Operation::Connect, Cause::Closed(CloseReason::Shutdown)));
    }
}

/// Connects for a handler, and keeps the connection's place until it is closed.
async fn host(client: Client, mut attempt: Attempt, hall: Arc<Hall>, _seat: Seat) {
    let opened = super::drive::unless(
        || hall.stopping.load(Ordering::SeqCst).then_some(CloseReason::Shutdown),
        client.open().into_future(),
    );
    let opened = match opened.await {
        Ok(opened) => opened,
        Err(reason) => Err(Error::new(Operation::Connect, Cause::Closed(reason)).at(&client.address)),
    };
    let conn = match opened {
        Ok(conn) => conn,
        Err(error) => return attempt.failed(error),
    };
    if let Some(handler) = attempt.handler.take() {
        let link = conn.link().clone();
        link.worker.clone().attach_late(&link, handler);
    }
    // Its handler ends it, or its peer, or the service that stops; dropped, it would be closed.
    let mut closed = pin!(conn.closed());
    let mut is_told = false;
    poll_fn(|cx| {
        if !is_told && hall.stopping.load(Ordering::SeqCst) {
            is_told = true;
            conn.link().command(|conn| conn.close_for(CloseReason::Shutdown));
        }
        closed.as_mut().poll(cx)
    })
    .await;
}
