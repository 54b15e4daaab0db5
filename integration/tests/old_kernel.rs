//! Promise: the same on a kernel that does not keep who made an address: the ledger does.

use integration::trial_on_an_old_kernel;
use libtest_mimic::Trial;

use crate::{drift, foreign_secondaries, kill, secondary_addresses};

type Scenario = fn() -> anyhow::Result<()>;

pub(crate) fn trials() -> Vec<Trial> {
    let trials: [(&str, Scenario); 9] = [
        ("an_unassigned_address_goes_after_the_grace", secondary_addresses::unassigned),
        ("an_address_that_an_operator_drops_goes_at_once", secondary_addresses::dropped),
        ("a_restart_changes_nothing", secondary_addresses::restarted),
        ("most_of_the_addresses_go_only_after_the_long_grace", secondary_addresses::most),
        ("an_address_moves_to_another_eni_at_once", secondary_addresses::moved),
        ("an_owned_object_deleted_by_hand_is_back", drift::one_by_one),
        ("foreign_objects_are_never_touched", drift::never_touched),
        ("a_pods_address_is_not_taken", foreign_secondaries::pods_address),
        ("killed_at_any_moment_it_goes_on", kill::at_any_time),
    ];
    let trials = trials.into_iter();
    trials.map(|(name, run)| trial_on_an_old_kernel(&format!("old_kernel::{name}"), run)).collect()
}
