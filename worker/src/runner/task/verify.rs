//! Runs a verify task.

use imgsync_common::batch::Verify;
use imgsync_common::error::Result;

use super::attempt::location;
use super::{Came, Held, Runner};
use crate::copy::{Check, Job, Platforms, Seen, WhichReferrers};

impl Runner {
    /// Verifies that the target has everything the source has. If not, removes the target tag from the digest cache.
    pub(super) async fn verify(&self, held: &Held<'_>, verify: &Verify) -> Result<Came> {
        let Held { message, target, options, rule, context, tallies, .. } = held;
        let referrers = match verify.referrers.get(message.rule as usize) {
            None | Some(None) => WhichReferrers::All,
            Some(Some(types)) if types.is_empty() => WhichReferrers::None,
            Some(Some(types)) => WhichReferrers::Types(types.clone()),
        };
        let check = Check { deep: verify.deep, referrers };
        let job = Job {
            foreign_layers: rule.foreign_layers,
            platforms: Platforms::of_rule(&rule.platforms, rule.sparse),
            tallies: tallies.clone(),
            ..Job::new(location(&message.source)?, location(target)?)
        };
        let verified = self.copier_of(options).verify(&job, &check, context).await?;
        match verified.error(&job) {
            None => Ok(Came::Equal(Some(Seen { source: verified.source_digest, target: verified.digest }))),
            Some(error) => {
                self.store.forget_tags(&held.scope(), std::slice::from_ref(&target.tag)).await?;
                Err(error)
            }
        }
    }
}
