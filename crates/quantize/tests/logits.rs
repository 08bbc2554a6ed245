//! Logits in files against those that another program computed.

mod common;

use billfish_kernels::Activations;
use billfish_quantize::eval_logits;
use common::{expected, fixture, floats, fresh, load};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

const TINY: &str = "llama-w4-sym-g128";

fn write(path: &Path, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    std::fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
}

#[test]
fn logits_do_not_depend_on_the_chunk_and_match() {
    let (ids, logits) = expected(TINY);
    let model = load(&fixture(TINY), Activations::Strict);
    let i64s: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let i32s: Vec<u8> = ids.iter().flat_map(|&id| (id as i32).to_le_bytes()).collect();
    let n = ids.len();
    let input = fresh("ids.safetensors");
    let output = fresh("logits.safetensors");
    let mut first: Option<Vec<u8>> = None;
    for (dtype, bytes) in [(Dtype::I64, &i64s), (Dtype::I32, &i32s)] {
        for shape in [&[n][..], &[1, n]] {
            write(&input, "input_ids", dtype, shape, bytes);
            for chunk in [1, 7, n, 1000] {
                let mut heard = vec![];
                let report = eval_logits(&model, &input, &output, chunk, &mut |done, total| heard.push((done, total))).unwrap();
                assert_eq!((report.tokens, report.vocab_size), (n, 320));
                assert_eq!(heard.len(), n.div_ceil(chunk));
                assert_eq!(heard.last(), Some(&(n as u64, n as u64)));
                let bytes = std::fs::read(&output).unwrap();
                assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes, "{dtype:?} {shape:?} chunks of {chunk}");
            }
        }
    }
    let bytes = std::fs::read(&output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!((file.names(), file.tensor("logits").unwrap().shape()), (vec!["logits"], &[n, 320][..]));
    let found = floats(&file, "logits");
    let worst = found.iter().zip(&logits).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst < 1e-4, "{worst}");

    // files with other tensors beside the ids are inputs, too
    let whole = fixture("expected").join(format!("{TINY}.safetensors"));
    eval_logits(&model, &whole, &output, 16, &mut |_, _| ()).unwrap();
    assert_eq!(std::fs::read(&output).unwrap(), bytes);
}

#[test]
fn what_cannot_be_run_is_refused_and_leaves_no_file() {
    let model = load(&fixture(TINY), Activations::Exact);
    let input = fresh("bad-ids.safetensors");
    let output = fresh("no-logits.safetensors");
    let long = |v: &[i64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let ids = |v: &[i64]| ("input_ids", Dtype::I64, vec![v.len()], long(v));
    for ((name, dtype, shape, bytes), chunk, words) in [
        (("ids", Dtype::I64, vec![1], long(&[1])), 1, ["input_ids", "none of that name"]),
        (("input_ids", Dtype::F32, vec![2], long(&[1])), 1, ["I64 or I32", "F32"]),
        (("input_ids", Dtype::I64, vec![2, 1], long(&[1, 2])), 1, ["[1, T]", "[2, 1]"]),
        (("input_ids", Dtype::I64, vec![], long(&[1])), 1, ["[T]", "[]"]),
        (("input_ids", Dtype::I64, vec![0], vec![]), 1, ["at least one", "[0]"]),
        (ids(&[1, -1]), 1, ["0 to 319", "-1 at [1]"]),
        (ids(&[320]), 1, ["0 to 319", "320 at [0]"]),
        (ids(&[1 << 40]), 1, ["0 to 319", "1099511627776"]),
        (ids(&[1]), 0, ["chunk", "at least 1"]),
    ] {
        write(&input, name, dtype, &shape, &bytes);
        let message = eval_logits(&model, &input, &output, chunk, &mut |_, _| ()).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
        assert!(!output.exists());
    }
    std::fs::remove_file(&input).unwrap();
    assert!(eval_logits(&model, &input, &output, 1, &mut |_, _| ()).is_err());
}
