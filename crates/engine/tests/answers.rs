//! What the fields of a submission do, on the built-in model.

mod common;
mod heard;

use billfish_engine::{
    Constraint, Engine, EngineError, EngineOptions, FinishReason, Ngram, RequestId, SamplingParams, StopCause, Submission, TokenLogprob,
};
use billfish_formats::Checkpoint;
use billfish_models::{Logits, Model, ModelError, Scratch};
use billfish_text::Tokenizer;
use common::{load, open};
use heard::{All, Heard, Told, run, step};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct World {
    model: Model,
    tokenizer: Tokenizer,
}

impl World {
    fn new() -> Self {
        let (model, tokenizer) = open();
        World { model, tokenizer }
    }

    fn engine(&self, options: EngineOptions) -> Engine<&Model> {
        let options = EngineOptions { kv_cache_memory: 64 << 20, ..options };
        Engine::new(&self.model, Arc::new(self.tokenizer.clone()), options).unwrap()
    }

    fn prompt(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode_prompt(text).unwrap()
    }

    fn once(&self) -> Submission {
        let sampling = SamplingParams { temperature: 0.8, seed: 3, ..SamplingParams::default() };
        Submission::new(self.prompt("Once upon a time"), sampling, 30)
    }

    fn heard(&self, s: Submission) -> Heard {
        let mut engine = self.engine(EngineOptions::default());
        let id = engine.submit(s).unwrap();
        let mut all = All::new();
        run(&mut engine, &mut all);
        all.remove(&id).unwrap()
    }

    fn told(&self, s: Submission) -> Told {
        let mut heard = self.heard(s);
        assert!(heard.failed.is_none(), "{:?}", heard.failed);
        heard.choices.remove(&0).unwrap()
    }
}

fn ending(told: &Told) -> (FinishReason, Option<StopCause>) {
    told.end.clone().unwrap()
}

#[test]
fn stops_by_texts_and_tokens() {
    let world = World::new();
    let free = world.told(world.once());
    assert_eq!((free.tokens.len(), ending(&free)), (30, (FinishReason::Length, None)));
    let stop: String = free.text.chars().skip(free.text.chars().count() / 2).take(5).collect();
    let before = &free.text[..free.text.find(&stop).unwrap()];
    let cause = (FinishReason::Stop, Some(StopCause::Text(stop.clone())));
    let told = world.told(Submission { stop: vec![stop.clone()], ..world.once() });
    assert_eq!((told.text.as_str(), ending(&told)), (before, cause.clone()));
    let told = world.told(Submission { stop: vec![stop.clone()], include_stop: true, ..world.once() });
    assert_eq!((told.text.as_str(), ending(&told)), (format!("{before}{stop}").as_str(), cause));

    let token = free.tokens[9];
    let at = free.tokens.iter().position(|t| *t == token).unwrap();
    let told = world.told(Submission { stop_token_ids: vec![token, 1 << 30], ..world.once() });
    let text = |tokens: &[u32]| {
        let all = [world.once().prompt, tokens.to_vec()].concat();
        world.tokenizer.decode(&all, true).unwrap()["Once upon a time".len()..].to_string()
    };
    assert_eq!((&told.tokens[..], ending(&told)), (&free.tokens[..=at], (FinishReason::Stop, Some(StopCause::Token(token)))));
    assert_eq!(told.text, text(&free.tokens[..at]), "the token is no text");
    let told = world.told(Submission { stop_token_ids: vec![token], include_stop: true, ..world.once() });
    assert_eq!(told.text, text(&free.tokens[..=at]), "unless it is asked for");
}

#[test]
fn no_stop_before_the_least_number_of_tokens() {
    let world = World::new();
    let free = world.told(world.once());
    let stop: String = free.text.chars().skip(2).take(3).collect();
    let early = world.told(Submission { stop: vec![stop.clone()], ..world.once() });
    let late = world.told(Submission { stop: vec![stop.clone()], min_tokens: 20, ..world.once() });
    assert!(early.tokens.len() < 20 && late.tokens.len() >= 20 && late.text.contains(&stop));
    assert_eq!(late.tokens[..20], free.tokens[..20], "what is chosen stays the same");
    // a token that would end it is not chosen at all before
    let token = free.tokens[9];
    let told = world.told(Submission { stop_token_ids: vec![token], min_tokens: 15, ..world.once() });
    assert!(!told.tokens[..15].contains(&token) && told.tokens.len() >= 15);
    let at = free.tokens.iter().position(|t| *t == token).unwrap();
    assert_eq!(told.tokens[..at], free.tokens[..at]);
}

#[test]
fn ends_of_sequence() {
    let world = World::new();
    let eos = world.tokenizer.eos_ids()[0];
    // the only token that may be chosen
    let sampling = SamplingParams { allowed_tokens: Some(vec![eos]), ..SamplingParams::greedy() };
    let ends = || Submission { sampling: sampling.clone(), ..world.once() };
    let told = world.told(ends());
    assert_eq!((&told.tokens[..], told.text.as_str()), (&[eos][..], ""));
    assert_eq!(ending(&told), (FinishReason::Stop, Some(StopCause::Token(eos))));
    let told = world.told(Submission { ignore_eos: true, ..ends() });
    assert_eq!((ending(&told).0, told.tokens, told.text), (FinishReason::Length, vec![eos; 30], String::new()));
    let shown = world.told(Submission { ignore_eos: true, skip_special_tokens: false, max_tokens: 2, ..ends() });
    assert_eq!(shown.text, world.tokenizer.token(eos).unwrap().repeat(2));
    assert!(
        matches!(world.heard(Submission { min_tokens: 1, ..ends() }).failed, Some(EngineError::Sampling(_))),
        "nothing is left to choose"
    );
}

#[test]
fn choices_have_random_numbers_of_their_own() {
    let world = World::new();
    let mut heard = world.heard(Submission { n: 4, ..world.once() });
    let told: Vec<Told> = (0..4).map(|i| heard.choices.remove(&i).unwrap()).collect();
    assert!(heard.choices.is_empty());
    assert_eq!(told[0], world.told(world.once()), "the first is the seed's");
    for i in 1..4 {
        assert!(told[..i].iter().all(|t| t.tokens != told[i].tokens), "choice {i} is another");
    }
    // the same again, one at a time
    let mut engine = world.engine(EngineOptions { max_num_seqs: 1, max_num_batched_tokens: 3, ..EngineOptions::default() });
    let id = engine.submit(Submission { n: 4, ..world.once() }).unwrap();
    assert_eq!(engine.stats().waiting, 4);
    let mut all = All::new();
    run(&mut engine, &mut all);
    assert!(all[&id].choices.values().eq(&told));
    // choices of which nothing is wanted
    let heard = world.heard(Submission { n: 3, max_tokens: 0, ..world.once() });
    assert!(heard.prompt.is_some() && heard.choices.len() == 3);
    assert!(heard.choices.values().all(|t| t.tokens.is_empty() && ending(t) == (FinishReason::Length, None)));
}

/// The logarithms of all probabilities, and the ids in their order.
fn plain(logits: &[f32]) -> (Vec<f64>, Vec<u32>) {
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    (logits.iter().map(|l| f64::from(*l) - sum.ln()).collect(), order)
}

fn agrees(told: &TokenLogprob, token: u32, logits: &[f32], top: usize) {
    let (all, order) = plain(logits);
    let near = |a: f32, id: u32| assert!((f64::from(a) - all[id as usize]).abs() < 1e-5, "{a} {}", all[id as usize]);
    assert_eq!((told.token, order[told.rank - 1]), (token, token));
    near(told.logprob, token);
    assert!(told.top.iter().map(|t| t.0).eq(order[..top].iter().copied()));
    told.top.iter().for_each(|t| near(t.1, t.0));
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let world = World::new();
    let prompt: Vec<u32> = world.prompt("Once upon a time there was a little dog who liked to run in the park. ").repeat(3);
    let sampling =
        SamplingParams { temperature: 0.5, top_k: 3, repetition_penalty: 1.5, logit_bias: vec![(7, 5.0)], ..SamplingParams::default() };
    let s = Submission { logprobs: Some(4), prompt_logprobs: Some(2), ..Submission::new(prompt.clone(), sampling, 12) };
    let heard = world.heard(s);
    let told = &heard.choices[&0];
    let tokens = [prompt.clone(), told.tokens.clone()].concat();
    let mut scratch = Scratch::default();
    let all = world.model.forward(&mut world.model.new_cache(0), &tokens, Logits::All, &mut scratch).unwrap();
    let rows: Vec<&[f32]> = all.chunks_exact(world.model.config().vocab_size).collect();
    let of_prompt = heard.prompt.as_ref().unwrap().1.as_ref().unwrap();
    assert_eq!((of_prompt.len(), &of_prompt[0], told.logprobs.len()), (prompt.len(), &None, 12));
    for (i, l) in of_prompt.iter().enumerate().skip(1) {
        agrees(l.as_ref().unwrap(), prompt[i], rows[i - 1], 2);
    }
    for (i, l) in told.logprobs.iter().enumerate() {
        agrees(l, told.tokens[i], rows[prompt.len() + i - 1], 4);
    }
    let chosen = world.told(Submission { logprobs: Some(0), ..world.once() });
    assert!(chosen.logprobs.len() == 30 && chosen.logprobs.iter().all(|l| l.top.is_empty()));
    // of a prompt alone
    let heard =
        world.heard(Submission { prompt_logprobs: Some(0), max_tokens: 0, ..Submission::new(prompt.clone(), SamplingParams::greedy(), 0) });
    assert_eq!(heard.prompt.unwrap().1.unwrap().len(), prompt.len());
}

/// Lets tokens come in rising order only, until one is above a limit.
struct Rising {
    last: u32,
    limit: u32,
}

impl Constraint for Rising {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Rising { ..*self })
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        logits[..=self.last as usize].fill(f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        if token % 1000 == 999 {
            return Err("it is the last of a thousand".into());
        }
        self.last = token;
        Ok(token > self.limit)
    }
}

#[test]
fn constraints_choose_and_end() {
    let world = World::new();
    let rising = |limit| Submission { constraint: Some(Box::new(Rising { last: 100, limit })), n: 3, ..world.once() };
    let heard = world.heard(rising(3000));
    assert_eq!(heard.choices.len(), 3);
    for told in heard.choices.values() {
        assert!(told.tokens.is_sorted() && told.tokens[0] > 100, "{:?}", told.tokens);
        let last = *told.tokens.last().unwrap();
        assert!(last > 3000 && told.tokens[..told.tokens.len() - 1].iter().all(|t| *t <= 3000));
        assert_eq!(ending(told), (FinishReason::Stop, None));
    }
    let sampling = SamplingParams { allowed_tokens: Some(vec![999]), ..SamplingParams::greedy() };
    let failed = world.heard(Submission { sampling, ..rising(3000) }).failed.unwrap();
    assert!(failed.to_string().contains("the last of a thousand"), "{failed}");
}

#[test]
fn bias_and_allowed_tokens() {
    let world = World::new();
    let with = |sampling: SamplingParams| world.told(Submission { sampling, ignore_eos: true, ..world.once() });
    let greedy = with(SamplingParams::greedy());
    let banned = greedy.tokens[0];
    let told = with(SamplingParams { logit_bias: vec![(banned, -100.0)], ..SamplingParams::greedy() });
    assert!(!told.tokens.contains(&banned));
    assert_eq!(with(SamplingParams { logit_bias: vec![(77, 100.0)], ..SamplingParams::greedy() }).tokens, [77; 30]);
    let told = with(SamplingParams { allowed_tokens: Some(vec![50, 60, 70]), ..world.once().sampling });
    assert!(told.tokens.iter().all(|t| [50, 60, 70].contains(t)));
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let world = World::new();
    let mut engine = world.engine(EngineOptions { max_model_len: Some(40), max_num_seqs: 2, max_waiting: 1, ..EngineOptions::default() });
    let s = |prompt: usize| Submission::new(vec![5; prompt], SamplingParams::greedy(), 100);
    let refuse = |engine: &mut Engine<&Model>, s: Submission| engine.submit(s).unwrap_err();
    assert!(matches!(refuse(&mut engine, s(0)), EngineError::EmptyPrompt));
    assert!(matches!(refuse(&mut engine, s(40)), EngineError::TooLong { tokens: 40, max_model_len: 40 }));
    assert!(matches!(refuse(&mut engine, Submission { n: 0, ..s(3) }), EngineError::Parameter { name: "n", .. }));
    assert!(matches!(
        refuse(&mut engine, Submission { prompt: vec![5000], ..s(1) }),
        EngineError::Model(ModelError::Token { token: 5000, .. })
    ));
    assert!(matches!(refuse(&mut engine, Submission { stop: vec![String::new()], ..s(1) }), EngineError::Text(_)));
    for sampling in [
        SamplingParams { top_p: 2.0, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(5000, 1.0)], ..SamplingParams::default() },
        SamplingParams { allowed_tokens: Some(vec![5000]), ..SamplingParams::default() },
    ] {
        assert!(matches!(refuse(&mut engine, Submission { sampling, ..s(1) }), EngineError::Sampling(_)));
    }
    assert!(matches!(refuse(&mut engine, Submission { n: 4, ..s(3) }), EngineError::QueueFull { waiting: 0, most: 1 }));
    let ids: Vec<RequestId> = (0..3).map(|_| engine.submit(s(30)).unwrap()).collect();
    assert!(matches!(refuse(&mut engine, s(3)), EngineError::QueueFull { waiting: 3, most: 1 }));
    let mut all = All::new();
    run(&mut engine, &mut all);
    for id in ids {
        assert_eq!(
            (all[&id].choices[&0].tokens.len(), ending(&all[&id].choices[&0]).0),
            (10, FinishReason::Length),
            "what the longest sequence leaves"
        );
    }
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens, stats.finished.length), (90, 30, 3));

    let wrong = |options: EngineOptions| Engine::new(&world.model, Arc::new(world.tokenizer.clone()), options).err().unwrap().to_string();
    assert!(wrong(EngineOptions { kv_cache_memory: 10, ..EngineOptions::default() }).contains("kv-cache-memory"));
    assert!(wrong(EngineOptions { kv_cache_memory: u64::MAX, ..EngineOptions::default() }).contains("kv-cache-memory"));
    assert!(wrong(EngineOptions { max_num_seqs: 0, ..EngineOptions::default() }).contains("max-num-seqs"));
    assert!(wrong(EngineOptions { max_num_batched_tokens: 0, ..EngineOptions::default() }).contains("max-num-batched-tokens"));
    assert!(wrong(EngineOptions { max_model_len: Some(1 << 40), ..EngineOptions::default() }).contains("max-model-len"));
}

#[test]
fn aborts_and_deadlines_free_everything_at_once() {
    let world = World::new();
    let mut engine =
        world.engine(EngineOptions { max_num_seqs: 3, max_num_batched_tokens: 8, prefix_caching: false, ..EngineOptions::default() });
    let long = |n| Submission { n, ignore_eos: true, max_tokens: 200, ..world.once() };
    let first = engine.submit(long(2)).unwrap();
    let second = engine.submit(long(3)).unwrap();
    let third = engine.submit(Submission { deadline: Some(Instant::now()), ..long(2) }).unwrap();
    let mut all = All::new();
    (0..9).for_each(|_| assert!(step(&mut engine, &mut all)));
    assert_eq!(all[&third].choices.len(), 2);
    assert!(all[&third].choices.values().all(|t| ending(t) == (FinishReason::Deadline, None)));
    let used = engine.stats().blocks_used;
    assert!(used > 0 && engine.stats().running == 3);
    engine.abort(first);
    engine.abort(first);
    engine.abort(RequestId(99));
    assert!(engine.stats().blocks_used < used);
    assert!(step(&mut engine, &mut all));
    assert_eq!(all[&first].choices.len(), 2);
    assert!(all[&first].choices.values().all(|t| ending(t) == (FinishReason::Cancelled, None) && t.text.starts_with(',')), "{all:?}");
    engine.abort(second);
    run(&mut engine, &mut all);
    assert!(all[&second].choices.len() == 3 && all[&second].choices.values().all(|t| ending(t).0 == FinishReason::Cancelled));
    let stats = engine.stats();
    assert_eq!((stats.finished.cancelled, stats.finished.deadline, stats.blocks_used, stats.blocks_cached), (5, 2, 0, 0));
    // a deadline in the middle keeps what there is
    let id =
        engine.submit(Submission { deadline: Some(Instant::now() + Duration::from_millis(50)), max_tokens: 100_000, ..long(1) }).unwrap();
    run(&mut engine, &mut all);
    assert_eq!(ending(&all[&id].choices[&0]).0, FinishReason::Deadline);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama-w4-sym-g128");
    let files = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap());
    let files: Vec<(&'static str, &'static [u8])> = files
        .map(|f| {
            let mut bytes = std::fs::read(f.path()).unwrap();
            let name = f.file_name().into_string().unwrap();
            if name.ends_with(".safetensors") {
                spoil(&mut bytes, 9);
            }
            (&*name.leak(), &*bytes.leak())
        })
        .collect();
    let (model, tokenizer) = load(&Checkpoint::from_memory("spoilt", &files).unwrap());
    let options = EngineOptions { kv_cache_memory: 1 << 20, max_model_len: Some(64), ..EngineOptions::default() };
    let mut engine = Engine::new(&model, Arc::new(tokenizer), options).unwrap();
    let good = || Submission {
        ignore_eos: true,
        ..Submission::new(vec![20, 30, 40], SamplingParams { logit_bias: vec![(9, -100.0)], ..SamplingParams::greedy() }, 12)
    };
    let mut all = All::new();
    let alone = engine.submit(good()).unwrap();
    run(&mut engine, &mut all);
    let ids: Vec<RequestId> =
        [good(), Submission { prompt: vec![20, 9], n: 2, ..good() }, good()].map(|s| engine.submit(s).unwrap()).into();
    // one that becomes bad on its way, and takes its other choice along
    let sampling = SamplingParams { logit_bias: vec![(9, 100.0)], ..SamplingParams::greedy() };
    let late = engine.submit(Submission { sampling, n: 2, ..good() }).unwrap();
    run(&mut engine, &mut all);
    for id in [ids[0], ids[2]] {
        assert!(all[&id].failed.is_none() && all[&id].choices == all[&alone].choices);
    }
    assert!(
        matches!(all[&ids[1]].failed, Some(EngineError::Model(ModelError::NotANumber { position: 1 }))) && all[&ids[1]].choices.is_empty()
    );
    assert!(matches!(all[&late].failed, Some(EngineError::Model(ModelError::NotANumber { position: 3 }))));
    assert!(all[&late].choices.values().all(|t| t.tokens == [9] && t.end.is_none()));
    assert_eq!((engine.stats().finished.failed, engine.stats().finished.length), (4, 3));
}

/// Overwrites the row that a token becomes with numbers that are none.
fn spoil(file: &mut [u8], token: usize) {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&file[8..8 + header]).unwrap();
    let entry = &text[text.find("\"model.embed_tokens.weight\"").unwrap()..];
    let numbers = |key: &str| -> Vec<usize> {
        let from = entry.find(key).unwrap();
        let list = &entry[from + entry[from..].find('[').unwrap() + 1..];
        list[..list.find(']').unwrap()].split(',').map(|n| n.trim().parse().unwrap()).collect()
    };
    let (shape, offsets) = (numbers("\"shape\""), numbers("\"data_offsets\""));
    let row = (offsets[1] - offsets[0]) / shape[0];
    // all bits set are no number in every type of floats
    file[8 + header + offsets[0] + token * row..][..row].fill(0xff);
}

#[test]
fn drafts_save_passes_and_are_given_up_where_they_do_not() {
    let world = World::new();
    let run_with = |sampling: &SamplingParams, speculation: Option<Ngram>| {
        let mut engine = world.engine(EngineOptions { speculation, ..EngineOptions::default() });
        let prompt = world.prompt(&"The cat sat on the mat. The dog sat on the log. ".repeat(4));
        let s = Submission { ignore_eos: true, logprobs: Some(1), ..Submission::new(prompt, sampling.clone(), 300) };
        let id = engine.submit(s).unwrap();
        let mut all = All::new();
        run(&mut engine, &mut all);
        (all.remove(&id).unwrap().choices, engine.stats())
    };
    // what repeats itself is drafted well, greedy or not
    for sampling in [SamplingParams::greedy(), SamplingParams { temperature: 0.3, seed: 1, ..SamplingParams::default() }] {
        let (plain, without) = run_with(&sampling, None);
        let (drafted, with) = run_with(&sampling, Some(Ngram::default()));
        assert_eq!(plain, drafted);
        assert!(with.steps + with.accepted_tokens == without.steps && with.accepted_tokens > 0, "{with:?}");
        assert!(with.draft_tokens >= with.accepted_tokens && with.drafts * 5 >= with.draft_tokens, "{with:?}");
        assert_eq!((with.tokens_run - with.draft_tokens + with.accepted_tokens, without.drafts), (without.tokens_run, 0));
    }
    // random tokens are drafted badly
    let allowed_tokens = Some((50..90).collect());
    let sampling = SamplingParams { temperature: 20.0, allowed_tokens, seed: 1, ..SamplingParams::default() };
    let (plain, _) = run_with(&sampling, None);
    let (drafted, with) = run_with(&sampling, Some(Ngram { most: 8, min: 1, max: 1 }));
    assert_eq!(plain, drafted);
    assert!(with.drafts == 64 && with.accepted_tokens * 5 < with.draft_tokens, "{with:?}");
}
