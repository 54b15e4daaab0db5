//! What is told of wish and reality, held against the plan of the same decision.

use std::collections::BTreeSet;

use enid_core::decide::Decision;
use enid_core::eni::Facts;
use enid_core::memory::Memory;
use enid_core::object::{Object, Protocol};
use enid_core::objects::{Listed, Presence, Thing, objects};
use enid_core::plan::Step;

/// What is missing is what the plan makes, what is extra is what it takes away, and everything that
/// enid made is told once.
pub(super) fn agree(facts: &Facts<'_>, memory: &Memory, decision: &Decision) {
    // As the daemon does after each decision.
    let mut metadata = facts.metadata.clone();
    decision.gone.iter().for_each(|mac| metadata.forget(*mac));
    let told = objects(&Facts { metadata: &metadata, ..*facts }, memory, &decision.report);
    let told: Vec<&Listed> = told.enis.values().flatten().chain(&told.left).collect();
    let of = |presence: Presence| -> BTreeSet<Thing> {
        let due = told.iter().filter(|it| it.presence == presence && it.delay.is_none());
        due.map(|it| it.thing.clone()).collect()
    };
    let (mut made, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for planned in decision.plan.steps() {
        match planned.step.clone() {
            Step::Create(object) => _ = made.insert(Thing::Object(object)),
            Step::Replace { old, new } => {
                made.insert(Thing::Object(new));
                gone.insert(Thing::Object(old));
            }
            Step::Delete(object) => _ = gone.insert(Thing::Object(object)),
            Step::Set { link, to: Some(to), .. } => _ = made.insert(Thing::Setting(link, to)),
            Step::Set { link, from: Some(from), to: None } => {
                gone.insert(Thing::Setting(link, from));
            }
            Step::Set { from: None, to: None, .. } => {}
        }
    }
    if decision.refused.is_none() {
        assert_eq!((of(Presence::Missing), of(Presence::Extra)), (made, gone));
    }
    let snapshot = facts.observed.snapshot;
    let routes = snapshot.routes.iter().filter(|seen| seen.protocol == Protocol::ENID);
    let rules = snapshot.rules.iter().filter(|seen| seen.protocol == Protocol::ENID);
    let own = routes
        .map(|seen| Object::Route(seen.route))
        .chain(rules.map(|seen| Object::Rule(seen.rule.clone())));
    for object in own.map(Thing::Object) {
        let times =
            told.iter().filter(|it| it.thing == object && it.presence != Presence::Missing).count();
        assert_eq!(times, 1, "{object:?}");
    }
}
