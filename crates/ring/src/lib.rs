//! Receiving and sending on many sockets through one io_uring, behind a safe interface.
//!
//! In: sockets to receive on (once, until told to stop), bytes to send, descriptors to wait for. Out: [`Done`], one
//! for each thing that happened. Everything asked for between two calls of [`Ring::wait`] goes to the kernel in one
//! system call. Received bytes lie in buffers of the ring; a [`Piece`] names some of them, can be read, sent on as it
//! is, and must be given back.
//!
//! Invariants, which the safety of the whole rests on:
//! * memory the kernel may read or write is owned by the [`Ring`] and freed only when the kernel has answered for
//!   every operation; if it does not in time, the memory is leaked rather than freed;
//! * a buffer goes back to the kernel only when no [`Piece`] of it is out, and the kernel writes only into what it was
//!   given, so the bytes of a piece never change;
//! * every operation ends in exactly one [`Done`] with `over`, and an [`Op`] never names a later operation.
//!
//! This is the one crate of the workspace that may contain unsafe code (ADR 0008). It knows sockets and bytes; frames,
//! tunnels and their rules are elsewhere (`evenkeel_gateway`).

#![allow(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

mod buffers;
mod flights;
mod payload;
mod ring;

pub use buffers::Piece;
pub use flights::Op;
pub use payload::Payload;
pub use ring::{Done, Ring, Sizes, Unavailable, What};
