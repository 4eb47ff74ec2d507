//! Runs a verify task.

use imgsync_model::batch::VerifyOptions;
use imgsync_oci::error::Result;

use super::attempt::{image_location, source_location};
use super::{CompletedCopy, LeasedTask, Runner};
use crate::copy::{CopyRequest, ObservedDigests, PlatformSelection, RequiredReferrers, VerifySettings};

impl Runner {
    /// Verifies that the target has everything the source has. If not, removes the target tag from the digest cache.
    pub(super) async fn verify(&self, task: &LeasedTask<'_>, verify: &VerifyOptions) -> Result<CompletedCopy> {
        let LeasedTask { message, target, options, rule, context, traffic, .. } = task;
        let referrers = match verify.referrers.get(message.rule as usize) {
            None | Some(None) => RequiredReferrers::All,
            Some(Some(types)) if types.is_empty() => RequiredReferrers::None,
            Some(Some(types)) => RequiredReferrers::Types(types.clone()),
        };
        let settings = VerifySettings { deep: verify.deep, referrers };
        let request = CopyRequest {
            foreign_layers: rule.foreign_layers,
            platforms: PlatformSelection::from_rule(&rule.platforms, rule.sparse),
            traffic: traffic.clone(),
            ..CopyRequest::new(source_location(message)?, image_location(target)?)
        };
        let verified = self.copier_with_timeout(options).verify(&request, &settings, context).await?;
        match verified.to_error(&request) {
            None => {
                let seen = ObservedDigests { source: verified.source_digest, target: verified.digest };
                // For a rule with a policy, the digest cache has only what the policy accepted.
                let seen = Some(seen).filter(|_| rule.policy.is_none());
                Ok(CompletedCopy::unchanged(&target.tag, seen, self.clock.now()))
            }
            Some(error) => {
                self.store.forget_tags(&task.cache_scope(), std::slice::from_ref(&target.tag)).await?;
                Err(error)
            }
        }
    }
}
