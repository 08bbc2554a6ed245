//! Who runs in the next pass, with how many tokens, in which blocks.
//!
//! There are no phases. A sequence has tokens, and a number of them have been computed; a pass computes some more. Whoever
//! lacks one token gets it first, then prompts take what is left of the budget in the order of their ranks, then those who
//! wait begin. Where blocks run out, the last by rank gives up all of its own and waits to be computed again.

use crate::blocks::BlockPool;
use crate::prefix::Chain;
use billfish_models::BLOCK;
use std::collections::BTreeMap;

/// Who goes first: the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub priority: i64,
    /// Number of the request, in the order in which they came.
    pub request: u64,
    pub choice: usize,
}

/// One choice of a request.
pub(crate) struct Sequence<T> {
    pub rank: Rank,
    /// The prompt and what was generated; while a pass is made up, its draft as well.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// What the engine knows of it.
    pub state: T,
    chain: Chain,
    /// Whether it may begin with blocks of others.
    reads_prefix: bool,
    /// Tokens of it that a pass runs at most.
    most: usize,
    table: Vec<u32>,
    slot: u32,
    computed: usize,
    planned: usize,
    draft: usize,
    /// Full blocks that were offered to later prompts.
    named: usize,
    /// Whether it has begun since the last pass.
    fresh: bool,
    /// The pass in which it ran last.
    last_run: u64,
    /// Tokens that came from the prefix cache when it first began.
    cached: Option<usize>,
}

impl<T> Sequence<T> {
    /// A sequence that is nowhere yet.
    pub fn new(rank: Rank, prompt: Vec<u32>, chain: Chain, state: T) -> Self {
        Sequence {
            rank,
            prompt: prompt.len(),
            tokens: prompt,
            state,
            chain,
            reads_prefix: true,
            most: usize::MAX,
            table: vec![],
            slot: 0,
            computed: 0,
            planned: 0,
            draft: 0,
            named: 0,
            fresh: false,
            last_run: 0,
            cached: None,
        }
    }

    /// All of its tokens are computed here, and no more than `most` in a pass.
    pub fn alone(mut self, most: usize) -> Self {
        (self.reads_prefix, self.most) = (false, most);
        self
    }

    /// Tokens whose keys and values are in its blocks.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Its blocks.
    pub fn table(&self) -> &[u32] {
        &self.table
    }

    /// A number that no other sequence that runs has, below the number of those that run at once.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Tokens of the next pass, the draft included.
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Tokens of the draft at their end.
    pub fn draft(&self) -> usize {
        self.draft
    }

    /// Whether the next pass leads to a token that is not known yet.
    pub fn reaches_end(&self) -> bool {
        self.computed + self.planned == self.tokens.len()
    }

    /// Whether it has begun, or begun again, since this was asked last.
    pub fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    /// Tokens that came from the prefix cache when it first began.
    pub fn cached(&self) -> usize {
        self.cached.unwrap_or(0)
    }

    /// Known tokens that are not computed.
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Blocks that it lacks for `tokens` tokens in all.
    fn lacks(&self, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK).saturating_sub(self.table.len())
    }
}

/// Limits that never change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences that run at once.
    pub sequences: usize,
    /// Tokens of a pass.
    pub budget: usize,
    /// Whether later prompts may begin with the blocks of earlier ones.
    pub prefix: bool,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub preemptions: u64,
    /// Tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens that were found.
    pub prefix_hits: u64,
}

/// Keeps the sequences. All blocks that are held are held by those that run.
pub(crate) struct Scheduler<T> {
    pool: BlockPool,
    limits: Limits,
    /// In the order of their ranks.
    running: Vec<Sequence<T>>,
    waiting: BTreeMap<Rank, Sequence<T>>,
    /// Slots that nobody has.
    slots: Vec<u32>,
    /// What the next pass has left of its budget.
    left: usize,
    passes: u64,
    counts: Counts,
    /// Who lacks one token.
    decoding: Vec<usize>,
}

impl<T> Scheduler<T> {
    /// Without sequences, over blocks 0 to `blocks`.
    pub fn new(blocks: u32, limits: Limits) -> Self {
        let slots = (0..limits.sequences as u32).rev().collect();
        let pool = BlockPool::new(blocks);
        let (running, waiting, decoding) = (vec![], BTreeMap::new(), vec![]);
        Scheduler { pool, limits, running, waiting, slots, left: 0, passes: 0, counts: Counts::default(), decoding }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// What happened since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Those that run.
    pub fn running(&self) -> &[Sequence<T>] {
        &self.running
    }

    /// Those that run.
    pub fn running_mut(&mut self) -> &mut [Sequence<T>] {
        &mut self.running
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence<T>> {
        self.waiting.values()
    }

    /// Lets a sequence wait. Alone, it must fit into the pool up to its last token.
    pub fn submit(&mut self, sequence: Sequence<T>) {
        self.waiting.insert(sequence.rank, sequence);
    }

    /// Makes up the next pass. Returns whether there is one.
    pub fn plan(&mut self) -> bool {
        self.passes += 1;
        self.share();
        let mut enough = true;
        while !self.find_blocks() {
            // the budget of those who gave way is for the others
            enough = false;
            self.share();
        }
        if enough {
            self.begin();
        }
        self.running.iter().any(|s| s.planned > 0)
    }

    /// Divides the budget among those that run.
    fn share(&mut self) {
        let Scheduler { running, decoding, .. } = self;
        let mut left = self.limits.budget;
        decoding.clear();
        for (i, s) in running.iter_mut().enumerate() {
            s.planned = 0;
            if s.pending() == 1 {
                decoding.push(i);
            }
        }
        // where there are more than a pass can take, those come first that have not run for longest
        decoding.sort_unstable_by_key(|&i| (running[i].last_run, i));
        for &i in decoding.iter().take(left) {
            running[i].planned = 1;
        }
        left -= decoding.len().min(left);
        for s in running.iter_mut().filter(|s| s.pending() > 1) {
            s.planned = s.pending().min(s.most).min(left);
            left -= s.planned;
        }
        self.left = left;
    }

    /// Takes blocks for those that run, in the order of their ranks; the last ones give up theirs if need be. Returns whether
    /// nobody had to.
    fn find_blocks(&mut self) -> bool {
        let before = self.counts.preemptions;
        let mut i = 0;
        while i < self.running.len() {
            let s = &self.running[i];
            let lacks = if s.planned > 0 { s.lacks(s.computed + s.planned) } else { 0 };
            if lacks <= self.pool.free() {
                self.running[i].table.extend((0..lacks).filter_map(|_| self.pool.take()));
                i += 1;
            } else if let Some(last) = self.running.pop() {
                self.counts.preemptions += 1;
                let last = self.clear(last);
                self.waiting.insert(last.rank, last);
            }
        }
        self.counts.preemptions == before
    }

    /// Takes everything from a sequence that ran.
    fn clear(&mut self, mut s: Sequence<T>) -> Sequence<T> {
        self.pool.release(&s.table);
        s.table.clear();
        s.tokens.truncate(s.tokens.len() - s.draft);
        (s.computed, s.planned, s.draft, s.named, s.fresh) = (0, 0, 0, 0, false);
        self.slots.push(s.slot);
        s
    }

    /// Lets those begin that wait, as long as there is room for the first of them.
    fn begin(&mut self) {
        // room for those that run to grow
        let reserve = self.pool.len().div_ceil(100);
        while self.left > 0
            && self.running.len() < self.limits.sequences
            && let Some(mut first) = self.waiting.first_entry()
        {
            let s = first.get_mut();
            let mut hits: Vec<u32> = vec![];
            let whole = (s.tokens.len() - 1) / BLOCK;
            let looks = self.limits.prefix && s.reads_prefix;
            if looks {
                hits.extend((0..whole).map_while(|i| self.pool.find(&s.chain.name(&s.tokens, i))));
            }
            let cached = hits.len() * BLOCK;
            let planned = (s.tokens.len() - cached).min(s.most).min(self.left);
            let lacks = (cached + planned).div_ceil(BLOCK) - hits.len();
            let free_hits = hits.iter().filter(|id| !self.pool.is_held(**id)).count();
            let keep = if self.running.is_empty() { 0 } else { reserve };
            let (Some(slot), true) = (self.slots.last(), lacks + free_hits + keep <= self.pool.free()) else { return };
            let mut s = first.remove();
            s.slot = *slot;
            self.slots.pop();
            hits.iter().for_each(|id| self.pool.hold(*id));
            s.named = hits.len();
            s.table = hits;
            s.table.extend((0..lacks).filter_map(|_| self.pool.take()));
            (s.computed, s.planned, s.fresh) = (cached, planned, true);
            if looks && s.cached.is_none() {
                self.counts.prefix_queries += s.prompt as u64;
                self.counts.prefix_hits += cached as u64;
            }
            s.cached.get_or_insert(cached);
            self.left -= planned;
            let at = self.running.partition_point(|r| r.rank < s.rank);
            self.running.insert(at, s);
        }
    }

    /// Tokens that drafts may still add to the next pass.
    pub fn room_for_drafts(&self) -> usize {
        self.left
    }

    /// Adds a draft to the part of the next pass of the one at `index` that runs, or as much of it as there is room for.
    pub fn add_draft(&mut self, index: usize, draft: &[u32]) {
        let s = &mut self.running[index];
        let room = (s.table.len() + self.pool.free()) * BLOCK - s.computed - s.planned;
        let n = draft.len().min(self.left).min(room);
        let lacks = s.lacks(s.computed + s.planned + n);
        s.table.extend((0..lacks).filter_map(|_| self.pool.take()));
        s.tokens.extend_from_slice(&draft[..n]);
        s.planned += n;
        s.draft = n;
        self.left -= n;
    }

    /// Takes note that the part of the one at `index` ran: its blocks now hold `computed` tokens, and after what was known
    /// without the draft come the tokens `chosen`.
    pub fn ran(&mut self, index: usize, computed: usize, chosen: &[u32]) {
        let s = &mut self.running[index];
        s.tokens.truncate(s.tokens.len() - s.draft);
        s.tokens.extend_from_slice(chosen);
        (s.computed, s.planned, s.draft, s.last_run) = (computed, 0, 0, self.passes);
        while self.limits.prefix && (s.named + 1) * BLOCK <= s.computed {
            self.pool.name(s.table[s.named], s.chain.name(&s.tokens, s.named));
            s.named += 1;
        }
    }

    /// Adds another choice for the prompt of the one at `index`, of which just the prompt is computed. It shares the blocks
    /// of the prompt and has one of its own in place of one that is not full. Returns where it is among those that run:
    /// behind the other. Without room it waits.
    pub fn fork(&mut self, index: usize, choice: usize, token: u32, state: T) -> Option<usize> {
        let from = &self.running[index];
        let (prompt, rank) = (from.prompt, Rank { choice, ..from.rank });
        let mut tokens = from.tokens[..prompt].to_vec();
        tokens.push(token);
        let mut new = Sequence { tokens, prompt, cached: from.cached, ..Sequence::new(rank, vec![], from.chain.clone(), state) };
        let lacks = usize::from(!prompt.is_multiple_of(BLOCK));
        if self.pool.free() < lacks || self.slots.is_empty() {
            self.waiting.insert(rank, new);
            return None;
        }
        new.table.extend_from_slice(&from.table[..prompt / BLOCK]);
        new.table.iter().for_each(|id| self.pool.hold(*id));
        new.table.extend((0..lacks).filter_map(|_| self.pool.take()));
        new.slot = self.slots.pop()?;
        (new.computed, new.named, new.last_run) = (prompt, prompt / BLOCK, self.passes);
        let at = self.running.partition_point(|r| r.rank < rank);
        self.running.insert(at, new);
        Some(at)
    }

    /// Takes out those that `which` chooses, whether they run or wait.
    pub fn remove(&mut self, which: impl Fn(&Sequence<T>) -> bool) -> Vec<Sequence<T>> {
        let mut removed = vec![];
        for i in (0..self.running.len()).rev() {
            if which(&self.running[i]) {
                let s = self.running.remove(i);
                removed.push(self.clear(s));
            }
        }
        removed.extend(self.waiting.extract_if(.., |_, s| which(s)).map(|(_, s)| s));
        removed.sort_unstable_by_key(|s| s.rank);
        removed
    }
}

#[cfg(test)]
mod tests;
