//! Decides, from what metadata, configuration and kernel say, what the kernel's network must be
//! and how to get there. It has no clock, socket, file, task or log: the same text in gives the
//! same plan out.

pub mod choice;
mod clear;
pub mod config;
pub mod decide;
mod desired;
mod diff;
pub mod eni;
pub mod explain;
pub mod guard;
pub mod ledger;
mod link;
pub mod memory;
pub mod metadata;
pub mod object;
pub mod objects;
pub mod observed;
pub mod pace;
pub mod path;
pub mod plan;
mod prefix;
mod proof;
pub mod report;
pub mod rest;
mod rule;
pub mod source;
mod stack;
mod table;
pub mod time;
pub mod why;
