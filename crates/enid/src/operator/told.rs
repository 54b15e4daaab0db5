//! What there is and why, object by object, as operators ask for it.

use enid_control::{Objects, Refused};

use crate::clock::now;
use crate::config::chain;
use crate::daemon::Daemon;

impl Daemon {
    /// What must be and what is, side by side.
    pub(super) async fn objects(&mut self) -> Result<Objects, Refused> {
        let choices = self.config.choices.clone();
        // Looking must not count as a pass.
        let memory = self.engine.memory.clone();
        let looked = self.engine.look(&choices).await;
        let told = looked.map(|looked| (self.engine.objects(&choices, &looked), looked));
        self.engine.memory = memory;
        self.due_to_operator();
        let (objects, looked) = told.map_err(|error| Refused::Failed { message: chain(&error) })?;
        let report = &looked.decision.report;
        Ok(Objects::new(&objects, report, now(), &|index| looked.name_of(index)))
    }
}
