//! Why a request was not granted: the errors of the wire, each with a text that says what to do.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::varlink::{INTERFACE, SERVICE};

/// A request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The caller may not do this.
    #[error("{message}")]
    PermissionDenied {
        /// Who may, and what to do.
        message: String,
    },
    /// No ENI has this name.
    #[error("no ENI here has the id, MAC address or link name \"{eni}\"; {}", those_known(known))]
    NoSuchEni {
        /// The name.
        eni: String,
        /// The names of those that are there.
        known: Vec<String>,
    },
    /// The daemon does not know the address as its own.
    #[error("{address} is not an address that enid made here; `enictl status --all` lists them")]
    NoSuchAddress {
        /// The address.
        address: IpAddr,
    },
    /// Nothing here is called so.
    #[error(
        "nothing is known of \"{what}\": it is no address that metadata grants or a link here has, no \
         ENI and no rule; {}; `enictl status --all` lists addresses, `ip rule` rules",
        those_known(known)
    )]
    NoSuchSubject {
        /// What it was called.
        what: String,
        /// The names of the ENIs that are there.
        known: Vec<String>,
    },
    /// This cannot be done as things stand.
    #[error("{message}")]
    InvalidState {
        /// Why, and what to do.
        message: String,
    },
    /// Too many clients, or the daemon did not come to it in time.
    #[error("{message}")]
    Busy {
        /// Which of the two.
        message: String,
    },
    /// It was tried and failed.
    #[error("{message}")]
    Failed {
        /// What failed, with its causes.
        message: String,
    },
    /// The bytes are no Varlink call.
    #[error("not a Varlink call: {message}")]
    Malformed {
        /// What is wrong with them.
        message: String,
    },
    /// The daemon has no such interface.
    #[error("the daemon has no interface {interface}: enictl and enid differ in version?")]
    InterfaceNotFound {
        /// Its name.
        interface: String,
    },
    /// The interface has no such method.
    #[error("the daemon has no method {method}: enictl and enid differ in version?")]
    MethodNotFound {
        /// Its full name.
        method: String,
    },
    /// The method is there, but not in the way it was called.
    #[error("the daemon does not serve {method} in this way")]
    MethodNotImplemented {
        /// Its full name.
        method: String,
    },
    /// A parameter is missing, unknown or has a value that makes no sense.
    #[error("the daemon does not accept the parameter \"{parameter}\"")]
    InvalidParameter {
        /// Its name.
        parameter: String,
    },
    /// An error that this version does not know.
    #[error("the daemon answered {error} {parameters}")]
    Other {
        /// Its full name.
        error: String,
        /// Its parameters.
        parameters: Value,
    },
}

impl Refused {
    /// The error as it goes over the wire: its full name and its parameters.
    #[must_use]
    pub fn to_wire(&self) -> (String, Value) {
        let own = |name: &str, parameters| (format!("{INTERFACE}.{name}"), parameters);
        let service = |name: &str, parameters| (format!("{SERVICE}.{name}"), parameters);
        match self {
            Self::PermissionDenied { message } => {
                own("PermissionDenied", json!({ "message": message }))
            }
            Self::NoSuchEni { eni, known } => {
                own("NoSuchEni", json!({ "eni": eni, "known": known, "message": self.to_string() }))
            }
            Self::NoSuchAddress { address } => {
                own("NoSuchAddress", json!({ "address": address, "message": self.to_string() }))
            }
            Self::NoSuchSubject { what, known } => own(
                "NoSuchSubject",
                json!({ "what": what, "known": known, "message": self.to_string() }),
            ),
            Self::InvalidState { message } => own("InvalidState", json!({ "message": message })),
            Self::Busy { message } => own("Busy", json!({ "message": message })),
            Self::Failed { message } => own("Failed", json!({ "message": message })),
            Self::Malformed { message } => own("Malformed", json!({ "message": message })),
            Self::InterfaceNotFound { interface } => {
                service("InterfaceNotFound", json!({ "interface": interface }))
            }
            Self::MethodNotFound { method } => {
                service("MethodNotFound", json!({ "method": method }))
            }
            Self::MethodNotImplemented { method } => {
                service("MethodNotImplemented", json!({ "method": method }))
            }
            Self::InvalidParameter { parameter } => {
                service("InvalidParameter", json!({ "parameter": parameter }))
            }
            Self::Other { error, parameters } => (error.clone(), parameters.clone()),
        }
    }

    /// The error from the wire; what is not understood becomes [`Refused::Other`].
    #[must_use]
    pub fn from_wire(error: &str, parameters: Value) -> Self {
        Self::known(error, &parameters)
            .unwrap_or_else(|| Self::Other { error: error.to_owned(), parameters })
    }

    fn known(error: &str, parameters: &Value) -> Option<Self> {
        let text = |name: &str| Some(parameters.get(name)?.as_str()?.to_owned());
        let (interface, name) = error.rsplit_once('.')?;
        Some(match (interface, name) {
            (INTERFACE, "PermissionDenied") => Self::PermissionDenied { message: text("message")? },
            (INTERFACE, "NoSuchEni") => Self::NoSuchEni {
                eni: text("eni")?,
                known: serde_json::from_value(parameters.get("known")?.clone()).ok()?,
            },
            (INTERFACE, "NoSuchAddress") => {
                Self::NoSuchAddress { address: text("address")?.parse().ok()? }
            }
            (INTERFACE, "NoSuchSubject") => Self::NoSuchSubject {
                what: text("what")?,
                known: serde_json::from_value(parameters.get("known")?.clone()).ok()?,
            },
            (INTERFACE, "InvalidState") => Self::InvalidState { message: text("message")? },
            (INTERFACE, "Busy") => Self::Busy { message: text("message")? },
            (INTERFACE, "Failed") => Self::Failed { message: text("message")? },
            (INTERFACE, "Malformed") => Self::Malformed { message: text("message")? },
            (SERVICE, "InterfaceNotFound") => {
                Self::InterfaceNotFound { interface: text("interface")? }
            }
            (SERVICE, "MethodNotFound") => Self::MethodNotFound { method: text("method")? },
            (SERVICE, "MethodNotImplemented") => {
                Self::MethodNotImplemented { method: text("method")? }
            }
            (SERVICE, "InvalidParameter") => {
                Self::InvalidParameter { parameter: text("parameter")? }
            }
            _ => return None,
        })
    }
}

fn those_known(known: &[String]) -> String {
    if known.is_empty() {
        "none is known yet".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        let text = || "why".to_owned();
        for refused in [
            Refused::PermissionDenied { message: text() },
            Refused::NoSuchEni { eni: text(), known: vec![text()] },
            Refused::NoSuchAddress { address: "fe80::1".parse().unwrap() },
            Refused::NoSuchSubject { what: text(), known: vec![text()] },
            Refused::InvalidState { message: text() },
            Refused::Busy { message: text() },
            Refused::Failed { message: text() },
            Refused::Malformed { message: text() },
            Refused::InterfaceNotFound { interface: text() },
            Refused::MethodNotFound { method: text() },
            Refused::MethodNotImplemented { method: text() },
            Refused::InvalidParameter { parameter: text() },
            Refused::Other {
                error: "org.varlink.service.ExpectedMore".to_owned(),
                parameters: json!({}),
            },
        ] {
            let (error, parameters) = refused.to_wire();
            assert_eq!(Refused::from_wire(&error, parameters), refused);
        }
    }
}
