//! Whether a request or connection may pass all limits that it is under.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::RateLimitHeaders;

use super::{
    Limits, RateLimits, Refusal, Subject, Told, descriptor,
    limit::{Decider, Limit},
    service::{Answer, Question, Service},
    told::Quota,
};
use crate::cluster::Rng;

/// What is known at once.
#[derive(Debug)]
pub enum Verdict {
    Admitted(Option<Box<Told>>),
    Refused(Box<Refusal>),
    /// A service has to be asked, or a token waited for.
    Undecided(Box<Undecided>),
}

#[derive(Debug)]
pub struct Undecided {
    wait: Duration,
    told: Told,
    /// Each service is asked once, about all limits that name it.
    asked: Vec<(Arc<Service>, Vec<Asked>)>,
}

/// One limit of a service.
#[derive(Debug)]
struct Asked {
    limits: Arc<Limits>,
    index: usize,
    question: Question,
    is_enforced: bool,
}

/// Asks the limits of a route and of a cluster about `subject`. What one of them turns away takes no
/// token of another.
pub fn judge(
    limits: &RateLimits,
    lists: [Option<&Arc<Limits>>; 2],
    subject: &Subject<'_>,
    rng: &Rng,
) -> Verdict {
    let now = limits.clock.at(Instant::now());
    let mut wait = Duration::ZERO;
    let mut least: Option<(Quota, &Limit)> = None;
    let mut asked: Vec<(Arc<Service>, Vec<Asked>)> = Vec::new();
    let all = || {
        let lists = lists.into_iter().flatten();
        lists.flat_map(|list| (0..list.0.len()).map(move |index| (list, index)))
    };
    // Which have given a token, of as many as there are bits; nobody has more.
    let mut drawn: u64 = 0;
    for (position, (list, index)) in all().enumerate() {
        let limit = &list.0[index];
        if !limit.is_enabled(rng) {
            continue;
        }
        if let Decider::Service(service) = &limit.decides {
            let Some(entries) = descriptor::entries(&limit.settings.actions, subject) else {
                continue;
            };
            let question = Question::new(entries, &limit.settings);
            let one = Asked {
                limits: list.clone(),
                index,
                question,
                // Drawn now, where chance is at hand.
                is_enforced: limit.is_enforced(rng),
            };
            match asked.iter_mut().find(|(s, _)| Arc::ptr_eq(s, service)) {
                Some((_, questions)) => questions.push(one),
                None => asked.push((service.clone(), vec![one])),
            }
            continue;
        }
        let Some(draw) = limit.draw(limits, subject, now) else {
            continue;
        };
        match draw.outcome {
            Ok(its_wait) => {
                limit.admitted();
                drawn |= 1_u64.checked_shl(position as u32).unwrap_or(0);
                wait = wait.max(its_wait);
                if limit.settings.headers == RateLimitHeaders::Always {
                    let quota = Quota::of_bucket(draw.rate, draw.left, draw.left.full_in);
                    if least.is_none_or(|(q, _)| quota.available < q.available) {
                        least = Some((quota, limit));
                    }
                }
            }
            Err(until) => {
                if !limit.is_limited(limit.is_enforced(rng)) {
                    continue;
                }
                for (earlier, (list, index)) in all().enumerate().take(position) {
                    if drawn & 1_u64.checked_shl(earlier as u32).unwrap_or(0) != 0 {
                        list.0[index].undo(limits, subject);
                    }
                }
                let quota = Quota::of_bucket(draw.rate, draw.left, until);
                return Verdict::Refused(Refusal::of(&limit.settings, Some(quota)));
            }
        }
    }
    let mut told = Told::default();
    if let Some((quota, limit)) = least {
        quota.write(&limit.settings, &mut told.response);
    }
    if asked.is_empty() && wait.is_zero() {
        let has_something = !told.response.is_empty();
        return Verdict::Admitted(has_something.then(|| Box::new(told)));
    }
    Verdict::Undecided(Box::new(Undecided { wait, told, asked }))
}

impl Undecided {
    /// Waits for the token, and for the services' answers.
    ///
    /// # Errors
    /// What turns it away.
    pub async fn decide(self: Box<Self>) -> Result<Option<Box<Told>>, Box<Refusal>> {
        let Self {
            wait,
            mut told,
            asked,
        } = *self;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        for (service, asked) in asked {
            let questions = asked.iter().map(|one| &one.question);
            let Some(answer) = service.ask(questions).await else {
                if service.denies_unanswered() {
                    return Err(Refusal::unanswered());
                }
                continue;
            };
            heed(&asked, answer, &mut told)?;
        }
        let has_something = !told.response.is_empty() || !told.request.is_empty();
        Ok(has_something.then(|| Box::new(told)))
    }
}

/// Does what a service says about each of the limits.
fn heed(asked: &[Asked], answer: Answer, told: &mut Told) -> Result<(), Box<Refusal>> {
    let mut least: Option<(Quota, &Limit)> = None;
    let mut refused: Option<(&Limit, Option<Quota>)> = None;
    for (one, status) in asked.iter().zip(&answer.statuses) {
        let limit = &one.limits.0[one.index];
        if !status.is_over {
            limit.admitted();
        } else if limit.is_limited(one.is_enforced) {
            refused = refused.or(Some((limit, status.quota)));
        }
        if let Some(quota) = status.quota
            && limit.settings.headers == RateLimitHeaders::Always
            && least.is_none_or(|(q, _)| quota.available < q.available)
        {
            least = Some((quota, limit));
        }
    }
    if let Some((limit, quota)) = refused {
        let mut refusal = Refusal::of(&limit.settings, quota);
        refusal.headers.extend(answer.response_headers);
        refusal.body = answer.body;
        return Err(refusal);
    }
    if let Some((quota, limit)) = least {
        quota.write(&limit.settings, &mut told.response);
    }
    told.response.extend(answer.response_headers);
    told.request.extend(answer.request_headers);
    Ok(())
}
