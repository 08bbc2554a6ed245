//! A folder whose stacks of matrices, such as the experts of a layer in one tensor, are seen as matrices of their own.

use crate::error::DAMAGED;
use crate::{Checkpoint, FormatError, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Rows of one matrix of a stack, under a name of their own.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The name of the tensor to be.
    pub name: String,
    /// The tensor that it is part of, `[count, N, K]`.
    pub stack: String,
    /// Which matrix of the stack.
    pub index: usize,
    /// Its rows.
    pub rows: Range<usize>,
}

impl Checkpoint {
    /// The same folder seen with other tensors: each of `matrices` is one, `[rows, K]`, and the stacks that they are part of
    /// are none. No byte is copied, because the rows of a matrix lie side by side.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] if a stack is missing or has no such rows, if a name is taken, or if parts of a stack would
    /// not be seen.
    pub fn unstacked(&self, matrices: &[Matrix]) -> Result<Checkpoint, FormatError> {
        let mut tensors: BTreeMap<String, (usize, TensorInfo)> =
            self.places().map(|(name, shard, info)| (name.to_string(), (shard, info.clone()))).collect();
        let stacks: BTreeSet<&str> = matrices.iter().map(|m| m.stack.as_str()).collect();
        let mut found = BTreeMap::new();
        for stack in stacks {
            let Some(place) = tensors.remove(stack) else {
                return Err(FormatError::tensor(self.name(), stack, "a tensor", "none", DAMAGED));
            };
            found.insert(stack, (place, 0));
        }
        for m in matrices {
            let wrong = |expected: String, found: String| FormatError::tensor(self.name(), &m.stack, expected, found, DAMAGED);
            // every stack of the list is there
            let Some(((shard, info), seen)) = found.get_mut(m.stack.as_str()) else { continue };
            let &[count, n, k] = info.shape.as_slice() else {
                return Err(wrong("a stack of matrices".into(), format!("shape {:?}", info.shape)));
            };
            if m.index >= count || m.rows.start >= m.rows.end || m.rows.end > n {
                return Err(wrong(format!("rows {:?} of matrix {}", m.rows, m.index), format!("shape {:?}", info.shape)));
            }
            // inside the stack, whose size was checked against the file
            let row = k * info.dtype.size();
            let (first, bytes) = ((m.index * n + m.rows.start) * row, m.rows.len() * row);
            let part = TensorInfo { dtype: info.dtype, shape: vec![m.rows.len(), k], offset: info.offset + first as u64, bytes };
            *seen += bytes;
            if tensors.insert(m.name.clone(), (*shard, part)).is_some() {
                return Err(wrong(format!("no other tensor `{}`", m.name), "one".into()));
            }
        }
        for (stack, ((_, info), seen)) in found {
            if seen != info.bytes {
                let found = format!("shape {:?}, of which config.json names {seen} bytes of {}", info.shape, info.bytes);
                return Err(FormatError::tensor(self.name(), stack, "a stack that is used whole", found, DAMAGED));
            }
        }
        self.with_tensors(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn matrices_of_a_stack_are_tensors() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"s":{"dtype":"F16","shape":[2,3,2],"data_offsets":[4,28]}}"#;
        let data: Vec<u8> = (0..28).collect();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        let files = vec![("config.json".into(), Cow::Borrowed(&b"{}"[..])), ("model.safetensors".into(), Cow::Owned(file))];
        let folder = Checkpoint::from_files("m", files).unwrap();
        let matrix = |name: &str, index, rows| Matrix { name: name.into(), stack: "s".into(), index, rows };
        let all = [matrix("0.x", 0, 0..1), matrix("0.y", 0, 1..3), matrix("1.x", 1, 0..1), matrix("1.y", 1, 1..3)];
        let seen = folder.unstacked(&all).unwrap();
        assert_eq!(seen.tensor_names().collect::<Vec<_>>(), ["0.x", "0.y", "1.x", "1.y", "a"]);
        assert_eq!(seen.dense("1.y", &[2, 2]).unwrap().bytes(), &data[4 + 12 + 4..]);
        assert_eq!(seen.dense("0.x", &[1, 2]).unwrap().bytes(), &data[4..8]);
        assert_eq!(seen.total_bytes(), folder.total_bytes());
        let error = |matrices: &[Matrix]| folder.unstacked(matrices).unwrap_err().to_string();
        assert!(error(&all[..3]).contains("used whole"));
        assert!(error(&[matrix("0.x", 2, 0..1)]).contains("matrix 2"));
        assert!(error(&[matrix("0.x", 0, 2..4)]).contains("2..4"));
        assert!(error(&[Matrix { stack: "t".into(), ..matrix("x", 0, 0..1) }]).contains("`t`"));
        assert!(error(&[Matrix { stack: "a".into(), ..matrix("x", 0, 0..1) }]).contains("stack of matrices"));
        assert!(error(&[matrix("a", 0, 0..3), matrix("x", 1, 0..3)]).contains("no other tensor"));
    }
}
