//! Decides, from what metadata, configuration and kernel say, what the kernel's network must be
//! and how to get there. It has no clock, socket, file, task or log: the same text in gives the
//! same plan out.

pub mod metadata;
pub mod object;
pub mod observed;
pub mod plan;
pub mod time;
