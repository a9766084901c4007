//! What a link between servers says of a broadcast that it was delivered: how many handlers were asked for it at this end, and
//! what became of each.

use ringpost_protocol::{Content, message::Verdict};

use super::{Client, checked};
use crate::output::DeliveryKey;

impl Client {
    /// A broadcast went to so many handlers here. To be said once, before the first [`Client::leg`]. `false` if the delivery is
    /// not held, or nobody waits for it.
    pub fn legs(&mut self, key: DeliveryKey, expected: u32) -> bool {
        let legs = self.on_this_connection(key).and_then(|key| self.deliveries.legs(key, expected));
        let wanted = legs.is_some();
        self.outputs.extend(legs);
        wanted
    }

    /// The outcome of one of several legs, and not of the last: that is [`Client::answer`]. `false` if the delivery is not held,
    /// or nobody waits for it.
    pub fn leg(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> bool {
        let (verdict, content) = checked(verdict, content, self.link.max_payload);
        let leg = self.on_this_connection(key).and_then(|key| self.deliveries.leg(key, verdict, content));
        let wanted = leg.is_some();
        self.outputs.extend(leg);
        wanted
    }
}
