//! The ring: operations in, what became of them out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::buffers::{Buffers, GROUP, Piece};
use crate::flights::{Flight, Flights, Kind, NOBODY, Op};
use crate::payload::Payload;

/// What a ring is made of.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Operations handed over at once; more take another system call. Default 1,024.
    pub entries: u32,
    /// Completions that wait for us without the kernel having to allocate. Default 8,192: 128 KiB.
    pub completions: u32,
    /// Bytes of a buffer. Default 64 KiB: hundreds of small messages, or four of 16 KiB.
    pub buffer: u32,
    /// Buffers where the kernel fills one with many receives (Linux 6.12), a power of two. Default 8.
    pub shared: u16,
    /// Buffers where each receive takes one, a power of two. Default 64.
    pub plain: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { entries: 1024, completions: 8192, buffer: 64 * 1024, shared: 8, plain: 64 }
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel has no io_uring, forbids it here, or has one without deferred task work (Linux 6.1).
    #[error("the kernel gives no io_uring with deferred task work (Linux 6.1, and not forbidden here)")]
    Setup(#[source] io::Error),
    /// It has no lists of buffers.
    #[error("the kernel takes no list of receive buffers (Linux 5.19)")]
    Buffers(#[source] io::Error),
    /// A receive did not go on after its first bytes.
    #[error("the kernel does not go on receiving after the first bytes (Linux 6.0)")]
    Receive,
}

impl Unavailable {
    /// Short code for logs and scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Setup(_) => "io_uring_setup",
            Self::Buffers(_) => "io_uring_buffers",
            Self::Receive => "io_uring_receive",
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub struct Done {
    /// The number that came with the operation.
    pub token: u64,
    /// The operation has ended; nothing more will come of it.
    pub over: bool,
    /// What it was.
    pub what: What,
}

/// What happened.
#[derive(Debug)]
pub enum What {
    /// Bytes came.
    Received(Piece),
    /// The peer has sent its last byte.
    Finished,
    /// Receiving ended for no fault of the socket: told to, no buffer was free, or the kernel chose to.
    Stopped,
    /// The socket is broken.
    Failed(io::Error),
    /// The descriptor is ready, or waiting for it was told to stop.
    Ready,
    /// So many bytes were sent. The payload has been advanced by them; what is left of it was not sent.
    Sent(Payload, usize),
    /// Nothing was sent.
    NotSent(Payload, io::Error),
}

/// See the crate's documentation. It belongs to the thread that made it.
pub struct Ring {
    // Closed first.
    io: IoUring,
    /// What did not fit into the submission queue.
    later: VecDeque<squeue::Entry>,
    flights: Flights,
    buffers: Buffers,
    /// How the kernel accounts for waits: as idle time where it can (Linux 6.15), before as waiting for a disk.
    waiting: EnterFlags,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("under_way", &self.flights.flying()).finish_non_exhaustive()
    }
}

/// On dropping, the kernel gets so often, …
const LANDINGS: u32 = 100;
/// … so long to answer for what it has under way.
const LANDING: Timespec = Timespec::new().nsec(10_000_000);
/// How long a new ring's trial may take on a busy machine.
const TRIAL: Duration = Duration::from_secs(2);

impl Ring {
    /// A ring for this thread, tried out on a pair of sockets.
    ///
    /// # Errors
    /// [`Unavailable`]: the kernel lacks something.
    pub fn new(sizes: &Sizes) -> Result<Self, Unavailable> {
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(sizes.completions)
            .build(sizes.entries)
            .map_err(Unavailable::Setup)?;
        if !io.params().is_feature_ext_arg() || !io.params().is_feature_nodrop() {
            return Err(Unavailable::Setup(io::ErrorKind::Unsupported.into()));
        }
        let buffers = Buffers::register(&io, sizes.shared, sizes.plain, sizes.buffer);
        let buffers = buffers.map_err(Unavailable::Buffers)?;
        let idle = io.params().is_feature_no_iowait();
        let waiting = if idle { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() };
        let mut ring = Self { io, later: VecDeque::new(), flights: Flights::default(), buffers, waiting };
        ring.try_out()?;
        Ok(ring)
    }

    /// Receives twice with one operation, on a socket that does not block, as those of the users do not.
    fn try_out(&mut self) -> Result<(), Unavailable> {
        let (mut ours, theirs) = UnixStream::pair().map_err(Unavailable::Setup)?;
        theirs.set_nonblocking(true).map_err(Unavailable::Setup)?;
        let op = self.receive(std::os::fd::AsFd::as_fd(&theirs), 0);
        for _ in 0..2 {
            ours.write_all(&[1]).map_err(Unavailable::Setup)?;
            match self.next_within(TRIAL)? {
                Some(Done { over: false, what: What::Received(piece), .. }) => self.give_back(piece),
                _ => return Err(Unavailable::Receive),
            }
        }
        self.cancel(op);
        while let Some(done) = self.next_within(TRIAL)? {
            if done.over {
                return Ok(());
            }
        }
        Err(Unavailable::Receive)
    }

    fn next_within(&mut self, limit: Duration) -> Result<Option<Done>, Unavailable> {
        if let Some(done) = self.next() {
            return Ok(Some(done));
        }
        // A second time: what a cancellation itself completes with is nobody's.
        for _ in 0..2 {
            self.wait(Some(limit)).map_err(Unavailable::Setup)?;
            if let Some(done) = self.next() {
                return Ok(Some(done));
            }
        }
        Ok(None)
    }

    /// Receives on a socket until it ends, fails, or is told to stop. The socket must stay open until the next
    /// [`Ring::wait`] returned.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, token: u64) -> Op {
        let op = self.flights.start(Flight { token, kind: Kind::Receive });
        self.push(opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build().user_data(op.0));
        op
    }

    /// Sends on a socket, perhaps only the beginning. Owned bytes wait until the socket takes some; a piece does not,
    /// so that a slow socket never keeps a buffer: what it does not take at once comes back unsent. Two sends on one
    /// socket at a time may overtake each other. The socket must stay open until the next [`Ring::wait`] returned.
    pub fn send(&mut self, socket: BorrowedFd<'_>, token: u64, payload: Payload) -> Op {
        let (bytes, flags) = match &payload {
            Payload::Piece(piece) => (self.buffers.bytes(piece), NOSIGNAL | DONTWAIT),
            Payload::Owned { bytes, sent } => (bytes.get(*sent..).unwrap_or_default(), NOSIGNAL),
        };
        // The address stays good: a piece's buffer is neither moved nor given back while the piece is in the flight,
        // and a vector's bytes do not move with it.
        let (address, length) = (bytes.as_ptr(), u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let op = self.flights.start(Flight { token, kind: Kind::Send(payload) });
        let send = opcode::Send::new(Fd(socket.as_raw_fd()), address, length).flags(flags);
        self.push(send.build().user_data(op.0));
        op
    }

    /// Waits until a descriptor is readable, again and again until told to stop.
    pub fn await_readable(&mut self, descriptor: BorrowedFd<'_>, token: u64) -> Op {
        let op = self.flights.start(Flight { token, kind: Kind::Ready });
        let poll = opcode::PollAdd::new(Fd(descriptor.as_raw_fd()), POLLIN).multi(true);
        self.push(poll.build().user_data(op.0));
        op
    }

    /// Tells an operation to stop. It still ends by itself, soon; if it had ended already, nothing happens.
    pub fn cancel(&mut self, op: Op) {
        self.push(opcode::AsyncCancel::new(op.0).build().user_data(NOBODY));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.later.is_empty() || !self.submit_queue_takes(&entry) {
            self.later.push_back(entry);
        }
    }

    fn submit_queue_takes(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an entry refers to no memory (receive, poll, cancel: their buffers are those of the ring), or, as a
        // send, to the bytes of the payload in its flight. Flights and buffers live until the operation has ended:
        // they are only ever dropped by `next` for ended ones and by `drop`, which waits for the rest.
        unsafe { self.io.submission().push(entry) }.is_ok()
    }

    /// Hands over what was asked for, then waits until something happened or the limit passed. `None`: no limit.
    ///
    /// # Errors
    /// What the system said; the ring is of no use then.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.later.pop_front() {
            if !self.submit_queue_takes(&entry) {
                self.later.push_front(entry);
                if expected(self.io.submit())? == 0 {
                    // Completions must be taken first.
                    break;
                }
            }
        }
        let submitter = self.io.submitter();
        let limit = limit.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(limit) = &limit {
            args = args.timespec(limit);
        }
        expected(submitter.submit_with_args_and_flags(1, &args, self.waiting)).map(|_| ())
    }

    /// The next thing that happened; `None`: nothing more until [`Ring::wait`].
    #[allow(clippy::should_implement_trait)] // Not an iterator: others of the ring's methods are called in between.
    pub fn next(&mut self) -> Option<Done> {
        loop {
            let entry = self.io.completion().next()?;
            if entry.user_data() != NOBODY
                && let Some(done) = self.done(&entry)
            {
                return Some(done);
            }
        }
    }

    fn done(&mut self, entry: &cqueue::Entry) -> Option<Done> {
        let op = Op(entry.user_data());
        let over = !cqueue::more(entry.flags());
        let Flight { token, kind } = self.flights.get(op)?;
        let token = *token;
        let what = match kind {
            Kind::Receive => self.received(entry),
            Kind::Ready => What::Ready,
            Kind::Send(_) => {
                // A send has one completion, and only with it does its payload come back.
                let Kind::Send(payload) = self.flights.end(op)?.kind else { return None };
                return Some(Done { token, over: true, what: sent(payload, entry.result()) });
            }
        };
        if over {
            self.flights.end(op);
        }
        Some(Done { token, over, what })
    }

    fn received(&mut self, entry: &cqueue::Entry) -> What {
        let length = u32::try_from(entry.result()).unwrap_or(0);
        let goes_on = cqueue::buffer_more(entry.flags());
        let piece = cqueue::buffer_select(entry.flags())
            .and_then(|buffer| self.buffers.take(buffer, length, goes_on));
        match (entry.result(), piece) {
            (1.., Some(piece)) => What::Received(piece),
            (result, piece) => {
                if let Some(piece) = piece {
                    self.give_back(piece);
                }
                match result {
                    0 => What::Finished,
                    // Bytes without a buffer do not exist; to go on would lose them.
                    1.. => What::Failed(io::ErrorKind::InvalidData.into()),
                    error if STOPS.contains(&-error) => What::Stopped,
                    error => What::Failed(io::Error::from_raw_os_error(-error)),
                }
            }
        }
    }

    /// The bytes of a piece.
    #[must_use]
    pub fn bytes(&self, piece: &Piece) -> &[u8] {
        self.buffers.bytes(piece)
    }

    /// Takes a piece back, so that its buffer can be used anew.
    pub fn give_back(&mut self, piece: Piece) {
        self.buffers.give_back(piece);
    }

    /// Operations that have not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.flights.flying()
    }

    /// Cancels everything and takes what comes of it; false: the kernel still has something.
    fn land(&mut self) -> bool {
        for _ in 0..LANDINGS {
            while self.next().is_some() {}
            if self.flights.flying() == 0 {
                return true;
            }
            let _ = self.wait(Some(Duration::ZERO));
            let _ = self.io.submitter().register_sync_cancel(Some(LANDING), CancelBuilder::any());
        }
        false
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.land() {
            self.flights.leak();
            self.buffers.leak();
        }
    }
}

/// Broken connections are told by the result, not by a signal.
const NOSIGNAL: i32 = 0x4000;
/// Answered at once, whether there is room or not.
const DONTWAIT: i32 = 0x40;
const POLLIN: u32 = 1;
/// Not failures of a socket: EINTR, EAGAIN, EBUSY, ENOBUFS, ECANCELED.
const STOPS: [i32; 5] = [4, 11, 16, 105, 125];
const ETIME: i32 = 62;

fn sent(mut payload: Payload, result: i32) -> What {
    match usize::try_from(result) {
        Ok(count) => {
            payload.advance(count);
            What::Sent(payload, count)
        }
        // To be tried again, or told to stop: nothing was sent, and the socket is not broken.
        Err(_) if STOPS.contains(&-result) => What::Sent(payload, 0),
        Err(_) => What::NotSent(payload, io::Error::from_raw_os_error(-result)),
    }
}

/// Passed time, signals and a full completion queue are no errors of a wait.
fn expected(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Err(error) if error.raw_os_error().is_some_and(|code| code == ETIME || STOPS.contains(&code)) => {
            Ok(0)
        }
        outcome => outcome,
    }
}
