//! The steps from what is to what must be, in an order that never cuts off working traffic.

use crate::object::{LinkIndex, Object, Setting};

/// One thing to do; nothing is left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring a property of a link from one value to another.
    Set {
        /// The link.
        link: LinkIndex,
        /// What it is now; none where the link lacks it (an alternative name to add).
        from: Option<Setting>,
        /// What it must be; none to take it away (an alternative name to remove).
        to: Option<Setting>,
    },
    /// Make an object that is not there; it carries enid's mark.
    Create(Object),
    /// Exchange an own route for another one in the same place, without a gap.
    Replace {
        /// What is there.
        old: Object,
        /// What must be there.
        new: Object,
    },
    /// Remove an own object.
    Delete(Object),
}
