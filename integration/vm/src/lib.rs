//! Real machines: Debian with its kernel, udev, systemd and journal, emulated by QEMU, whose
//! network adapters are ENIs of a [`vpc::Vpc`] and can be plugged in while it runs.
//!
//! An [`Image`] is made from Debian's packages, once; a [`Machine`] boots from it and forgets what
//! it wrote when it is dropped.

mod agent;
mod files;
mod image;
mod lines;
mod machine;
mod qemu;

pub use files::Files;
pub use image::{Image, Recipe, Release};
pub use machine::{Machine, Unit};
