//! What a request gets depends on itself alone: the same tokens and the same bits of logprobs alone and among others, with
//! and without what the cache holds, however the steps are cut, whether it has to give way, and for any number of threads.

mod common;
mod heard;

use billfish_engine::{Engine, EngineOptions, Ngram, RequestId, SamplingParams, Submission};
use billfish_kernels::{Activations, Backend, Isa, KvType};
use billfish_models::{LoadOptions, Model};
use billfish_text::Tokenizer;
use common::{open, open_folder};
use heard::{All, Heard, run, step};
use std::sync::Arc;

/// One of seventeen requests: some share a beginning, some are longer than a step, some ask for logprobs or two choices.
fn submission(i: usize, vocab: u32) -> Submission {
    let length = [70, 3, 41, 130, 1, 60, 33, 16, 17, 48][i % 10];
    let prompt =
        (0..length as u32).map(|k| if k < 40 && i.is_multiple_of(2) { k * 7 } else { k * 97 + i as u32 * 31 } % (vocab - 5) + 3).collect();
    let sampling = SamplingParams {
        temperature: [0.9, 0.0, 0.7][i % 3],
        repetition_penalty: if i % 4 == 3 { 1.3 } else { 1.0 },
        frequency_penalty: if i % 5 == 1 { 0.4 } else { 0.0 },
        top_k: 50,
        seed: i as u64,
        ..SamplingParams::default()
    };
    Submission {
        n: 1 + i % 3 / 2,
        logprobs: i.is_multiple_of(2).then_some(3),
        prompt_logprobs: (i % 8 == 4).then_some(1),
        ignore_eos: i.is_multiple_of(2),
        priority: (i % 3) as i64,
        ..Submission::new(prompt, sampling, 10 + i)
    }
}

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
struct Way {
    threads: usize,
    budget: usize,
    prefix: bool,
    /// Blocks of the cache.
    blocks: usize,
    drafts: bool,
    /// The requests that come, twice.
    requests: (usize, usize),
}

const PLENTY: usize = 2000;
/// Less than two of the longest sequences.
const TINY: usize = 16;

/// Bytes of a cache of so many blocks.
fn room(model: &Model, blocks: usize, sequences: usize) -> u64 {
    (blocks * model.kv_shape().block_bytes() + sequences * model.kv_shape().slot_bytes()) as u64
}

fn go(model: &mut Model, tokenizer: &Tokenizer, load: LoadOptions, way: Way) -> (Vec<Heard>, billfish_engine::Stats) {
    model.reconfigure(Arc::new(Backend::new(Isa::choose(None).unwrap(), way.threads).unwrap()), load);
    let options = EngineOptions {
        kv_cache_memory: room(model, way.blocks, 20),
        max_num_seqs: 20,
        max_num_batched_tokens: way.budget,
        prefix_caching: way.prefix,
        speculation: way.drafts.then_some(Ngram { most: 4, min: 1, max: 3 }),
        max_model_len: Some(176),
        ..EngineOptions::default()
    };
    let vocab = model.config().vocab_size as u32;
    let mut engine = Engine::new(&*model, Arc::new(tokenizer.clone()), options).unwrap();
    let mut all = All::new();
    // again, when the cache holds what there is to hold
    for _ in 0..2 {
        let ids: Vec<RequestId> = (way.requests.0..way.requests.1).map(|i| engine.submit(submission(i, vocab)).unwrap()).collect();
        run(&mut engine, &mut all);
        assert!(ids.iter().all(|id| all[id].failed.is_none()));
    }
    let stats = engine.stats();
    (all.into_values().collect(), stats)
}

/// All that was told of a request but where its prompt came from, logprobs as bits.
fn essence(heard: &Heard) -> String {
    let bits = |l: &billfish_engine::TokenLogprob| {
        let top: Vec<(u32, u32)> = l.top.iter().map(|t| (t.0, t.1.to_bits())).collect();
        (l.token, l.logprob.to_bits(), l.rank, top)
    };
    let prompt = heard.prompt.as_ref().unwrap().1.as_ref();
    let prompt: Option<Vec<_>> = prompt.map(|all| all.iter().map(|l| l.as_ref().map(bits)).collect());
    let choices: Vec<_> =
        heard.choices.values().map(|t| (&t.tokens, &t.text, t.logprobs.iter().map(bits).collect::<Vec<_>>(), &t.end)).collect();
    format!("{prompt:?} {choices:?}")
}

fn check(model: &mut Model, tokenizer: &Tokenizer, load: LoadOptions, ways: &[Way]) {
    let alone: Vec<String> = (0..17)
        .map(|i| {
            let way = Way { threads: 1, budget: 512, prefix: false, blocks: PLENTY, drafts: false, requests: (i, i + 1) };
            let (heard, _) = go(model, tokenizer, load, way);
            assert_eq!(essence(&heard[0]), essence(&heard[1]));
            essence(&heard[0])
        })
        .collect();
    for way in ways {
        let (heard, stats) = go(model, tokenizer, load, *way);
        for (i, heard) in heard.iter().enumerate() {
            assert_eq!(essence(heard), alone[i % 17], "request {} of {way:?}, {load:?}", i % 17);
        }
        // a tiny cache may have forgotten everything
        assert!(if way.prefix { stats.prefix_hits > 0 || way.blocks == TINY } else { stats.prefix_hits == 0 }, "{way:?}");
        assert_eq!(stats.preemptions > 0, way.blocks == TINY, "{way:?}");
        assert_eq!(stats.drafts > 0, way.drafts, "{way:?}");
    }
}

const ALL: (usize, usize) = (0, 17);

#[test]
fn a_request_gets_what_it_gets_alone() {
    let (mut model, tokenizer) = open();
    let load = LoadOptions::default();
    let mut ways = vec![];
    for (threads, budget, prefix, blocks) in [
        (1, 16, false, PLENTY),
        (2, 512, false, PLENTY),
        (1, 512, true, TINY),
        (2, 16, true, PLENTY),
        (2, 16, false, TINY),
        (2, 512, true, PLENTY),
    ] {
        ways.push(Way { threads, budget, prefix, blocks, drafts: false, requests: ALL });
    }
    ways.push(Way { drafts: true, ..ways[0] });
    ways.push(Way { drafts: true, ..ways[2] });
    check(&mut model, &tokenizer, load, &ways);
    check(&mut model, &tokenizer, LoadOptions { activations: Activations::Int8, ..load }, &ways[2..5]);
}

#[test]
fn so_it_is_with_every_storage_of_keys_and_values() {
    let (mut model, tokenizer) = open_folder("fixtures/llama-w4-sym-g128");
    for kind in KvType::ALL {
        let load = LoadOptions { kv_type: Some(kind), ..LoadOptions::default() };
        let way = Way { threads: 1, budget: 512, prefix: true, blocks: PLENTY, drafts: true, requests: ALL };
        let ways = [way, Way { budget: 16, threads: 2, blocks: TINY, ..way }, Way { budget: 16, prefix: false, blocks: TINY, ..way }];
        check(&mut model, &tokenizer, load, &ways);
    }
}

#[test]
fn so_it_is_with_windows_experts_and_planned_lengths() {
    for folder in ["qwen2-window-dense", "llama-rope-dynamic-dense", "qwen3moe-w4-sym-g32"] {
        let (mut model, tokenizer) = open_folder(&format!("fixtures/{folder}"));
        let way = Way { threads: 2, budget: 16, prefix: true, blocks: TINY, drafts: true, requests: ALL };
        check(&mut model, &tokenizer, LoadOptions::default(), &[way, Way { budget: 512, blocks: PLENTY, ..way }]);
    }
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

#[test]
fn so_it_is_with_random_arrivals_and_aborts() {
    let (mut model, tokenizer) = open_folder("fixtures/llama-w4-sym-g128");
    for kind in [KvType::F16, KvType::Int8, KvType::Fp4E2M1] {
        random_arrivals(&mut model, &tokenizer, LoadOptions { kv_type: Some(kind), ..LoadOptions::default() });
    }
}

fn random_arrivals(model: &mut Model, tokenizer: &Tokenizer, load: LoadOptions) {
    let way = Way { threads: 1, budget: 512, prefix: false, blocks: PLENTY, drafts: false, requests: (0, 17) };
    let alone: Vec<Heard> = (0..17).map(|i| go(model, tokenizer, load, Way { requests: (i, i + 1), ..way }).0.remove(0)).collect();
    let vocab = model.config().vocab_size as u32;
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut preemptions = 0;
    for round in 0..8 {
        let max_num_seqs = 1 + random.below(8);
        let options = EngineOptions {
            kv_cache_memory: room(model, 11 + random.below(15), max_num_seqs),
            max_num_seqs,
            max_num_batched_tokens: 1 + random.below(64),
            prefix_caching: random.below(2) == 0,
            speculation: (random.below(2) == 0).then_some(Ngram { most: 1 + random.below(20), min: 1, max: 3 }),
            max_model_len: Some(176),
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(&*model, Arc::new(tokenizer.clone()), options.clone()).unwrap();
        let (mut all, mut asked, mut aborted) = (All::new(), vec![], vec![]);
        while asked.len() < 30 {
            match random.below(3) {
                0 => {
                    let i = random.below(17);
                    asked.push((engine.submit(submission(i, vocab)).unwrap(), i));
                }
                1 if !asked.is_empty() && random.below(4) == 0 => {
                    let (id, _) = asked[random.below(asked.len())];
                    engine.abort(id);
                    aborted.push(id);
                }
                _ => drop(step(&mut engine, &mut all)),
            }
        }
        run(&mut engine, &mut all);
        for (id, i) in asked {
            let heard = &all[&id];
            if !aborted.contains(&id) {
                assert_eq!(essence(heard), essence(&alone[i]), "request {i} in round {round}, {options:?}, {load:?}");
            }
            for (choice, told) in &heard.choices {
                assert!(alone[i].choices[choice].tokens.starts_with(&told.tokens), "request {i} in round {round}, {options:?}, {load:?}");
            }
        }
        preemptions += engine.stats().preemptions;
    }
    assert!(preemptions > 0);
}
