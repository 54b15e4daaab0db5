//! What there is and why, object by object, as operators ask for it.

use enid_control::explain::{Explanation, Subject as Asked, SubjectKind};
use enid_control::{Objects, Refused, convert};
use enid_core::explain::{Subject, explain};
use enid_core::objects;
use enid_core::observed::Owner;

use crate::clock::now;
use crate::config::printable;
use crate::daemon::Daemon;
use crate::manager;
use crate::pass::Looked;

impl Daemon {
    /// What must be and what is, side by side.
    pub(super) async fn objects(&mut self) -> Result<Objects, Refused> {
        let (objects, looked) = self.told().await?;
        let report = &looked.decision.report;
        Ok(Objects::new(&objects, report, now(), &|index| looked.name_of(index)))
    }

    /// What is known of what somebody calls so.
    pub(super) async fn explain(&mut self, what: &str) -> Result<Explanation, Refused> {
        let (objects, looked) = self.told().await?;
        let report = &looked.decision.report;
        let name_of = |index| looked.name_of(index);
        let (kind, subject) = if let Ok(address) = what.parse() {
            (SubjectKind::Address, Subject::Address(address))
        } else if let Ok(mac) = convert::find(report, &[], what) {
            (SubjectKind::Eni, Subject::Eni(mac))
        } else {
            (SubjectKind::Rule, Subject::Rules(what.to_owned()))
        };
        let choices = &self.config.choices;
        let udev = Default::default();
        let facts = self.engine.facts(choices, &looked, &udev);
        let told = explain(&facts, report, &objects, &subject, &name_of);
        let Some(mut told) = told else {
            return Err(Refused::NoSuchSubject {
                what: printable(what),
                known: report.enis.iter().map(convert::label).collect(),
            });
        };
        if let (Subject::Address(address), Some(owner)) = (&subject, &mut told.owner) {
            let mut seen = looked.snapshot.addresses.iter();
            let seen = seen.find(|seen| seen.address.address == *address);
            let foreign = seen.filter(|seen| facts.observed.owner(seen) != Owner::Ours);
            if let Some(manager) = foreign.and_then(|seen| manager::of(seen.address.link)) {
                owner.push_str(&format!("; {manager} manages the link"));
            }
        }
        let eni = report.enis.iter().find(|eni| Some(eni.mac) == told.eni);
        let subject = Asked { kind, name: what.to_owned() };
        Ok(Explanation::new(subject, &told, eni, now(), &name_of))
    }

    /// A fresh look, object by object.
    async fn told(&mut self) -> Result<(objects::Objects, Looked), Refused> {
        self.aside(|engine, choices, looked| (engine.objects(choices, &looked), looked)).await
    }
}
