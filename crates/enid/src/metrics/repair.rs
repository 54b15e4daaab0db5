//! Which steps are repairs: they make again what others took away or changed.

use enid_core::object::{LinkIndex, Object, Setting};
use enid_core::observed::{Link, Snapshot};
use enid_core::plan::Step;

/// Whether a step of a pass's first round makes again what had been there when the pass before ended.
///
/// enid does nothing between two passes, so somebody else, or the kernel on somebody's behalf, took it
/// away. What came with a link that is new, or is wished for newly, had not been there.
pub(super) fn is_one(step: &Step, before: &Snapshot) -> bool {
    match step {
        Step::Create(object) | Step::Replace { new: object, .. } => has(before, object),
        Step::Set { link, to: Some(setting), .. } => stood(before, *link, setting),
        Step::Set { to: None, .. } | Step::Delete(_) => false,
    }
}

fn has(before: &Snapshot, object: &Object) -> bool {
    match object {
        Object::Address(wanted) => before
            .addresses
            .iter()
            .any(|seen| (seen.address.link, seen.address.address) == (wanted.link, wanted.address)),
        Object::Route(wanted) => before.routes.iter().any(|seen| seen.route == *wanted),
        Object::Rule(wanted) => before.rules.iter().any(|seen| seen.rule == *wanted),
        Object::Marking(wanted) => before.markings.iter().any(|seen| seen.marking == *wanted),
    }
}

fn stood(before: &Snapshot, index: LinkIndex, setting: &Setting) -> bool {
    let is_so = |link: &Link| match setting {
        Setting::Up => link.up,
        Setting::Mtu(mtu) => link.mtu == *mtu,
        Setting::Group(group) => link.group == *group,
        Setting::AlternativeName(name) => link.alternative_names.contains(name),
        Setting::Sysctl(key, value) => link.sysctls.get(key) == Some(value),
    };
    before.links.iter().find(|link| link.index == index).is_some_and(is_so)
}
