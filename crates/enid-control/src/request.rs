//! What an operator asks of the daemon and what comes back, with their form on the wire.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::plan::Plan;
use crate::refused::Refused;
use crate::status::{Status, Verdict};
use crate::varlink::INTERFACE;

/// How long [`Request::Refresh`] waits unless told.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// The longest that [`Request::Refresh`] can be told to wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How it stands. Answered with [`Reply::Status`].
    Status,
    /// What the next pass would do. Answered with [`Reply::Plan`].
    Plan,
    /// Read metadata now and run a pass. Answered with [`Reply::Refreshed`].
    Refresh {
        /// Answer when a pass after the reading has converged, not when one has taken it in.
        wait: bool,
        /// With `wait`: answer after this long at the latest.
        timeout: Duration,
    },
    /// Remove everything that enid made and hold the ENI. Answered with [`Reply::Affected`].
    Release {
        /// For which ENI.
        target: Target,
    },
    /// End a hold of the operator. Answered with [`Reply::Affected`].
    Unhold {
        /// For which ENI.
        target: Target,
    },
    /// Remove an address once a fresh complete reading lacks it. Answered with [`Reply::Affected`].
    Drop {
        /// The address.
        address: IpAddr,
    },
}

/// Which ENI is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All of them, also those attached later.
    All,
    /// The one with this id, MAC address or current link name.
    Eni(String),
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// How it stands.
    Status(Box<Status>),
    /// What the next pass would do.
    Plan(Plan),
    /// How far it was after the reading.
    Refreshed(Refreshed),
    /// It was accepted.
    Affected(Affected),
}

/// The answer to [`Request::Refresh`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// How far it is now.
    pub verdict: Verdict,
    /// Whether the time was up before the reading was taken in or, with `wait`, before it converged.
    pub timed_out: bool,
    /// What is waited for, in sentences that name the ENI.
    pub waiting: Vec<String>,
}

/// The answer to [`Request::Release`], [`Request::Unhold`] and [`Request::Drop`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affected {
    /// The ENIs that it concerns, as [`crate::convert::label`] names them.
    pub enis: Vec<String>,
}

impl Request {
    /// Whether it changes anything: not everybody may.
    #[must_use]
    pub const fn changes(&self) -> bool {
        match self {
            Self::Status | Self::Plan => false,
            Self::Refresh { .. }
            | Self::Release { .. }
            | Self::Unhold { .. }
            | Self::Drop { .. } => true,
        }
    }

    /// The name of its method, without the interface.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Plan => "Plan",
            Self::Refresh { .. } => "Refresh",
            Self::Release { .. } => "Release",
            Self::Unhold { .. } => "Unhold",
            Self::Drop { .. } => "Drop",
        }
    }

    /// Its parameters as they go over the wire.
    #[must_use]
    pub fn parameters(&self) -> Value {
        match self {
            Self::Status | Self::Plan => json!({}),
            Self::Refresh { wait, timeout } => {
                json!({ "wait": wait, "timeout_seconds": timeout.as_secs() })
            }
            Self::Release { target } | Self::Unhold { target } => match target {
                Target::All => json!({ "all": true }),
                Target::Eni(eni) => json!({ "eni": eni }),
            },
            Self::Drop { address } => json!({ "address": address }),
        }
    }

    /// The request from the wire: the method's name without the interface, and its parameters.
    pub fn from_wire(method: &str, parameters: Map<String, Value>) -> Result<Self, Refused> {
        let mut parameters = Parameters(parameters);
        let request = match method {
            "Status" => Self::Status,
            "Plan" => Self::Plan,
            "Refresh" => {
                Self::Refresh { wait: parameters.flag("wait")?, timeout: parameters.timeout()? }
            }
            "Release" => Self::Release { target: parameters.target()? },
            "Unhold" => Self::Unhold { target: parameters.target()? },
            "Drop" => Self::Drop {
                address: parameters
                    .text("address")?
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| invalid("address"))?,
            },
            _ => {
                return Err(Refused::MethodNotFound { method: format!("{INTERFACE}.{method}") });
            }
        };
        parameters.finish()?;
        Ok(request)
    }
}

impl Reply {
    /// Its parameters as they go over the wire.
    pub fn parameters(&self) -> serde_json::Result<Value> {
        match self {
            Self::Status(status) => Ok(json!({ "status": serde_json::to_value(status)? })),
            Self::Plan(plan) => Ok(json!({ "plan": serde_json::to_value(plan)? })),
            Self::Refreshed(refreshed) => serde_json::to_value(refreshed),
            Self::Affected(affected) => serde_json::to_value(affected),
        }
    }
}

/// Parameters that are taken out one by one, so that a wrong or unknown one is told by its name.
pub(crate) struct Parameters(pub(crate) Map<String, Value>);

impl Parameters {
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(invalid(name))
            }
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(Value::String(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(invalid(name))
            }
        }
    }

    fn timeout(&mut self) -> Result<Duration, Refused> {
        let name = "timeout_seconds";
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(DEFAULT_WAIT),
            Some(value) => value
                .as_u64()
                .map(Duration::from_secs)
                .filter(|timeout| *timeout <= LONGEST_WAIT)
                .ok_or_else(|| invalid(name)),
        }
    }

    fn target(&mut self) -> Result<Target, Refused> {
        match (self.text("eni")?, self.flag("all")?) {
            (Some(eni), false) => Ok(Target::Eni(eni)),
            (None, true) => Ok(Target::All),
            (Some(_), true) => Err(invalid("all")),
            (None, false) => Err(invalid("eni")),
        }
    }

    pub(crate) fn finish(self) -> Result<(), Refused> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(invalid(unknown)),
        }
    }
}

pub(crate) fn invalid(parameter: &str) -> Refused {
    Refused::InvalidParameter { parameter: parameter.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, parameters: &Value) -> Result<Request, Refused> {
        Request::from_wire(method, parameters.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn every_request_survives_the_wire() {
        let eni = || Target::Eni("ens6".to_owned());
        for request in [
            Request::Status,
            Request::Plan,
            Request::Refresh { wait: true, timeout: Duration::from_secs(7) },
            Request::Release { target: eni() },
            Request::Release { target: Target::All },
            Request::Unhold { target: eni() },
            Request::Drop { address: "10.0.0.9".parse().unwrap() },
        ] {
            assert_eq!(parse(request.name(), &request.parameters()), Ok(request.clone()));
        }
    }

    #[test]
    fn a_wrong_parameter_is_told_by_its_name() {
        for (method, parameters, name) in [
            ("Status", json!({ "verbose": true }), "verbose"),
            ("Refresh", json!({ "wait": "yes" }), "wait"),
            ("Refresh", json!({ "timeout_seconds": -1 }), "timeout_seconds"),
            ("Refresh", json!({ "timeout_seconds": 86_401 }), "timeout_seconds"),
            ("Release", json!({}), "eni"),
            ("Release", json!({ "eni": "ens6", "all": true }), "all"),
            ("Unhold", json!({ "eni": 6 }), "eni"),
            ("Drop", json!({}), "address"),
            ("Drop", json!({ "address": "10.0.0" }), "address"),
        ] {
            assert_eq!(parse(method, &parameters), Err(invalid(name)), "{method} {parameters}");
        }
    }

    #[test]
    fn null_is_as_good_as_nothing() {
        assert_eq!(
            parse("Refresh", &json!({ "wait": null, "timeout_seconds": null })),
            Ok(Request::Refresh { wait: false, timeout: DEFAULT_WAIT })
        );
    }
}
