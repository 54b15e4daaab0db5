//! A scriptable instance metadata service: the model of what the cloud knows, and a server that
//! tells it the way EC2 does, with faults on demand.

pub mod fault;
pub mod flavour;
mod http;
pub mod model;
mod server;
pub mod tree;

pub use fault::{Action, Fault, FaultId};
pub use flavour::Flavour;
pub use model::{Eni, EniId, Instance, InstanceId, Mac, Model, State};
pub use server::{Request, Server};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even after a panic elsewhere: one failed test must not hide the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
