//! Which steps of a plan rest on others: nothing is taken away when what was to take its place could
//! not be made, and nothing is sent into a table that lacks its way out.

use crate::object::{Object, RouteKind, Rule, RuleAction, TableId};
use crate::plan::Step;

/// Whether what became of the steps up to `last` must be known before `step` is taken.
#[must_use]
pub fn turns(last: &Step, step: &Step) -> bool {
    let rule = |step: &Step| matches!(step, Step::Create(Object::Rule(_)));
    let delete = |step: &Step| matches!(step, Step::Delete(_));
    let route = matches!(
        step,
        Step::Create(Object::Route(_)) | Step::Replace { new: Object::Route(_), .. }
    );
    (delete(step) && !delete(last)) || (rule(step) && !rule(last)) || (route && delete(last))
}

/// Whether a step of a plan must not be taken, because these earlier ones failed.
#[must_use]
pub fn on_failure(step: &Step, plan: &[Step], failed: &[&Step]) -> bool {
    let no_way_out = |table: TableId| {
        failed.iter().any(|step| match step {
            Step::Create(Object::Route(route))
            | Step::Replace { new: Object::Route(route), .. } => {
                let default = route.is_default() && route.kind == RouteKind::Unicast;
                default && route.table == table
            }
            Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => false,
        })
    };
    match step {
        // A route is refused whose source the kernel does not have, or whose gateway is not on link;
        // and where another ENI's rule still leads, it would lead that ENI's packets astray.
        Step::Create(Object::Route(route)) | Step::Replace { new: Object::Route(route), .. } => {
            failed.iter().any(|step| match step {
                Step::Create(Object::Address(source)) => route.source == Some(source.address),
                Step::Create(Object::Route(way)) => way.leads_to_gateway_of(route),
                Step::Delete(Object::Rule(rule)) => looks_into(rule) == Some(route.table),
                Step::Set { .. } | Step::Create(_) | Step::Replace { .. } | Step::Delete(_) => {
                    false
                }
            })
        }
        Step::Create(Object::Rule(rule)) => looks_into(rule).is_some_and(no_way_out),
        Step::Delete(Object::Address(old)) => failed.iter().any(|step| {
            matches!(step, Step::Create(Object::Address(new)) if new.address == old.address)
        }),
        Step::Delete(Object::Rule(old)) => plan.iter().any(|step| {
            matches!(step, Step::Create(Object::Rule(new)) if stands_in(new, old)
                && (failed.contains(&step) || looks_into(new).is_some_and(no_way_out)))
        }),
        Step::Delete(Object::Route(old)) => failed.iter().any(|step| {
            matches!(step, Step::Delete(Object::Rule(rule)) if looks_into(rule) == Some(old.table))
        }),
        Step::Delete(Object::Marking(_))
        | Step::Set { .. }
        | Step::Create(_)
        | Step::Replace { .. } => false,
    }
}

fn looks_into(rule: &Rule) -> Option<TableId> {
    match rule.action {
        RuleAction::Lookup(table) => Some(table),
        RuleAction::Other(_) => None,
    }
}

/// Whether a rule catches packets that another one catches, too.
fn stands_in(new: &Rule, old: &Rule) -> bool {
    new.family == old.family
        && match (new.source, old.source) {
            (Some(new), Some(old)) => new.contains(&old) || old.contains(&new),
            (None, None) => new.oif == old.oif || new.action == old.action,
            (Some(_), None) | (None, Some(_)) => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Address, Family, LinkIndex, Route};

    fn address(link: u32) -> Object {
        Object::Address(Address {
            link: LinkIndex(link),
            address: "10.0.0.9".parse().unwrap(),
            prefix_length: 32,
            prefix_route: false,
            preferred: true,
        })
    }

    fn rule(source: &str, table: u32) -> Object {
        let rule = Rule::lookup(Family::V4, 20_020, TableId(table));
        Object::Rule(Rule { source: Some(source.parse().unwrap()), ..rule })
    }

    fn default(table: u32) -> Object {
        Object::Route(Route {
            table: TableId(table),
            destination: "0.0.0.0/0".parse().unwrap(),
            kind: RouteKind::Unicast,
            gateway: Some("10.0.0.1".parse().unwrap()),
            link: Some(LinkIndex(2)),
            on_link: false,
            source: None,
            metric: 0,
        })
    }

    /// Which of the steps are not taken when the first one fails.
    fn waiting(plan: &[Step]) -> Vec<bool> {
        let mut failed = vec![&plan[0]];
        let rests = |step| {
            let rests = on_failure(step, plan, &failed);
            failed.extend(rests.then_some(step));
            rests
        };
        plan[1..].iter().map(rests).collect()
    }

    #[test]
    fn an_address_that_could_not_move_stays() {
        assert_eq!(waiting(&[Step::Create(address(3)), Step::Delete(address(2))]), [true]);
    }

    #[test]
    fn a_rule_stays_with_its_table_until_the_new_one_is_there_and_others_go() {
        let steps = [
            Step::Create(rule("10.0.0.0/25", 20_001)),
            Step::Delete(rule("10.0.0.0/24", 20_000)),
            Step::Delete(rule("10.9.0.0/24", 20_009)),
            Step::Delete(default(20_000)),
            Step::Delete(default(20_009)),
        ];
        assert_eq!(waiting(&steps), [true, false, true, false]);
    }

    #[test]
    fn a_table_that_a_rule_still_leads_into_is_not_filled_for_another_eni() {
        let steps = [
            Step::Create(rule("10.0.0.0/24", 20_101)),
            Step::Delete(rule("10.0.0.0/24", 20_001)),
            Step::Create(default(20_001)),
            Step::Create(rule("10.0.1.0/24", 20_001)),
            Step::Create(default(20_002)),
        ];
        assert_eq!(waiting(&steps), [true, true, true, false]);
    }

    #[test]
    fn nothing_is_sent_into_a_table_without_a_way_out() {
        let steps = [
            Step::Create(default(20_000)),
            Step::Create(rule("10.0.0.0/24", 20_000)),
            Step::Create(rule("10.0.1.0/24", 20_001)),
            Step::Delete(rule("10.0.0.0/24", 30_000)),
        ];
        assert_eq!(waiting(&steps), [true, false, true]);
    }
}
