//! The buffers that the kernel receives into, and who holds what of them.
//!
//! A buffer is in one of three states: the kernel's (it may write), finished by the kernel but with pieces out, or
//! given back. With incremental consumption the kernel lays many small receives side by side into one buffer and says
//! with each whether it goes on with it; without, each receive takes a buffer of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The only group of buffers in a ring.
pub(crate) const GROUP: u16 = 0;
/// The kernel wants the list of buffers at the beginning of a page.
const PAGE: usize = 4096;
/// `IOU_PBUF_RING_INC`, Linux 6.12: receives share a buffer until it is full.
const INCREMENTAL: u16 = 2;

/// Some received bytes. They do not change while it exists; [`Ring::give_back`](crate::Ring::give_back) it, or its
/// part of the buffers is lost until the ring ends.
#[derive(Debug)]
pub struct Piece {
    buffer: u16,
    start: u32,
    length: u32,
}

impl Piece {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing is left of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps only the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// Drops the first `length` bytes.
    pub fn advance(&mut self, length: usize) {
        let length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
        self.start += length;
        self.length -= length;
    }
}

pub(crate) struct Buffers {
    /// `count` buffers of `size` bytes, one behind the other.
    memory: NonNull<u8>,
    /// What the kernel reads to find the buffers that are its own: a ring of `count` entries.
    entries: NonNull<BufRingEntry>,
    count: u16,
    size: u32,
    /// Entries ever written to the list, modulo 2^16.
    tail: u16,
    state: Vec<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Bytes of it that the kernel has filled.
    filled: u32,
    /// Pieces out.
    held: u32,
    /// The kernel is done with it.
    finished: bool,
}

impl Buffers {
    /// Buffers of `size` bytes that the kernel knows of: `shared` of them where it can fill one with many receives,
    /// else `plain`.
    pub(crate) fn register(ring: &IoUring, shared: u16, plain: u16, size: u32) -> io::Result<Self> {
        let shared = Self::new(shared, size).and_then(|buffers| buffers.known_to(ring, INCREMENTAL));
        shared.or_else(|_| Self::new(plain, size)?.known_to(ring, 0))
    }

    fn new(count: u16, size: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || size == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let memory = zeroed(Self::memory_layout(count, size)?);
        let entries = zeroed(Self::entries_layout(count)?).cast();
        let state = vec![State::default(); usize::from(count)];
        Ok(Self { memory, entries, count, size, tail: 0, state })
    }

    fn memory_layout(count: u16, size: u32) -> io::Result<Layout> {
        let bytes = usize::from(count).saturating_mul(size as usize);
        Layout::from_size_align(bytes, PAGE).map_err(io::Error::other)
    }

    fn entries_layout(count: u16) -> io::Result<Layout> {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        Layout::from_size_align(bytes, PAGE).map_err(io::Error::other)
    }

    fn known_to(mut self, ring: &IoUring, flags: u16) -> io::Result<Self> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: `entries` points to `count` zeroed entries at the beginning of a page. They are freed by the drop of
        // `Buffers`, which its owner delays until the kernel has nothing under way; the kernel itself holds the pages.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, self.count, GROUP, flags) }?;
        for buffer in 0..self.count {
            self.provide(buffer);
        }
        Ok(self)
    }

    /// Hands a whole buffer to the kernel. No piece of it may be out.
    fn provide(&mut self, buffer: u16) {
        let state = &mut self.state[usize::from(buffer)];
        debug_assert!(state.held == 0, "a buffer with pieces out given to the kernel");
        *state = State::default();
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `buffer < count`, so the offset lies within the allocation of `count * size` bytes.
        let address = unsafe { self.memory.add(usize::from(buffer) * self.size as usize) };
        // SAFETY: `at < count`, so the entry lies within the allocation, which nobody else in this process refers to.
        // The kernel does not look at it before `tail` moves past it. Its last field is not written: in the first
        // entry it is the tail.
        let entry = unsafe { self.entries.add(at).as_mut() };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(self.size);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the first entry of the list.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail lies within the first entry and is aligned for a `u16`; the kernel only reads it, and no
        // reference to that entry is alive here.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel sees the entry before it sees that there is one more.
        tail.store(self.tail, Ordering::Release);
    }

    /// Notes that the kernel put `length` bytes into a buffer. `None`: it named one that does not exist.
    pub(crate) fn take(&mut self, buffer: u16, length: u32, goes_on: bool) -> Option<Piece> {
        let state = self.state.get_mut(usize::from(buffer))?;
        let start = state.filled;
        if length > self.size - start {
            return None;
        }
        state.filled += length;
        state.held += 1;
        state.finished |= !goes_on;
        Some(Piece { buffer, start, length })
    }

    /// Takes a piece back; the kernel gets its buffer again once it was the last.
    #[allow(clippy::needless_pass_by_value)] // By value: what was given back can no longer be read.
    pub(crate) fn give_back(&mut self, piece: Piece) {
        let Some(state) = self.state.get_mut(usize::from(piece.buffer)) else { return };
        state.held = state.held.saturating_sub(1);
        if state.held == 0 && state.finished {
            self.provide(piece.buffer);
        }
    }

    /// The bytes of a piece.
    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        let start = usize::from(piece.buffer) * self.size as usize + piece.start as usize;
        let end = start + piece.length as usize;
        assert!(end <= usize::from(self.count) * self.size as usize, "a piece of another ring");
        // SAFETY: the range lies within one allocation, which is initialised (zeroed, then written by the kernel) and
        // lives as long as `self`. The kernel writes only during system calls that take the ring by `&mut`, so not
        // while this borrow lasts.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(start), end - start) }
    }

    /// Forgets the memory without freeing it.
    pub(crate) fn leak(&mut self) {
        self.count = 0;
        self.state.clear();
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let layouts = (Self::memory_layout(self.count, self.size), Self::entries_layout(self.count));
        if let (Ok(memory), Ok(entries)) = layouts {
            // SAFETY: allocated in `new` with this layout, and freed here alone: `leak` has not been called.
            unsafe { dealloc(self.memory.as_ptr(), memory) };
            // SAFETY: as above.
            unsafe { dealloc(self.entries.as_ptr().cast(), entries) };
        }
    }
}

/// Zeroed memory of a layout that is not empty.
fn zeroed(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0, "memory of no size");
    // SAFETY: the layout has a size.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
