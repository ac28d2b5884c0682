//! Proves that `evenkeel_fleet` needs neither std nor an operating system.
//!
//! A static library with a panic handler and an allocator of its own. If anything below it links `std`, the
//! build ends with E0152 (two `panic_impl`), so a clock, a random source, a file or a randomly ordered map
//! cannot reach the decision code unnoticed. Built by `cargo xtask tidy`; never run.

#![no_std]

use core::alloc::{GlobalAlloc, Layout};

// The crate under proof. Named, so that the compiler loads it with all that it depends on.
pub use evenkeel_fleet as fleet;

struct NoMemory;

// SAFETY: it hands out no memory at all, which the contract of `GlobalAlloc` allows at any time.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _memory: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static MEMORY: NoMemory = NoMemory;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
