//! Whole folders: opened, and everything in them read in every way that there is.

use super::Run;
use crate::{BiasRule, Checkpoint, Explanation, FormatError, LinearWeight, TensorSpec, ZeroLabel, diff, explain, serially, verify, writer};
use billfish_tensor::{DType, QuantMatrix, oracle};
use std::borrow::Cow;

/// The line that starts a file in the input of [`checkpoint`]; the name follows, up to the end of the line.
const FILE: &[u8] = b"\n#file ";

/// A whole folder: each file starts with a line `#file NAME`, and its bytes follow.
pub(super) fn checkpoint(data: &[u8], run: &mut Run) {
    let mut files = vec![];
    let mut rest = data.strip_prefix(&FILE[1..]).unwrap_or_default();
    while !rest.is_empty() {
        let end = rest.windows(FILE.len()).position(|w| w == FILE);
        let (file, next) = end.map_or((rest, &[][..]), |e| (&rest[..e], &rest[e + FILE.len()..]));
        let line = file.iter().position(|&b| b == b'\n').unwrap_or(file.len());
        let name = String::from_utf8_lossy(&file[..line]).into_owned();
        files.push((name, file.get(line + 1..).unwrap_or_default().to_vec()));
        rest = next;
    }
    if let Some(folder) = run.value(open(files)) {
        read(folder, run);
    }
}

/// A folder in memory.
pub(super) fn open<N: Into<Cow<'static, str>>>(files: Vec<(N, Vec<u8>)>) -> Result<Checkpoint, FormatError> {
    Checkpoint::from_files("fuzz", files.into_iter().map(|(name, bytes)| (name.into(), Cow::Owned(bytes))).collect())
}

/// A safetensors file of these tensors.
pub(super) fn safetensors(tensors: &[(TensorSpec, Vec<u8>)]) -> Result<Vec<u8>, FormatError> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let (header, _) = writer::header("fuzz", &specs)?;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    tensors.iter().for_each(|(_, bytes)| file.extend(bytes));
    Ok(file)
}

/// A file with a quantized module `name` of 8 by 8 (4 bit, one group) and a dense one, `name` and a `d`, of 4 by 2.
pub(super) fn module(name: &str) -> Vec<u8> {
    let tensor = |part: &str, dtype, shape: &[usize], bytes: Vec<u8>| ((format!("{name}{part}"), dtype, shape.to_vec()), bytes);
    let tensors = [
        tensor(".qweight", DType::I32, &[1, 8], (0..32).collect()),
        tensor(".qzeros", DType::I32, &[1, 1], vec![0x77; 4]),
        tensor(".scales", DType::F16, &[1, 8], [0, 0x3c].repeat(8)),
        tensor("d.weight", DType::F32, &[2, 4], [0, 0, 0x80, 0x3f].repeat(8)),
    ];
    safetensors(&tensors).unwrap_or_default()
}

/// Reads every module and tensor, compares the folder with itself and explains places of each.
pub(super) fn read(folder: Checkpoint, run: &mut Run) {
    for module in folder.quantized_modules() {
        if let Some(report) = run.value(folder.describe(&module)) {
            run.note(format!("{:?} {} {}", report.zeros, report.format.name(), report.reason));
            let (k, n) = (report.in_features, report.out_features);
            match run.value(folder.linear(&module, k, n, BiasRule::Optional)) {
                Some(LinearWeight::Quantized(matrix)) => {
                    assert_eq!((matrix.in_features(), matrix.out_features()), (k, n), "a module has the size it is described with");
                    explained(&folder, &module, &matrix);
                }
                Some(LinearWeight::Dense { .. }) => unreachable!("a quantized module is read as one"),
                None => {}
            }
            run.value(folder.linear(&module, n, k, BiasRule::Absent));
        }
        run.value(folder.linear(&module, 64, 64, BiasRule::Required));
    }
    for name in folder.tensor_names() {
        let shape = folder.info(name).map(|i| i.shape.clone()).unwrap_or_default();
        run.value(folder.dense(name, &shape));
        if let Some(module) = name.strip_suffix(".weight") {
            let [k, n] = [1, 0].map(|axis| shape.get(axis).copied().unwrap_or(0));
            run.value(folder.linear(module, k, n, BiasRule::Optional));
        }
        for index in ["[]", "[0]", "[0, 0]", "[63, 63]"] {
            run.value(explain(&folder, &format!("{name}{index}")));
        }
    }
    if let Some(found) = run.value(diff(&folder, &folder, &serially, &mut |_, _| ())) {
        assert!(found.certificate.equal(), "a folder equals itself");
    }
    for warning in folder.warnings() {
        run.note(&warning.message);
        assert!(!warning.to_string().is_empty(), "a warning says something");
    }
    drop(folder.unread());
    for label in [ZeroLabel::V1, ZeroLabel::V2] {
        // the folder's files are in memory: opening them again is cheap
        let again = folder.store().names().and_then(|names| {
            let bytes = |name: String| Ok((name.clone(), folder.file(&name)?.unwrap_or_default()));
            open(names.into_iter().map(bytes).collect::<Result<_, FormatError>>()?)
        });
        let Some(forced) = run.value(again.and_then(|f| f.with_zeros(Some(label)))) else { continue };
        for module in forced.quantized_modules() {
            if let Some(report) = run.value(forced.describe(&module)) {
                run.value(forced.linear(&module, report.in_features, report.out_features, BiasRule::Optional));
            }
        }
        forced.warnings().iter().for_each(|w| run.note(&w.message));
    }
}

/// Each weight has one value, whoever is asked: the matrix, or `explain`, which finds the place in the file anew.
fn explained(folder: &Checkpoint, module: &str, matrix: &QuantMatrix) {
    let (k, n) = (matrix.in_features(), matrix.out_features());
    let values = oracle::dequantize(matrix);
    for (row, col) in [(0, 0), (k - 1, n - 1), (k / 2, n / 3)] {
        match explain(folder, &format!("{module}[{row}, {col}]")) {
            Ok(Explanation::Quantized(weight)) => {
                assert_eq!(weight.value, values[row * n + col], "{module}[{row}, {col}]");
                let code =
                    weight.code_bits.iter().fold(0, |code, b| code | (b.word >> b.offset & ((1u64 << b.width) - 1) as u32) << b.shift);
                assert!(weight.code_bits.is_empty() || code == u32::from(weight.code), "the code of {module}[{row}, {col}] is in its bits");
            }
            Ok(other) => panic!("{module} is quantized: {other:?}"),
            Err(e) => panic!("{module}[{row}, {col}] is there: {e}"),
        }
    }
}

/// Both folders hold the same weights.
pub(super) fn same(a: &Checkpoint, b: &Checkpoint) -> Result<bool, FormatError> {
    verify(a, b, &serially, &mut |_, _| ()).map(|certificate| certificate.equal())
}
