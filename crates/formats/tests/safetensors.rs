//! Our safetensors reader and writer against the reference implementation, both ways.

mod common;

use billfish_formats::{FormatError, Header, SafetensorsWriter, Source, TensorSpec};
use billfish_tensor::DType;
use common::{Temp, fixture, holds};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

const TYPES: [(DType, Dtype); 12] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F64, Dtype::F64),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::I16, Dtype::I16),
    (DType::I8, Dtype::I8),
    (DType::U8, Dtype::U8),
    (DType::U32, Dtype::U32),
    (DType::F8E4M3, Dtype::F8_E4M3),
    (DType::Bool, Dtype::BOOL),
];

/// Tensors of distinct names with their bytes.
fn tensors() -> impl Strategy<Value = Vec<(String, usize, Vec<usize>, Vec<u8>)>> {
    let one = ("[a-z\"\\\\é.]{1,12}", 0..TYPES.len(), prop::collection::vec(0usize..5, 0..4), any::<u8>());
    prop::collection::vec(one, 0..8).prop_map(|list| {
        let mut names = std::collections::BTreeSet::new();
        let fresh = list.into_iter().filter(|(name, ..)| names.insert(name.clone())).collect::<Vec<_>>();
        let fill = |(name, t, shape, seed): (String, usize, Vec<usize>, u8)| {
            let size = shape.iter().product::<usize>() * TYPES[t].0.size();
            let bytes = (0..size).map(|i| seed.wrapping_add(i as u8)).collect();
            (name, t, shape, bytes)
        };
        fresh.into_iter().map(fill).collect()
    })
}

fn written(tensors: &[(String, usize, Vec<usize>, Vec<u8>)], piece: usize) -> Vec<u8> {
    let dir = Temp::new();
    let path = dir.0.join("t.safetensors");
    let specs: Vec<TensorSpec> = tensors.iter().map(|(n, t, s, _)| (n.clone(), TYPES[*t].0, s.clone())).collect();
    let mut writer = SafetensorsWriter::create(&path, &specs).unwrap();
    for (name, .., bytes) in tensors {
        bytes.chunks(piece).for_each(|c| writer.write(name, c).unwrap());
    }
    assert!(!path.exists(), "the file appears whole or not at all");
    writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "no temporary file is left");
    std::fs::read(&path).unwrap()
}

proptest! {
    #[test]
    fn we_read_what_the_reference_writes(tensors in tensors()) {
        let views: Vec<(String, TensorView<'_>)> = tensors
            .iter()
            .map(|(n, t, s, b)| (n.clone(), TensorView::new(TYPES[*t].1, s.clone(), b).unwrap()))
            .collect();
        let source = Source::from_bytes("t", serialize(views, None).unwrap());
        let header = Header::read(&source).unwrap();
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for (name, t, shape, bytes) in &tensors {
            let info = &header.tensors[name];
            prop_assert_eq!((info.dtype, &info.shape, info.bytes), (TYPES[*t].0, shape, bytes.len()));
            let mut found = vec![0; info.bytes];
            source.read_at(info.offset, &mut found).unwrap();
            prop_assert_eq!(&found, bytes);
        }
    }

    #[test]
    fn the_reference_reads_what_we_write(tensors in tensors(), piece in 1usize..40) {
        let file = written(&tensors, piece);
        let read = SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(read.len(), tensors.len());
        for (name, t, shape, bytes) in &tensors {
            let view = read.tensor(name).unwrap();
            prop_assert_eq!((view.dtype(), view.shape(), view.data()), (TYPES[*t].1, shape.as_slice(), bytes.as_slice()));
        }
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        prop_assert_eq!(header % 8, 0);
        let ours = Header::read(&Source::from_bytes("t", file)).unwrap();
        prop_assert_eq!(ours.metadata.get("format").map(String::as_str), Some("pt"));
    }

    /// Whatever is done to a header, we never accept a file that the reference refuses.
    #[test]
    fn we_are_no_laxer(tensors in tensors(), flips in prop::collection::vec((0usize..400, any::<u8>()), 1..4)) {
        let mut file = written(&tensors, 64);
        for (at, value) in flips {
            let at = at % file.len();
            file[at] = value;
        }
        if Header::read(&Source::from_bytes("t", file.clone())).is_ok() {
            prop_assert!(SafeTensors::deserialize(&file).is_ok());
        }
    }
}

#[test]
fn fixtures_read_alike() {
    let bytes = std::fs::read(fixture("llama-dynamic/model.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let header = Header::read(&Source::open(&fixture("llama-dynamic/model.safetensors")).unwrap()).unwrap();
    assert_eq!(header.tensors.len(), reference.len());
    for (name, info) in &header.tensors {
        let view = reference.tensor(name).unwrap();
        let start = info.offset as usize;
        assert_eq!((view.shape(), view.data()), (info.shape.as_slice(), &bytes[start..start + info.bytes]));
    }
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    (name.into(), DType::U8, shape.to_vec())
}

#[test]
fn the_writer_refuses_what_the_header_does_not_say() {
    let dir = Temp::new();
    let path = dir.0.join("t.safetensors");
    let error = |e: Result<(), FormatError>| e.unwrap_err().to_string();
    let mut w = SafetensorsWriter::create(&path, &[spec("empty", &[0]), spec("a", &[2]), spec("b", &[1])]).unwrap();
    holds(&error(w.write("b", &[1])), &["tensor `b`", "bytes of `a`, in the order of the header"]);
    holds(&error(w.write("a", &[1, 2, 3])), &["tensor `a`", "2 bytes, found 3 bytes"]);
    w.write("a", &[1, 2]).unwrap();
    holds(&error(w.finish()), &["tensor `b`", "1 bytes, found 0 bytes"]);
    let mut w = SafetensorsWriter::create(&path, &[]).unwrap();
    holds(&error(w.write("a", &[1])), &["no more bytes"]);
    drop(w);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0, "abandoned files are removed");
    let twice = SafetensorsWriter::create(&path, &[spec("a", &[1]), spec("a", &[1])]).map(drop);
    holds(&error(twice), &["a name that no other tensor has"]);
    let huge = SafetensorsWriter::create(&path, &[spec("a", &[usize::MAX, 2])]).map(drop);
    holds(&error(huge), &["a size that fits in 64 bits"]);
    let nowhere = SafetensorsWriter::create(&dir.0.join("no/t.safetensors"), &[]).map(drop);
    holds(&error(nowhere), &["no/.t.safetensors"]);
}
