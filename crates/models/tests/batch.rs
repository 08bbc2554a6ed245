//! Several sequences in one pass: every one gets the bits that it gets alone.

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa, KvType, shareable};
use billfish_models::{BLOCK, KvPool, KvTable, LoadOptions, Logits, Model, ModelError, Part, Scratch, Sequence};
use std::path::Path;
use std::sync::Arc;

fn load(name: &str, activations: Activations, threads: usize) -> Model {
    load_with(name, activations, threads, None)
}

fn load_with(name: &str, activations: Activations, threads: usize, kv_type: Option<KvType>) -> Model {
    let checkpoint = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)).unwrap();
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), threads).unwrap());
    let options = LoadOptions { activations, kv_type, ..LoadOptions::default() };
    Model::load(&checkpoint, backend, options, &mut |_| ()).unwrap()
}

/// Random numbers below a limit.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % limit as u64) as usize
    }
}

/// One sequence of a random plan.
struct Plan {
    sequence: Sequence,
    tokens: Vec<u32>,
    /// Its logits when it runs alone, all of them.
    alone: Vec<f32>,
}

/// Sequences whose blocks are anywhere in a pool.
fn sequences(model: &Model, count: usize, random: &mut Random, scratch: &mut Scratch) -> (KvPool, Vec<Plan>) {
    let mut pool = KvPool::new(model.kv_shape(), 6);
    let mut free = vec![];
    let plan = |slot: usize| {
        let length = 1 + random.below(100);
        let tokens: Vec<u32> = (0..length).map(|_| random.below(model.config().vocab_size) as u32).collect();
        let alone = model.forward(&mut model.new_cache(length), &tokens, Logits::All, scratch).unwrap().to_vec();
        // plans of different lengths: under the dynamic rule each has frequencies of its own
        let mut sequence = model.new_sequence(slot as u32, length);
        for _ in 0..length.div_ceil(BLOCK) {
            free.extend(pool.blocks() as u32..pool.blocks() as u32 + 3);
            pool.grow(pool.blocks() + 3);
            sequence.table_mut().push(free.swap_remove(random.below(free.len())));
        }
        Plan { sequence, tokens, alone }
    };
    let plans = (0..count).map(plan).collect();
    (pool, plans)
}

/// Runs all sequences to their ends in passes of random pieces, and compares what is asked for.
fn mixed(model: &Model, name: &str, random: &mut Random) {
    let vocabulary = model.config().vocab_size;
    let scratch = &mut Scratch::default();
    let (mut pool, mut all) = sequences(model, 6, random, scratch);
    let (mut passes, mut compared) = (0, 0);
    while all.iter().any(|s| s.sequence.len() < s.tokens.len()) {
        let mut wanted = vec![];
        let mut parts = vec![];
        for s in &mut all {
            let from = s.sequence.len();
            // a decode step, nothing, or a piece of a prompt
            let count = [1, 1, 0, 2 + random.below(40)][random.below(4)].min(s.tokens.len() - from);
            let want = [Logits::None, Logits::Last, Logits::All][random.below(3)];
            let rows = match want {
                Logits::None => 0,
                Logits::Last => count.min(1),
                Logits::All => count,
            };
            wanted.push(&s.alone[(from + count - rows) * vocabulary..(from + count) * vocabulary]);
            parts.push(Part { sequence: &mut s.sequence, tokens: &s.tokens[from..from + count], want });
        }
        let logits = model.forward_batch(&mut pool, &mut parts, scratch).unwrap();
        for (i, want) in wanted.iter().enumerate() {
            let found = logits.of(i).unwrap();
            assert_eq!(found.len(), want.len(), "{name}");
            assert!(found.iter().zip(*want).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: sequence {i} of pass {passes}");
            compared += want.len() / vocabulary;
        }
        passes += 1;
    }
    assert!(compared > 0 && passes > 2);
}

#[test]
fn every_sequence_is_as_if_alone() {
    let mut random = Random(7);
    for name in [
        "llama-w4-sym-g32-act",
        "llama-w3-asym-g32",
        "llama-w4-lmhead",
        "llama-ct-w8a8",
        "qwen3-w4-sym-g32-act",
        "qwen2-window-dense",
        "mistral-w4-asym-g32",
        "glm4-w4-sym-g32",
        "llama-rope-dynamic-dense",
        "mixtral-w4-sym-g32",
        "qwen2moe-w4-sym-g32",
        "qwen3moe-w8-sym-g32",
        "glm4moe-w4-sym-g32",
    ] {
        for activations in Activations::ALL {
            for threads in [1, 2] {
                mixed(&load(name, activations, threads), &format!("{name} {activations:?} {threads} threads"), &mut random);
            }
        }
    }
}

#[test]
fn every_sequence_is_as_if_alone_in_every_format() {
    let mut random = Random(11);
    for (i, kind) in KvType::ALL.into_iter().enumerate() {
        for name in ["llama-w4-sym-g32-act", "qwen2-window-dense", "glm4moe-w4-sym-g32"] {
            let model = load_with(name, Activations::ALL[i % 3], 1 + i % 2, Some(kind));
            mixed(&model, &format!("{name} {kind:?}"), &mut random);
        }
    }
}

/// A sequence that begins with another's blocks, and one that was forked from it, give the bits that they give alone.
#[test]
fn shared_blocks_change_nothing() {
    let scratch = &mut Scratch::default();
    let tokens: Vec<u32> = (0..90).map(|i| i * 7 % 100).collect();
    for kind in KvType::ALL {
        let model = load_with("llama-w4-sym-g32-act", Activations::Exact, 2, Some(kind));
        let mut alone = |tokens: &[u32]| model.forward(&mut model.new_cache(90), tokens, Logits::Last, scratch).unwrap().to_vec();
        for prompt in [17, 40, 64, 65] {
            let other: Vec<u32> = tokens[..prompt].iter().copied().chain([3, 1, 4]).collect();
            let want = [alone(&tokens[..prompt]), alone(&tokens[..prompt + 20]), alone(&other)];
            let mut pool = KvPool::with_blocks(model.kv_shape(), 24, 3).unwrap();
            let mut free = 0..23;
            let mut run = |pool: &mut KvPool, sequence: &mut Sequence, tokens: &[u32]| {
                while sequence.table().capacity() < sequence.len() + tokens.len() {
                    sequence.table_mut().push(free.next().unwrap());
                }
                let mut parts = [Part { sequence, tokens, want: Logits::Last }];
                model.forward_batch(pool, &mut parts, &mut Scratch::default()).unwrap().of(0).unwrap().to_vec()
            };
            let mut first = model.new_sequence(0, 90);
            assert_eq!(run(&mut pool, &mut first, &tokens[..prompt]), want[0], "{kind:?}");
            let shared = shareable(prompt);
            let mut second = model.new_sequence(1, 90);
            *second.table_mut() = KvTable::with_prefix(1, &first.table().blocks()[..shared / BLOCK]);
            assert_eq!((second.len(), second.frequencies()), (shared, first.frequencies()));
            assert_eq!(run(&mut pool, &mut second, &tokens[shared..prompt]), want[0], "{kind:?} {prompt}");
            let mut third = second.fork(2);
            if !prompt.is_multiple_of(BLOCK) {
                third.table_mut().push(23);
                pool.copy_tail(second.table(), third.table());
            }
            assert_eq!(run(&mut pool, &mut third, &other[prompt..]), want[2], "{kind:?} {prompt}");
            for sequence in [&mut second, &mut first] {
                assert_eq!(run(&mut pool, sequence, &tokens[prompt..prompt + 20]), want[1], "{kind:?} {prompt}");
            }
        }
    }
}

#[test]
fn no_parts_and_no_tokens_give_nothing() {
    for name in ["llama-w4-sym-g128", "glm4-w4-sym-g32"] {
        let model = load(name, Activations::Exact, 2);
        let scratch = &mut Scratch::default();
        model.forward_batch(&mut KvPool::new(model.kv_shape(), 6), &mut [], scratch).unwrap();
        let mut cache = model.new_cache(4);
        assert!(model.forward(&mut cache, &[], Logits::All, scratch).unwrap().is_empty() && cache.is_empty());
    }
}

#[test]
fn one_wrong_token_stops_the_pass_before_it_runs() {
    let model = load("llama-w4-sym-g128", Activations::Exact, 1);
    let mut pool = KvPool::with_blocks(model.kv_shape(), 2, 2).unwrap();
    let [mut a, mut b] = [0, 1].map(|slot| {
        let mut sequence = model.new_sequence(slot, 8);
        sequence.table_mut().push(slot);
        sequence
    });
    let scratch = &mut Scratch::default();
    model.forward_batch(&mut pool, &mut [Part { sequence: &mut b, tokens: &[1, 2], want: Logits::None }], scratch).unwrap();
    let mut parts =
        [Part { sequence: &mut a, tokens: &[3], want: Logits::Last }, Part { sequence: &mut b, tokens: &[4, 999], want: Logits::Last }];
    let error = model.forward_batch(&mut pool, &mut parts, scratch).err().unwrap();
    assert!(matches!(error, ModelError::Token { token: 999, position: 3, .. }), "{error}");
    assert_eq!((a.len(), b.len()), (0, 2));
}
