//! Credential pool of a registry: one credential for all requests, and more for pulling, used in rotation. Each has its
//! own rate limiter.

use super::credentials::Credential;
use super::known;
use super::pacer::{Hold, Pacer};
use super::places::Places;
use super::settings::{RegistrySettings, Reserve, SharedPace};
use crate::image::RegistryName;
use crate::store::AccountPart;

/// One credential with its own rate limiter.
#[derive(Debug)]
pub(crate) struct Login {
    /// From the settings. `None`: the credential of docker or containers, or anonymous.
    pub(crate) credential: Option<Credential>,
    /// Account name for credentials without a user name, such as tokens.
    pub(crate) fallback: Option<Box<str>>,
    pub(crate) pacer: Pacer,
    pub(crate) places: Option<Places>,
    /// Limiters of operations that are counted separately.
    pub(crate) parts: Vec<(AccountPart, Pacer)>,
}

/// All credentials of one registry.
#[derive(Debug)]
pub(crate) struct Logins {
    all: Vec<Login>,
    /// Indexes in `all` of the credentials that pull.
    pulling: Vec<usize>,
}

impl Logins {
    pub(crate) fn new(registry: &RegistryName, settings: &RegistrySettings, shared: Option<&SharedPace>) -> Logins {
        let known = known::of(registry, settings);
        let limit = settings.requests_per_second.or(known.and_then(|known| known.requests_per_second));
        let parts = known.map(|known| known.parts).unwrap_or_default();
        // Name under which this process claims shared permits; unique, also within the process.
        let name = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        let holder = shared.filter(|shared| !shared.alone).map(|_| name.as_str());
        let login = |credential: Option<Credential>, fallback: Option<Box<str>>| Login {
            credential,
            fallback,
            pacer: Pacer::new(limit, settings.pull_reserve, shared.cloned()),
            places: settings.concurrency.map(|limit| Places::new(limit, holder)),
            parts: parts
                .iter()
                .map(|(part, limit)| (*part, Pacer::new(Some(*limit), Reserve::default(), shared.cloned())))
                .collect(),
        };
        let own = settings.credentials.first().cloned();
        let first = if own.is_some() || settings.pull_credentials.is_empty() { 0 } else { 1 };
        let mut all = vec![login(own, None)];
        for (at, credential) in settings.pull_credentials.iter().enumerate() {
            all.push(login(Some(credential.clone()), Some(format!("token {}", at + 1).into())));
        }
        let pulling = (first..all.len()).collect();
        Logins { all, pulling }
    }

    pub(crate) fn get(&self, at: usize) -> &Login {
        // Indexes come from `turn` or are 0, and there is always one credential.
        self.all.get(at).unwrap_or(&self.all[0])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Login> {
        self.all.iter()
    }

    pub(crate) fn pulling(&self) -> &[usize] {
        &self.pulling
    }

    /// Picks the credential to pull with: the next in rotation that is not held, else the one with the shortest hold.
    pub(crate) fn turn(&self, turn: usize) -> usize {
        let ring = &self.pulling;
        if ring.len() < 2 {
            return ring.first().copied().unwrap_or_default();
        }
        let next = (0..ring.len()).map(|step| ring[(turn + step) % ring.len()]);
        let wait = |at: &usize| self.get(*at).pacer.hold(true).map(|hold| hold.wait).unwrap_or_default();
        // The first of equal ones.
        next.min_by_key(wait).unwrap_or_default()
    }

    /// Returns the current hold; with `pulls`, only if no credential can pull.
    pub(crate) fn hold(&self, pulls: bool) -> Option<Hold> {
        match pulls {
            false => self.get(0).pacer.hold(false),
            true => self.get(self.turn(0)).pacer.hold(true),
        }
    }
}
