//! Which blocks of the cache are free, who holds the others, and what a later prompt may find in them. Numbers only: the
//! keys and values lie elsewhere.

use crate::prefix::Digest;
use billfish_models::BLOCK;
use std::collections::HashMap;

/// The end of the list of free blocks.
const NONE: u32 = u32::MAX;

/// What the tokens of a full block, and all before them, are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub digest: Digest,
    /// Compared on a hit.
    pub tokens: [u32; BLOCK],
}

#[derive(Clone, Debug)]
struct Block {
    /// How many tables hold it; it is in the list of free blocks if none does.
    holders: u32,
    /// Neighbours in the list of free blocks.
    before: u32,
    after: u32,
    /// Only of a full block. A free block keeps its name until it is taken for something else.
    name: Option<Name>,
}

/// The blocks. Those without a name are taken first, then those that were free for longest.
#[derive(Clone, Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Ends of the list of free blocks: taken from the first.
    first: u32,
    last: u32,
    free: usize,
    named: HashMap<Digest, u32>,
}

impl BlockPool {
    /// Blocks 0 to `blocks`, all free.
    pub fn new(blocks: u32) -> Self {
        let empty = Block { holders: 0, before: NONE, after: NONE, name: None };
        let mut pool = BlockPool {
            blocks: vec![empty; blocks as usize],
            first: NONE,
            last: NONE,
            free: 0,
            named: HashMap::with_capacity(blocks as usize),
        };
        (0..blocks).for_each(|id| pool.append(id));
        pool
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many nobody holds.
    pub fn free(&self) -> usize {
        self.free
    }

    /// How many have a name.
    pub fn named(&self) -> usize {
        self.named.len()
    }

    /// Whether somebody holds it.
    pub fn is_held(&self, id: u32) -> bool {
        self.blocks[id as usize].holders > 0
    }

    /// Takes a free block, which loses its name.
    pub fn take(&mut self) -> Option<u32> {
        let id = self.first;
        if id == NONE {
            return None;
        }
        if let Some(name) = self.blocks[id as usize].name.take() {
            self.named.remove(&name.digest);
        }
        self.hold(id);
        Some(id)
    }

    /// Holds a block once more.
    pub fn hold(&mut self, id: u32) {
        if self.blocks[id as usize].holders == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].holders += 1;
    }

    /// Gives up the blocks of a table, the last one first, so that the end of a text is forgotten before its beginning.
    pub fn release(&mut self, table: &[u32]) {
        for &id in table.iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.holders -= 1;
            if block.holders == 0 {
                if block.name.is_some() { self.append(id) } else { self.prepend(id) }
            }
        }
    }

    /// Names a full block, unless another one has the name already.
    pub fn name(&mut self, id: u32, name: Name) {
        if self.blocks[id as usize].name.is_none() && !self.named.contains_key(&name.digest) {
            self.named.insert(name.digest, id);
            self.blocks[id as usize].name = Some(name);
        }
    }

    /// The block of a name.
    pub fn find(&self, name: &Name) -> Option<u32> {
        let id = *self.named.get(&name.digest)?;
        (self.blocks[id as usize].name.as_ref() == Some(name)).then_some(id)
    }

    fn append(&mut self, id: u32) {
        self.link(self.last, id, NONE);
    }

    fn prepend(&mut self, id: u32) {
        self.link(NONE, id, self.first);
    }

    /// Puts a block into the list of free ones between two others.
    fn link(&mut self, before: u32, id: u32, after: u32) {
        *self.after_mut(before) = id;
        *self.before_mut(after) = id;
        let block = &mut self.blocks[id as usize];
        (block.before, block.after) = (before, after);
        self.free += 1;
    }

    /// Takes a block out of the list of free ones.
    fn unlink(&mut self, id: u32) {
        let Block { before, after, .. } = self.blocks[id as usize];
        *self.after_mut(before) = after;
        *self.before_mut(after) = before;
        self.free -= 1;
    }

    /// What follows a block in the list, or the beginning of the list.
    fn after_mut(&mut self, id: u32) -> &mut u32 {
        if id == NONE { &mut self.first } else { &mut self.blocks[id as usize].after }
    }

    /// What precedes a block in the list, or the end of the list.
    fn before_mut(&mut self, id: u32) -> &mut u32 {
        if id == NONE { &mut self.last } else { &mut self.blocks[id as usize].before }
    }
}

#[cfg(test)]
impl BlockPool {
    /// The free blocks in the order in which they are taken.
    pub fn free_list(&self) -> Vec<u32> {
        let mut list = vec![];
        let (mut at, mut before) = (self.first, NONE);
        while at != NONE {
            assert_eq!(self.blocks[at as usize].before, before, "the list is linked both ways");
            list.push(at);
            (before, at) = (at, self.blocks[at as usize].after);
        }
        assert_eq!((self.last, self.free), (before, list.len()));
        list
    }

    /// How many tables hold a block.
    pub fn holders(&self, id: u32) -> u32 {
        self.blocks[id as usize].holders
    }

    /// Checks what always holds, given the tables of all who hold blocks.
    pub fn check<'t>(&self, tables: impl Iterator<Item = &'t [u32]>) {
        let mut holders = vec![0; self.len()];
        tables.flatten().for_each(|id| holders[*id as usize] += 1);
        let free = self.free_list();
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.holders, holders[id], "block {id} is held as often as it is in a table");
            assert_eq!(block.holders == 0, free.contains(&(id as u32)), "block {id} is free if nobody holds it");
            if let Some(name) = &block.name {
                assert_eq!(self.named.get(&name.digest), Some(&(id as u32)), "block {id} is found by its name");
            }
        }
        assert_eq!(self.named.len(), self.blocks.iter().filter(|b| b.name.is_some()).count());
    }
}

#[cfg(test)]
mod tests;
