//! Perplexity against figures and logits that other programs computed.

mod common;

use billfish_kernels::{Activations, KvType};
use billfish_models::LoadOptions;
use billfish_quantize::{Perplexity, Protocol, perplexity, surprises};
use billfish_text::{Tokenizer, TokenizerFiles};
use common::{all_logits, expected, fixture, load, load_with, root, surprise};

const TINY: &str = "llama-w4-sym-g128";

fn run(model: &billfish_models::Model, ids: &[u32], bos: Option<u32>, protocol: Protocol) -> Perplexity {
    let mut last = (0, 0);
    let result = perplexity(model, ids, bos, protocol, &mut |done, total| {
        assert!(done >= last.0 && done <= total, "{done} of {total} after {last:?}");
        last = (done, total);
    })
    .unwrap();
    let used = (ids.len() / protocol.window() * protocol.window()) as u64;
    assert_eq!(last, (used, used));
    assert_eq!(result.tokens, protocol.predictions(ids.len()));
    result
}

fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / b
}

/// The text of `quality.json` and how it is cut.
fn quality_text(json: &serde_json::Value) -> (Vec<u32>, Protocol) {
    let dir = root().join("crates/billfish/assets/tales-6m-w4-sym-g128");
    let tokenizer_json = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let tokenizer =
        Tokenizer::from_parts(TokenizerFiles { name: "tales", tokenizer_json: &tokenizer_json, ..TokenizerFiles::default() }).unwrap();
    let protocol: Protocol = json["protocol"]["name"].as_str().unwrap().parse().unwrap();
    let text = std::fs::read_to_string(fixture(json["text"]["file"].as_str().unwrap())).unwrap();
    let mut ids = tokenizer.encode(&text, protocol.adds_special()).unwrap();
    ids.truncate(json["text"]["first_tokens"].as_u64().unwrap() as usize);
    (ids, protocol)
}

/// The whole protocol of `quality.json`: its model, its text, its 19,890 predictions.
#[test]
fn published_quality_figures() {
    let dir = root().join("crates/billfish/assets/tales-6m-w4-sym-g128");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture("quality.json")).unwrap()).unwrap();
    let figures = json["models"].as_array().unwrap().iter().find(|m| m["model"] == "tales-6m-w4-sym-g128").unwrap();
    let number = |key: &str| figures[key].as_f64().unwrap();

    let (ids, protocol) = quality_text(&json);
    for (activations, tolerance) in [(Activations::Strict, 1e-5), (Activations::Exact, 2e-4)] {
        let start = std::time::Instant::now();
        let found = run(&load(&dir, activations), &ids, None, protocol);
        println!("{activations:?} {found:?} in {:?}, off by {:.1e}", start.elapsed(), relative(found.ppl, number("ppl")));
        assert_eq!(found.tokens as f64, number("tokens"));
        assert!(relative(found.ppl, number("ppl")) <= tolerance, "{found:?}");
        assert!(relative(found.ppl_se, number("ppl_se")) <= 1e-3, "{found:?}");
    }
}

/// What the formats of the cache cost, against keys and values in half precision.
#[test]
fn quantized_caches_cost_little() {
    let dir = root().join("crates/billfish/assets/tales-6m-w4-sym-g128");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture("quality.json")).unwrap()).unwrap();
    let (ids, protocol) = quality_text(&json);
    let ppl = |kind: KvType| {
        let model = load_with(&dir, LoadOptions { kv_type: Some(kind), ..LoadOptions::default() });
        run(&model, &ids, None, protocol).ppl
    };
    let half = ppl(KvType::F16);
    for kind in KvType::ALL.into_iter().filter(|k| k.is_quantized()) {
        let off = ppl(kind) / half - 1.0;
        println!("{kind:?}: {:+.4} %", 100.0 * off);
        // what was asked for of 8 bits; those with a bit less of mantissa, and of 4 bits, cost what their errors are larger
        let tolerance = match kind {
            KvType::Int8 => 1e-3,
            KvType::Fp8E4M3 => 5e-3,
            KvType::Fp8E5M2 => 1e-2,
            _ => 5e-2,
        };
        assert!(off != 0.0 && off.abs() <= tolerance, "{kind:?}: off by {off}");
    }
}

/// Windows of the fixture's prompt, scored from logits that another program computed.
#[test]
fn windows_against_another_programs_logits() {
    let (ids, logits) = expected(TINY);
    let rows: Vec<&[f32]> = logits.chunks_exact(logits.len() / ids.len()).collect();
    let model = load(&fixture(TINY), Activations::Strict);
    // a row depends on what is before it only, so the logits of the prompt are also those of its beginning
    for window in [2, 3, 23, 40, ids.len()] {
        let losses: Vec<f64> = (1..window).map(|i| surprise(rows[i - 1], ids[i])).collect();
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let found = run(&model, &ids[..window], None, Protocol::Window(window));
        assert_eq!(found.tokens, window - 1);
        assert!(relative(found.ppl, mean.exp()) < 1e-4, "{found:?} {}", mean.exp());
        if window > 2 {
            let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0);
            assert!(relative(found.ppl_se, mean.exp() * (variance / n).sqrt()) < 1e-3, "{found:?}");
        } else {
            assert!(found.ppl_se.is_nan());
        }
    }
}

/// Which logits count, by a whole forward pass over each window.
fn by_hand(model: &billfish_models::Model, windows: &[Vec<u32>], first: usize) -> f64 {
    let mut losses = vec![];
    for ids in windows {
        let logits = all_logits(model, ids);
        let vocab = logits.len() / ids.len();
        losses.extend((first..ids.len()).map(|i| surprise(&logits[(i - 1) * vocab..i * vocab], ids[i])));
    }
    (losses.iter().sum::<f64>() / losses.len() as f64).exp()
}

fn long_text(len: usize) -> Vec<u32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 16) % 300
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn every_protocol_scores_its_own_tokens() {
    let model = load(&fixture(TINY), Activations::Strict);
    let ids = long_text(2048 + 300);
    let cut = |window: usize, bos: Option<u32>| -> Vec<Vec<u32>> {
        let mut windows: Vec<Vec<u32>> = ids.chunks_exact(window).map(<[u32]>::to_vec).collect();
        windows.iter_mut().for_each(|w| w[0] = bos.unwrap_or(w[0]));
        windows
    };
    for (protocol, bos, windows, first, tokens) in [
        (Protocol::LlamaCpp512, Some(0), cut(512, Some(0)), 257, 4 * 255),
        (Protocol::LlamaCpp512, None, cut(512, None), 257, 4 * 255),
        (Protocol::Gptq2048, Some(0), cut(2048, None), 1, 2047),
        (Protocol::Window(300), Some(0), cut(300, None), 1, 7 * 299),
        (Protocol::Window(129), None, cut(129, None), 1, 18 * 128),
    ] {
        let found = run(&model, &ids, bos, protocol);
        let expected = by_hand(&model, &windows, first);
        assert_eq!(found.tokens, tokens, "{protocol}");
        assert!(relative(found.ppl, expected) < 1e-12, "{protocol} {bos:?}: {found:?}, expected {expected}");
    }
    // the begin token matters, or the first two cases would prove nothing
    assert_ne!(run(&model, &ids, Some(0), Protocol::LlamaCpp512).ppl, run(&model, &ids, None, Protocol::LlamaCpp512).ppl);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = load(&fixture(TINY), Activations::Exact);
    let refuse = |ids: &[u32], bos, protocol| perplexity(&model, ids, bos, protocol, &mut |_, _| ()).unwrap_err().to_string();
    let short = refuse(&long_text(511), None, Protocol::LlamaCpp512);
    assert!(short.contains("512") && short.contains("511") && short.contains("window:N"), "{short}");
    assert!(refuse(&[], None, Protocol::Window(2)).contains("the text has 0"));
    for n in [0, 1] {
        assert!(refuse(&[1, 2], None, Protocol::Window(n)).contains("at least 2"));
    }
    assert!(refuse(&[1, 2, 999, 4], None, Protocol::Window(4)).contains("999"));
}

/// Each surprise from another program's logits, and the same numbers as a perplexity of one window.
#[test]
fn surprises_of_single_tokens() {
    let (ids, logits) = expected(TINY);
    let vocab = logits.len() / ids.len();
    let model = load(&fixture(TINY), Activations::Strict);
    let found = surprises(&model, &ids).unwrap();
    assert_eq!(found.len(), ids.len() - 1);
    for (i, found) in found.iter().enumerate() {
        let want = surprise(&logits[i * vocab..(i + 1) * vocab], ids[i + 1]);
        assert!((found - want).abs() <= 1e-4, "token {i}: {found} against {want}");
    }
    assert!(surprises(&model, &ids[..1]).unwrap().is_empty() && surprises(&model, &[]).unwrap().is_empty());
}
