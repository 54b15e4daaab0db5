//! Asks the instance metadata service: the only crate that knows HTTP.
//!
//! [`Client::poll`] turns an [`Ask`](enid_core::metadata::Ask) into a
//! [`Poll`](enid_core::metadata::Poll) and never fails: what could not be read stands in the
//! answers. Between polls the caller waits as long as a [`Backoff`] says.

mod client;
mod error;
mod schedule;
mod tally;
mod token;
mod transport;

pub use client::{Client, Options};
pub use error::Error;
pub use schedule::Backoff;
pub use tally::Status;
pub use transport::{Health, Via};
