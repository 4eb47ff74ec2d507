//! Listings of a rule, from registries or from an image layout.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use imgsync_common::config::Source;
use imgsync_common::error::{Error, Result};
use imgsync_common::registry::{Client, Context, Tally};

use super::folder::of_layout;
use crate::enumerate::{Enumeration, Found, Options, Unlisted, enumerate};
use crate::presets::{Part, parts};

/// Iterates over the listings of a rule.
pub struct Listings {
    way: Way,
    context: Context,
}

enum Way {
    /// A single source: its error is that of the rule.
    One(Arc<Part>, Box<Enumeration>),
    /// The parts of a preset.
    Several(Box<Several>),
    /// All repositories of a layout.
    Layout(std::vec::IntoIter<Found>),
}

/// A repository of a rule, or the error of listing it.
#[derive(Debug)]
pub struct Offer {
    /// The repository.
    pub found: Found,
    /// Part of the rule's source that it belongs to; `None` in a layout.
    pub part: Option<Arc<Part>>,
}

impl Listings {
    /// Starts listing the source of a rule. `folder` is the base directory of relative layout paths.
    pub async fn of(
        source: &Source,
        folder: &Path,
        client: &Client,
        options: Options,
        context: &Context,
        tally: &Arc<Tally>,
    ) -> Result<Listings> {
        let begin = {
            let (client, context, tally) = (client.clone(), context.clone(), tally.clone());
            move |part: &Part| enumerate(&client, &part.pattern, options, &context, &tally)
        };
        let way = match source {
            Source::Layout(path) => Way::Layout(of_layout(&folder.join(path)).await?.into_iter()),
            Source::Repositories(_) | Source::Preset(_) => match <[Part; 1]>::try_from(parts(source)?) {
                Ok([part]) => {
                    let enumeration = begin(&part);
                    Way::One(Arc::new(part), Box::new(enumeration))
                }
                Err(parts) => Way::Several(Box::new(Several::new(parts, options.query_limit, begin))),
            },
        };
        Ok(Listings { way, context: context.clone() })
    }

    /// Returns the next repository and warns of oddities in it. An error ends the listing of the rule.
    pub async fn next(&mut self) -> Result<Option<Offer>> {
        let offer = match &mut self.way {
            Way::One(part, enumeration) => {
                enumeration.next().await?.map(|found| Offer { found, part: Some(part.clone()) })
            }
            Way::Several(several) => several.next().await?,
            Way::Layout(found) => found.next().map(|found| Offer { found, part: None }),
        };
        if let Some(Offer { found: Found::Listed(listing), part: Some(part) }) = &offer {
            part.remarks(listing).iter().for_each(|remark| self.context.warn(remark));
        }
        Ok(offer)
    }
}

type Begin = Box<dyn Fn(&Part) -> Enumeration + Send + Sync>;

/// Lists the parts of a preset: named repositories concurrently, then patterns one after another. A part that cannot be
/// listed does not stop the others.
struct Several {
    named: BoxStream<'static, (Arc<Part>, Result<Option<Found>>)>,
    trees: VecDeque<Arc<Part>>,
    tree: Option<(Arc<Part>, Enumeration)>,
    begin: Arc<Begin>,
    /// Whether something was listed.
    listed: bool,
    /// Errors, deferred until something is listed.
    held: VecDeque<(Arc<Part>, Error)>,
}

impl Several {
    fn new(parts: Vec<Part>, at_once: usize, begin: impl Fn(&Part) -> Enumeration + Send + Sync + 'static) -> Several {
        let begin: Arc<Begin> = Arc::new(Box::new(begin));
        let parts = parts.into_iter().map(Arc::new);
        let (named, trees): (Vec<_>, Vec<_>) = parts.partition(|part| part.pattern.repository().is_some());
        let list = {
            let begin = begin.clone();
            move |part: Arc<Part>| {
                let mut enumeration = begin(&part);
                async move { (part, enumeration.next().await) }
            }
        };
        let named = futures_util::stream::iter(named).map(list).buffered(at_once.max(1)).boxed();
        Several { named, trees: trees.into(), tree: None, begin, listed: false, held: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<Offer>> {
        loop {
            if self.listed
                && let Some((part, error)) = self.held.pop_front()
            {
                return Ok(Some(unlisted(part, error)));
            }
            let (part, result) = match self.one().await {
                Some(one) => one,
                // Nothing was listed: the last error is the rule's.
                None if self.held.len() == 1 => {
                    return self.held.pop_front().map_or(Ok(None), |(_, error)| Err(error));
                }
                None => return Ok(self.held.pop_front().map(|(part, error)| unlisted(part, error))),
            };
            match result {
                Ok(None) => {}
                Ok(Some(found)) => {
                    self.listed = true;
                    return Ok(Some(Offer { found, part: Some(part) }));
                }
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => self.held.push_back((part, error)),
            }
        }
    }

    /// Returns the result of the next step, or `None` after the last.
    async fn one(&mut self) -> Option<(Arc<Part>, Result<Option<Found>>)> {
        if let Some(one) = self.named.next().await {
            return Some(one);
        }
        if self.tree.is_none() {
            let part = self.trees.pop_front()?;
            let enumeration = (self.begin)(&part);
            self.tree = Some((part, enumeration));
        }
        let (part, enumeration) = self.tree.as_mut()?;
        let (part, result) = (part.clone(), enumeration.next().await);
        if !matches!(result, Ok(Some(_))) {
            self.tree = None;
        }
        Some((part, result))
    }
}

fn unlisted(part: Arc<Part>, error: Error) -> Offer {
    let repository = part.pattern.to_string();
    Offer { found: Found::Unlisted(Unlisted { repository, error }), part: Some(part) }
}
