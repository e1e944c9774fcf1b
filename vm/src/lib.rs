//! Linux guests in qemu, for tests: Debian's kernels of several series, with a small root in memory or a disk of the
//! caller's, and a shell in them.
//!
//! Everything is emulated in software. `/dev/kvm` may exist and yet be unusable: under some hypervisors it is itself
//! emulated, and stock kernels do not boot on it.
//!
//! It needs Debian's `qemu-system-x86`, `busybox-static`, `dash`, `iproute2`, `kmod`, `util-linux` and `xz-utils`.

mod base;
mod cpio;
mod guest;
mod kernel;
mod qemu;
mod running;

pub use guest::{Drive, Error, Guest};
pub use kernel::{Kernel, KernelError, Modules, SERIES};
pub use running::{Output, Running, ShellError};
