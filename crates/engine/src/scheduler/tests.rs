//! The scheduler over memory that remembers what was written to it: random requests, aborts, forks and drafts.

use super::*;
use proptest::prelude::*;

/// What a row of the cache holds: all that keys and values depend on.
type Row = Option<(Option<String>, Vec<u32>)>;

/// What a test wants of a sequence.
#[derive(Clone, Debug)]
struct Wish {
    salt: Option<String>,
    /// Tokens to generate.
    left: usize,
    /// Choices that are not there before the prompt ran.
    unborn: usize,
}

#[derive(Clone, Debug)]
enum Operation {
    Submit { prompt: usize, same: usize, left: usize, priority: i64, choices: usize, salt: bool, alone: bool },
    Abort(usize),
    Steps(usize),
}

struct World {
    scheduler: Scheduler<Wish>,
    limits: Limits,
    memory: Vec<[Row; BLOCK]>,
    requests: u64,
    /// Draws of the drafts.
    random: u64,
    drafts: bool,
    /// What each sequence that ended had.
    ended: BTreeMap<Rank, Vec<u32>>,
    hits: u64,
}

/// The token that follows others: every sequence is known in advance.
fn next(rank: Rank, tokens: &[u32]) -> u32 {
    (tokens.len() as u32 * 7 + rank.request as u32 * 3 + rank.choice as u32) % 5 + 100
}

impl World {
    fn new(blocks: u32, limits: Limits, drafts: bool) -> Self {
        World {
            scheduler: Scheduler::new(blocks, limits),
            limits,
            memory: (0..blocks).map(|_| std::array::from_fn(|_| None)).collect(),
            requests: 0,
            random: 1,
            drafts,
            ended: BTreeMap::new(),
            hits: 0,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    fn submit(&mut self, operation: &Operation) {
        let Operation::Submit { prompt, same, left, priority, choices, salt, alone } = operation else { return };
        let longest = self.memory.len() * BLOCK;
        let prompt = (*prompt).min(longest - 1);
        let left = (*left).min(longest - prompt);
        // prompts share beginnings
        let tokens: Vec<u32> = (0..prompt).map(|i| if i < *same { i as u32 } else { 1000 + self.requests as u32 }).collect();
        let salt = salt.then(|| "s".to_string());
        let rank = Rank { priority: *priority, request: self.requests, choice: 0 };
        let chain = Chain::new(salt.as_deref(), &[]);
        let sequence = Sequence::new(rank, tokens, chain, Wish { salt, left, unborn: choices - 1 });
        self.scheduler.submit(if *alone { sequence.alone(5) } else { sequence });
        self.requests += 1;
        self.check();
    }

    fn abort(&mut self, request: u64) {
        let removed = self.scheduler.remove(|s| s.rank.request == request);
        assert!(removed.is_sorted_by_key(|s| s.rank) && removed.iter().all(|s| s.table().is_empty()));
        self.check();
    }

    /// Whether nobody lost a block and nobody has one that another writes to.
    fn check(&self) {
        let s = &self.scheduler;
        s.pool.check(s.running.iter().map(|r| r.table()));
        assert!(s.running.len() <= self.limits.sequences && s.running.is_sorted_by_key(|r| r.rank));
        let mut slots: Vec<u32> = s.running.iter().map(|r| r.slot).chain(s.slots.iter().copied()).collect();
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..self.limits.sequences as u32), "each slot is there once");
        for r in &s.running {
            assert!(r.table.len() * BLOCK >= r.computed && r.computed < r.tokens.len());
            for (i, id) in r.table.iter().enumerate() {
                assert!(s.pool.holders(*id) == 1 || (i + 1) * BLOCK <= r.computed, "only full blocks are shared");
                let rows = &self.memory[*id as usize];
                for (k, row) in rows.iter().enumerate().take(r.computed.saturating_sub(i * BLOCK).min(BLOCK)) {
                    let expected = (r.state.salt.clone(), r.tokens[..i * BLOCK + k + 1].to_vec());
                    assert_eq!(row.as_ref(), Some(&expected), "block {id} holds what it should");
                }
            }
        }
        assert!(s.waiting.values().all(|w| w.table.is_empty() && w.computed == 0));
    }

    /// One pass. Returns whether there was one.
    fn step(&mut self) -> bool {
        let waited: Vec<Rank> = self.scheduler.waiting.keys().copied().collect();
        let ran: Vec<Rank> = self.scheduler.running.iter().map(|s| s.rank).collect();
        let decoding = self.scheduler.running.iter().filter(|s| s.pending() == 1).count();
        let preemptions = self.scheduler.counts.preemptions;
        let any = self.scheduler.plan();
        self.check();
        let preempted = self.scheduler.counts.preemptions > preemptions;
        let best = self.scheduler.running.first().map(|s| (s.rank, s.planned > 0));
        for s in &self.scheduler.running {
            assert!(!waited.contains(&s.rank) || !preempted, "nobody begins while others give up their blocks");
            assert!(s.pending() > 1 || s.planned == 1 || decoding > self.limits.budget, "who lacks one token gets it");
            if !ran.contains(&s.rank) {
                assert!(self.scheduler.waiting.keys().all(|w| *w > s.rank), "those that wait begin in their order");
            }
        }
        assert_eq!(any, best.is_some(), "somebody runs if anybody is there");
        assert_eq!(best.is_some(), !(waited.is_empty() && ran.is_empty()));

        if self.drafts {
            for i in 0..self.scheduler.running.len() {
                let s = &self.scheduler.running[i];
                if s.planned == 1 && s.reaches_end() && s.state.left > 1 {
                    let (rank, mut tokens, most) = (s.rank, s.tokens.clone(), s.state.left - 1);
                    let right = self.random(4);
                    let count = self.random(20).min(most);
                    for k in 0..count {
                        tokens.push(if k < right { next(rank, &tokens) } else { 7 });
                    }
                    let draft = tokens.split_off(tokens.len() - count);
                    self.scheduler.add_draft(i, &draft);
                }
            }
            self.check();
        }
        let planned: usize = self.scheduler.running.iter().map(|s| s.planned).sum();
        assert!(planned <= self.limits.budget);

        // a pass reads all that is computed, and writes the rest; refused rows stay behind as rubbish
        for s in &self.scheduler.running {
            for at in s.computed..s.computed + s.planned {
                let row = Some((s.state.salt.clone(), s.tokens[..=at].to_vec()));
                self.memory[s.table[at / BLOCK] as usize][at % BLOCK] = row;
            }
        }
        let mut i = 0;
        while i < self.scheduler.running.len() {
            let s = &mut self.scheduler.running[i];
            s.take_fresh();
            if s.planned == 0 {
                i += 1;
                continue;
            }
            let mut chosen = vec![];
            let (known, computed) = (s.tokens.len() - s.draft, s.computed + s.planned - s.draft);
            let at_end = s.reaches_end();
            if at_end {
                let mut tokens = s.tokens[..known].to_vec();
                loop {
                    let token = next(s.rank, &tokens);
                    let right = s.tokens.get(tokens.len()) == Some(&token);
                    tokens.push(token);
                    if !right {
                        break;
                    }
                }
                chosen = tokens.split_off(known);
            }
            let prompted = s.computed < s.prompt && computed >= s.prompt;
            let accepted = chosen.len().saturating_sub(1);
            s.state.left = s.state.left.saturating_sub(chosen.len());
            let (left, unborn, salt, rank) = (s.state.left, std::mem::take(&mut s.state.unborn), s.state.salt.clone(), s.rank);
            self.scheduler.ran(i, computed + accepted, &chosen);
            if prompted && at_end && known == self.scheduler.running[i].prompt {
                for choice in 1..=unborn {
                    let rank = Rank { choice, ..rank };
                    let token = next(rank, &self.scheduler.running[i].tokens[..known]);
                    let wish = Wish { salt: salt.clone(), left, unborn: 0 };
                    if let Some(at) = self.scheduler.fork(i, choice, token, wish) {
                        assert!(at > i);
                        let [from, to] = self.scheduler.running.get_disjoint_mut([i, at]).unwrap();
                        if let (true, Some(a), Some(b)) = (!known.is_multiple_of(BLOCK), from.table.get(known / BLOCK), to.table.last()) {
                            self.memory[*b as usize] = self.memory[*a as usize].clone();
                        }
                    }
                }
            } else {
                self.scheduler.running[i].state.unborn = unborn;
            }
            i += 1;
        }
        self.check();
        for s in self.scheduler.remove(|s| s.state.left == 0 && s.tokens.len() > s.prompt) {
            self.ended.insert(s.rank, s.tokens);
        }
        self.check();
        let hits = self.scheduler.counts.prefix_hits;
        assert!(hits >= self.hits && hits <= self.scheduler.counts.prefix_queries);
        self.hits = hits;
        any
    }

    /// Runs until nobody is left; everybody has a bounded wait.
    fn drain(&mut self) {
        let tokens: usize =
            self.scheduler.waiting().chain(self.scheduler.running()).map(|s| (s.tokens.len() + s.state.left) * (1 + s.state.unborn)).sum();
        let mut steps = 0;
        while self.step() {
            steps += 1;
            // each pass ends a token of somebody's or gives a better one his blocks, who then runs to his end
            assert!(steps <= 50 + 20 * tokens, "somebody starves");
        }
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let submit = (1..90_usize, 0..70_usize, 1..40_usize, -1..2_i64, 1..4_usize, any::<bool>(), 0..5_usize).prop_map(
        |(prompt, same, left, priority, choices, salt, alone)| Operation::Submit {
            prompt,
            same,
            left,
            priority,
            choices,
            salt,
            alone: alone == 0,
        },
    );
    let one = prop_oneof![3 => submit, 1 => any::<usize>().prop_map(Operation::Abort), 4 => (1..12_usize).prop_map(Operation::Steps)];
    prop::collection::vec(one, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_block_is_lost_or_shared_wrongly_and_nobody_starves(
        operations in operations(),
        blocks in 1..14_u32,
        sequences in 1..6_usize,
        budget in prop_oneof![1..8_usize, 8..200_usize],
        prefix: bool,
        drafts: bool,
        abort_all: bool,
    ) {
        let limits = Limits { sequences, budget, prefix };
        let mut world = World::new(blocks, limits, drafts);
        let mut aborted = vec![];
        let mut wishes = vec![];
        for operation in &operations {
            match operation {
                Operation::Submit { choices, .. } => {
                    wishes.push(*choices);
                    world.submit(operation);
                }
                Operation::Abort(i) => {
                    let request = *i as u64 % (world.requests + 1);
                    aborted.push(request);
                    world.abort(request);
                }
                Operation::Steps(n) => (0..*n).for_each(|_| { world.step(); }),
            }
        }
        if abort_all {
            for request in (0..world.requests).rev() {
                world.abort(request);
            }
            prop_assert!(!world.step());
        } else {
            world.drain();
            for (request, choices) in wishes.iter().enumerate().filter(|(i, _)| !aborted.contains(&(*i as u64))) {
                let ended: Vec<_> = world.ended.iter().filter(|(rank, _)| rank.request == request as u64).collect();
                prop_assert_eq!(ended.len(), *choices, "request {}", request);
                for (rank, tokens) in ended {
                    let known = tokens.iter().position(|t| (100..1000).contains(t)).unwrap();
                    prop_assert!((known..tokens.len()).all(|i| tokens[i] == next(*rank, &tokens[..i])), "{:?}", tokens);
                }
            }
        }
        // as at the beginning
        prop_assert_eq!(world.scheduler.pool.free(), blocks as usize);
        prop_assert_eq!(world.scheduler.slots.len(), sequences);
        prop_assert!(world.scheduler.running.is_empty() && world.scheduler.waiting.is_empty());
    }
}

fn submission(prompt: usize, left: usize) -> Operation {
    Operation::Submit { prompt, same: prompt, left, priority: 0, choices: 1, salt: false, alone: false }
}

#[test]
fn a_long_prompt_delays_nobody_who_runs() {
    let mut world = World::new(1000, Limits { sequences: 8, budget: 32, prefix: true }, false);
    (0..4).for_each(|_| world.submit(&submission(3, 100)));
    (0..2).for_each(|_| assert!(world.step()));
    let lengths = |world: &World| world.scheduler.running.iter().take(4).map(|s| s.tokens.len()).collect::<Vec<_>>();
    let before = lengths(&world);
    // better than all of them, and longer than many passes
    world.submit(&Operation::Submit { prompt: 900, same: 0, left: 1, priority: -1, choices: 1, salt: false, alone: false });
    for _ in 0..20 {
        world.step();
    }
    let after: Vec<usize> = world.scheduler.running.iter().skip(1).map(|s| s.tokens.len()).collect();
    assert!(before.iter().zip(&after).all(|(b, a)| a - b == 20), "{before:?} {after:?}");
    assert_eq!(world.scheduler.running[0].computed, 20 * 28, "the prompt gets what is left");
}

#[test]
fn what_was_computed_is_found_again() {
    let mut world = World::new(64, Limits { sequences: 4, budget: 512, prefix: true }, false);
    world.submit(&submission(40, 5));
    world.drain();
    // the whole prompt is known, but its last block has to run for its logits
    world.submit(&submission(32, 1));
    world.drain();
    assert_eq!((world.scheduler.counts.prefix_queries, world.hits), (72, 16));
    world.submit(&submission(33, 1));
    world.drain();
    assert_eq!(world.hits, 16 + 32);
    let salted = Operation::Submit { prompt: 40, same: 40, left: 1, priority: 0, choices: 1, salt: true, alone: false };
    world.submit(&salted);
    world.drain();
    assert_eq!(world.hits, 48, "another salt");
    let alone = Operation::Submit { prompt: 40, same: 40, left: 1, priority: 0, choices: 1, salt: false, alone: true };
    world.submit(&alone);
    world.drain();
    assert_eq!((world.hits, world.scheduler.counts.prefix_queries), (48, 72 + 33 + 40));
}

#[test]
fn the_worst_gives_way_and_comes_back_first() {
    let mut world = World::new(7, Limits { sequences: 4, budget: 512, prefix: false }, false);
    let of = |priority, left| Operation::Submit { prompt: 20, same: 0, left, priority, choices: 1, salt: false, alone: false };
    (0..3).for_each(|_| world.submit(&of(0, 30)));
    world.submit(&of(1, 30));
    while world.scheduler.counts.preemptions == 0 {
        assert!(world.step());
    }
    let waiting: Vec<u64> = world.scheduler.waiting().map(|s| s.rank.request).collect();
    assert_eq!(waiting, [2, 3], "the third was the last of those that ran, and comes before the fourth");
    world.drain();
    assert_eq!(world.ended.len(), 4);
}

#[test]
fn choices_share_their_prompt() {
    let mut world = World::new(20, Limits { sequences: 4, budget: 512, prefix: false }, false);
    world.submit(&Operation::Submit { prompt: 40, same: 0, left: 5, priority: 0, choices: 4, salt: false, alone: false });
    world.step();
    let s = &world.scheduler;
    assert_eq!((s.running.len(), s.pool.len() - s.pool.free()), (4, 3 + 3), "two blocks for all, and one for each");
    world.drain();
    assert_eq!(world.ended.len(), 4);
}
