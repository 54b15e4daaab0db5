//! The interface's description says the same as the types that go over the wire.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::BTreeSet;

use enid_control::explain::{Fact, Subject, SubjectKind};
use enid_control::status::{
    Address, AddressState, Cidr, Departure, Eni, EniState, Health, Hold, HoldKind, Kept,
    KeptAddress, LastError, Leaving, Metadata, Origin, Pass, Prefix, PrefixMode, Role, Stop,
    StopKind, Verdict,
};
use enid_control::varlink::DESCRIPTION;
use enid_control::{
    EniObjects, Explanation, Metrics, Object, ObjectKind, ObjectState, Objects, Plan, PlannedStep,
    Refreshed, SCHEMA, Status, StepKind,
};
use serde::Serialize;

/// What stands in the brackets after these words: names of fields or values.
fn described(head: &str) -> BTreeSet<String> {
    let (_, rest) = DESCRIPTION.split_once(head).unwrap();
    let (body, _) = rest.split_once(')').unwrap();
    body.split(',').map(|part| part.split(':').next().unwrap().trim().to_owned()).collect()
}

fn fields(head: &str, value: &impl Serialize) {
    let value = serde_json::to_value(value).unwrap();
    let names: BTreeSet<_> = value.as_object().unwrap().keys().cloned().collect();
    assert_eq!(described(head), names, "{head}");
}

fn values(head: &str, values: &[impl Serialize]) {
    let names: BTreeSet<_> = values
        .iter()
        .map(|value| serde_json::to_value(value).unwrap().as_str().unwrap().to_owned())
        .collect();
    assert_eq!(described(head), names, "{head}");
}

#[test]
fn the_fields_of_a_status_are_those_described() {
    let stop = Stop { kind: StopKind::Unread, keys: Vec::new(), text: "why".to_owned() };
    fields("type Stop (", &stop);
    let leaving = Leaving {
        cause: Departure::Unassigned,
        moved_to: None,
        confirmations: 1,
        needed: 3,
        lacking_seconds: 5,
        grace_seconds: 60,
        mass: false,
        mass_going: None,
        mass_of: None,
        paused: false,
        stops: vec![stop],
        proven: false,
    };
    fields("type Leaving (", &leaving);
    let address = Address {
        address: "10.0.0.9".parse().unwrap(),
        role: Role::Secondary,
        state: AddressState::Leaving,
        leaving: Some(leaving.clone()),
        elsewhere: None,
        origin: Some(Origin::Enid),
        public: Some("203.0.113.9".parse().unwrap()),
    };
    fields("type Address (", &address);
    let prefix =
        Prefix { prefix: "10.0.0.16/28".parse().unwrap(), mode: PrefixMode::Rules, leaving: None };
    fields("type Prefix (", &prefix);
    let kept =
        KeptAddress { address: "10.0.0.9".parse().unwrap(), why: Kept::Foreign, prefix: None };
    fields("type KeptAddress (", &kept);
    let cidr = Cidr { cidr: "10.9.0.0/16".parse().unwrap(), leaving };
    fields("type Cidr (", &cidr);
    let hold = Hold { kind: HoldKind::Operator, seconds_left: Some(5) };
    fields("type HoldState (", &hold);
    let eni = Eni {
        mac: "02:00:00:00:00:05".to_owned(),
        id: None,
        link: None,
        primary: true,
        card: None,
        device: None,
        table: None,
        subnets: Vec::new(),
        state: EniState::Managed,
        reason: None,
        hold: Some(hold),
        addresses: vec![address],
        kept: vec![kept],
        prefixes: vec![prefix],
        cidrs: vec![cidr],
        sources: Vec::new(),
        gateways: Vec::new(),
        read_seconds: Some(2),
        waiting: Vec::new(),
        notices: Vec::new(),
    };
    fields("type Eni (", &eni);
    let metadata = Metadata {
        health: Health::Ok,
        since_seconds: 1,
        reason: None,
        endpoint: None,
        requests: 1,
        poll_interval_ms: 5000,
        next_poll_ms: None,
        read_seconds: None,
    };
    fields("type Metadata (", &metadata);
    let pass = Pass { cause: "metadata".to_owned(), steps: 1, duration_us: 900, ago_seconds: 1 };
    fields("type Pass (", &pass);
    let error = LastError { message: "why".to_owned(), ago_seconds: 1 };
    fields("type LastError (", &error);
    let status = Status {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        verdict: Verdict::Waiting,
        since_seconds: 1,
        metadata,
        last_pass: Some(pass),
        last_error: Some(error),
        enis: vec![eni],
    };
    fields("type InstanceStatus (", &status);
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
}

#[test]
fn the_fields_of_a_plan_and_of_a_refresh_are_those_described() {
    let step = PlannedStep::new(StepKind::Create, "ip …".to_owned(), None, String::new());
    fields("type PlannedStep (", &step);
    fields("type PassPlan (", &Plan::new(vec![step]));
    let refreshed = Refreshed { verdict: Verdict::Waiting, timed_out: true, waiting: Vec::new() };
    fields("timeout_seconds: ?int) -> (", &refreshed);
    fields("method Metrics() -> (", &Metrics::new(String::new()));
}

#[test]
fn the_values_of_enumerations_are_those_described() {
    values("type Verdict (", &[Verdict::Converged, Verdict::Waiting, Verdict::NotYet]);
    values("type Health (", &[Health::NotRead, Health::Ok, Health::Failing]);
    values(
        "type EniState (",
        &[EniState::Managed, EniState::Pending, EniState::Held, EniState::NoLink],
    );
    values("type Departure (", &[Departure::Unassigned, Departure::Moved, Departure::Dropped]);
    values(
        "type StopKind (",
        &[
            StopKind::Failed,
            StopKind::Unlisted,
            StopKind::Identity,
            StopKind::Unread,
            StopKind::Unconfirmed,
        ],
    );
    values(
        "type Kept (",
        &[
            Kept::Foreign,
            Kept::Dynamic,
            Kept::LinkLocal,
            Kept::Primary,
            Kept::Ignored,
            Kept::InPrefix,
        ],
    );
    values("type PrefixMode (", &[PrefixMode::Rules, PrefixMode::Local, PrefixMode::Ignore]);
    values("type HoldKind (", &[HoldKind::Released, HoldKind::Operator, HoldKind::Cause]);
    values("type Origin (", &[Origin::Enid, Origin::Dynamic, Origin::Foreign]);
    values("type Role (", &[Role::Primary, Role::Secondary]);
    values(
        "type AddressState (",
        &[
            AddressState::Ours,
            AddressState::Theirs,
            AddressState::TakenOver,
            AddressState::Adding,
            AddressState::Missing,
            AddressState::Leaving,
            AddressState::Ignored,
            AddressState::Elsewhere,
        ],
    );
    values(
        "type StepKind (",
        &[StepKind::Set, StepKind::Create, StepKind::Replace, StepKind::Delete],
    );
}

#[test]
fn the_fields_of_objects_are_those_described() {
    let object = Object {
        kind: ObjectKind::Rule,
        text: "pref 20020 from all lookup 20001".to_owned(),
        state: ObjectState::There,
        reason: "why".to_owned(),
        waits: None,
        leaving: None,
        address: None,
        table: Some(20_001),
        priority: Some(20_020),
        source: None,
        destination: None,
        gateway: None,
    };
    fields("type Object (", &object);
    let eni = EniObjects {
        eni: "eni-1".to_owned(),
        mac: "02:00:00:00:00:05".to_owned(),
        link: "ens6".to_owned(),
        table: Some(20_001),
        objects: vec![object],
    };
    fields("type EniObjects (", &eni);
    let objects = Objects { schema: SCHEMA, enis: vec![eni], left: Vec::new() };
    fields("method Objects() -> (", &objects);
    let text = serde_json::to_string(&objects).unwrap();
    assert_eq!(serde_json::from_str::<Objects>(&text).unwrap(), objects);
    values(
        "type ObjectKind (",
        &[
            ObjectKind::Address,
            ObjectKind::Route,
            ObjectKind::Rule,
            ObjectKind::Marking,
            ObjectKind::Setting,
        ],
    );
    values(
        "type ObjectState (",
        &[
            ObjectState::There,
            ObjectState::Missing,
            ObjectState::Extra,
            ObjectState::Foreign,
            ObjectState::Conflict,
        ],
    );
}

#[test]
fn the_fields_of_an_explanation_are_those_described() {
    let subject = Subject { kind: SubjectKind::Address, name: "10.0.2.4".to_owned() };
    fields("type Subject (", &subject);
    values("type SubjectKind (", &[SubjectKind::Address, SubjectKind::Eni, SubjectKind::Rule]);
    let fact = Fact {
        key: "meta-data/mac".to_owned(),
        value: "02:00:00:00:00:05".to_owned(),
        first_seconds: None,
        last_seconds: Some(3),
    };
    fields("type Fact (", &fact);
    let explanation = Explanation {
        schema: SCHEMA,
        subject,
        eni: None,
        text: Vec::new(),
        facts: vec![fact],
        owner: None,
        waits: Vec::new(),
        objects: Vec::new(),
    };
    fields("method Explain(what: string) -> (", &explanation);
    let text = serde_json::to_string(&explanation).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), explanation);
}
