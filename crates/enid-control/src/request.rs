//! What an operator asks of the daemon and what comes back, with their form on the wire.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::events::Events;
use crate::explain::Explanation;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::plan::Plan;
use crate::refused::Refused;
use crate::status::{Status, Verdict};
use crate::varlink::INTERFACE;

/// How long [`Request::Refresh`] and [`Request::Wait`] wait unless told.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// The longest that [`Request::Hold`] can be told to last: a year.
pub const LONGEST_HOLD: Duration = Duration::from_secs(365 * 86_400);

/// The longest that [`Request::Refresh`] and [`Request::Wait`] can be told to wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How it stands. Answered with [`Reply::Status`].
    Status,
    /// What the next pass would do. Answered with [`Reply::Plan`].
    Plan,
    /// What must be and what is, object by object. Answered with [`Reply::Objects`].
    Objects,
    /// What is known of an address, an ENI or a rule. Answered with [`Reply::Explained`].
    Explain {
        /// The address; the ENI's id, MAC address or link name; the rule's priority or `ip`'s words.
        what: String,
    },
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
    /// Leave an ENI as it is: nothing is added, removed or repaired. Answered with
    /// [`Reply::Affected`].
    Hold {
        /// Its id, MAC address or current link name.
        eni: String,
        /// For how long; without it until [`Request::Unhold`] or the next boot.
        time: Option<Duration>,
        /// Why, for whoever looks next; may be empty.
        reason: String,
    },
    /// Wait for something, reading metadata more often meanwhile if the caller may change anything.
    /// Answered with [`Reply::Waited`].
    Wait {
        /// For what.
        what: Awaited,
        /// Answer after this long at the latest.
        timeout: Duration,
    },
    /// What happened. Answered with [`Reply::Events`], and where several replies are welcome with
    /// another one whenever something happens.
    Events {
        /// Only what has a higher number than this; 0 for all that is remembered.
        after: u64,
    },
    /// Read the configuration again, as SIGHUP does. Answered with [`Reply::Reloaded`].
    Reload,
    /// What is counted and measured. Answered with [`Reply::Metrics`].
    Metrics,
}

/// What a script waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// An address is on the ENI that metadata grants it to, which is managed.
    Address(IpAddr),
    /// Metadata grants an address to no ENI here, and no ENI's link has it.
    Absent(IpAddr),
    /// An ENI is managed and has all that metadata grants it.
    Eni(String),
    /// Every ENI whose link is here is, unless it is held.
    Online,
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
    /// What must be and what is.
    Objects(Box<Objects>),
    /// What is known.
    Explained(Box<Explanation>),
    /// How far it was after the reading.
    Refreshed(Refreshed),
    /// It was accepted.
    Affected(Affected),
    /// Whether it came about.
    Waited(Waited),
    /// What happened.
    Events(Events),
    /// What is counted and measured.
    Metrics(Metrics),
    /// The configuration in force is what the files say.
    Reloaded(Reloaded),
}

/// The answer to [`Request::Wait`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Waited {
    /// Whether it came about in time.
    pub met: bool,
    /// What is still in the way, in sentences; empty once it came about.
    pub waiting: Vec<String>,
}

/// The answer to [`Request::Reload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reloaded {
    /// Whether anything is different now.
    pub changed: bool,
    /// What stays as it was until a restart, in sentences.
    pub notices: Vec<String>,
}

/// The answer to [`Request::Refresh`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refreshed {
    /// How far it is now.
    pub verdict: Verdict,
    /// Whether the time was up before the reading was taken in or, with `wait`, before it converged.
    pub timed_out: bool,
    /// What is waited for, in sentences that name the ENI.
    pub waiting: Vec<String>,
}

/// The answer to [`Request::Release`], [`Request::Unhold`], [`Request::Drop`] and [`Request::Hold`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Affected {
    /// The ENIs that it concerns, each by its id, else its MAC address, and its link.
    pub enis: Vec<String>,
}

impl Request {
    /// Whether it changes anything: not everybody may.
    #[must_use]
    pub const fn changes(&self) -> bool {
        match self {
            Self::Status
            | Self::Plan
            | Self::Objects
            | Self::Explain { .. }
            | Self::Wait { .. }
            | Self::Events { .. }
            | Self::Metrics => false,
            Self::Refresh { .. }
            | Self::Release { .. }
            | Self::Unhold { .. }
            | Self::Drop { .. }
            | Self::Hold { .. }
            | Self::Reload => true,
        }
    }

    /// The name of its method, without the interface.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Plan => "Plan",
            Self::Objects => "Objects",
            Self::Explain { .. } => "Explain",
            Self::Refresh { .. } => "Refresh",
            Self::Release { .. } => "Release",
            Self::Unhold { .. } => "Unhold",
            Self::Drop { .. } => "Drop",
            Self::Hold { .. } => "Hold",
            Self::Wait { .. } => "Wait",
            Self::Events { .. } => "Events",
            Self::Reload => "Reload",
            Self::Metrics => "Metrics",
        }
    }

    /// Its parameters as they go over the wire.
    #[must_use]
    pub fn parameters(&self) -> Value {
        match self {
            Self::Status | Self::Plan | Self::Objects | Self::Reload | Self::Metrics => json!({}),
            Self::Explain { what } => json!({ "what": what }),
            Self::Refresh { wait, timeout } => {
                json!({ "wait": wait, "timeout_seconds": timeout.as_secs() })
            }
            Self::Release { target } | Self::Unhold { target } => match target {
                Target::All => json!({ "all": true }),
                Target::Eni(eni) => json!({ "eni": eni }),
            },
            Self::Drop { address } => json!({ "address": address }),
            Self::Hold { eni, time, reason } => {
                json!({ "eni": eni, "seconds": time.map(|time| time.as_secs()), "reason": reason })
            }
            Self::Events { after } => json!({ "after": after }),
            Self::Wait { what, timeout } => {
                let mut parameters = match what {
                    Awaited::Address(address) => json!({ "address": address }),
                    Awaited::Absent(address) => json!({ "absent": address }),
                    Awaited::Eni(eni) => json!({ "eni": eni }),
                    Awaited::Online => json!({ "online": true }),
                };
                parameters["timeout_seconds"] = timeout.as_secs().into();
                parameters
            }
        }
    }

    /// The request from the wire: the method's name without the interface, and its parameters.
    pub fn from_wire(method: &str, parameters: Map<String, Value>) -> Result<Self, Refused> {
        let mut parameters = Parameters(parameters);
        let request = match method {
            "Status" => Self::Status,
            "Plan" => Self::Plan,
            "Objects" => Self::Objects,
            "Explain" => {
                Self::Explain { what: parameters.text("what")?.ok_or_else(|| invalid("what"))? }
            }
            "Refresh" => {
                Self::Refresh { wait: parameters.flag("wait")?, timeout: parameters.timeout()? }
            }
            "Release" => Self::Release { target: parameters.target()? },
            "Unhold" => Self::Unhold { target: parameters.target()? },
            "Drop" => Self::Drop {
                address: parameters.address("address")?.ok_or_else(|| invalid("address"))?,
            },
            "Hold" => Self::Hold {
                eni: parameters.text("eni")?.ok_or_else(|| invalid("eni"))?,
                time: parameters.seconds("seconds", LONGEST_HOLD)?,
                reason: parameters.text("reason")?.unwrap_or_default(),
            },
            "Wait" => Self::Wait { what: parameters.awaited()?, timeout: parameters.timeout()? },
            "Events" => Self::Events { after: parameters.number("after")?.unwrap_or_default() },
            "Reload" => Self::Reload,
            "Metrics" => Self::Metrics,
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
            Self::Objects(objects) => serde_json::to_value(objects),
            Self::Explained(explanation) => serde_json::to_value(explanation),
            Self::Refreshed(refreshed) => serde_json::to_value(refreshed),
            Self::Affected(affected) => serde_json::to_value(affected),
            Self::Events(events) => serde_json::to_value(events),
            Self::Metrics(metrics) => serde_json::to_value(metrics),
            Self::Waited(waited) => serde_json::to_value(waited),
            Self::Reloaded(reloaded) => serde_json::to_value(reloaded),
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
        Ok(self.seconds("timeout_seconds", LONGEST_WAIT)?.unwrap_or(DEFAULT_WAIT))
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, Refused> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| invalid(name)),
        }
    }

    fn seconds(&mut self, name: &str, longest: Duration) -> Result<Option<Duration>, Refused> {
        let time = self.number(name)?.map(Duration::from_secs);
        if time.is_some_and(|time| time > longest) { Err(invalid(name)) } else { Ok(time) }
    }

    fn address(&mut self, name: &str) -> Result<Option<IpAddr>, Refused> {
        let text = self.text(name)?;
        text.map(|text| text.parse().map_err(|_| invalid(name))).transpose()
    }

    fn awaited(&mut self) -> Result<Awaited, Refused> {
        let eni = self.text("eni")?.map(|eni| ("eni", Awaited::Eni(eni)));
        let address = self.address("address")?.map(|it| ("address", Awaited::Address(it)));
        let absent = self.address("absent")?.map(|it| ("absent", Awaited::Absent(it)));
        let online = self.flag("online")?.then_some(("online", Awaited::Online));
        let mut said = [address, absent, eni, online].into_iter().flatten();
        match (said.next(), said.next()) {
            (Some((_, what)), None) => Ok(what),
            (_, Some((name, _))) => Err(invalid(name)),
            (None, None) => Err(invalid("address")),
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
            Request::Objects,
            Request::Explain { what: "pref 20020".to_owned() },
            Request::Refresh { wait: true, timeout: Duration::from_secs(7) },
            Request::Release { target: eni() },
            Request::Release { target: Target::All },
            Request::Unhold { target: eni() },
            Request::Drop { address: "10.0.0.9".parse().unwrap() },
            Request::Hold { eni: "ens6".to_owned(), time: None, reason: String::new() },
            Request::Hold {
                eni: "ens6".to_owned(),
                time: Some(Duration::from_secs(3600)),
                reason: "moving the database".to_owned(),
            },
            Request::Wait {
                what: Awaited::Address("10.0.0.9".parse().unwrap()),
                timeout: Duration::from_secs(7),
            },
            Request::Wait {
                what: Awaited::Absent("fe80::9".parse().unwrap()),
                timeout: Duration::from_secs(7),
            },
            Request::Wait { what: Awaited::Eni("eni-7".to_owned()), timeout: DEFAULT_WAIT },
            Request::Wait { what: Awaited::Online, timeout: DEFAULT_WAIT },
            Request::Events { after: 7 },
            Request::Reload,
            Request::Metrics,
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
            ("Hold", json!({ "seconds": 60 }), "eni"),
            ("Hold", json!({ "eni": "ens6", "seconds": 40_000_000 }), "seconds"),
            ("Wait", json!({}), "address"),
            ("Wait", json!({ "address": "10.0.0.9", "online": true }), "online"),
            ("Wait", json!({ "absent": "here" }), "absent"),
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
