//! Linear modules read and packed, several at once, in bounded memory.

use crate::plan::Linear;
use crate::{ModelError, Progress};
use billfish_formats::{BiasRule, Checkpoint, FormatError, LinearRows, Rows};
use billfish_kernels::{DenseLayout, KernelError, PackedDense, PackedMatrix, Pool, Weight};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of modules as stored that are in memory at once beside the packed ones; a module larger than that is alone.
const IN_FLIGHT: u64 = 256 << 20;

/// Hears how far a load has come, from any thread.
pub type Listener<'a> = dyn FnMut(Progress) + Send + 'a;

/// Counts bytes and tells the caller.
pub(crate) struct Account<'a> {
    checkpoint: &'a Checkpoint,
    told: Mutex<(u64, &'a mut Listener<'a>)>,
}

impl<'a> Account<'a> {
    pub fn new(checkpoint: &'a Checkpoint, progress: &'a mut Listener<'a>) -> Self {
        Self { checkpoint, told: Mutex::new((0, progress)) }
    }

    /// Bytes of a module's tensors.
    fn bytes(&self, module: &str) -> u64 {
        let names = ["qweight", "qzeros", "scales", "g_idx", "weight", "bias", "weight_packed", "weight_scale", "scaled_zeros", "B", "s"];
        names.iter().filter_map(|n| self.checkpoint.info(&format!("{module}.{n}"))).map(|i| i.bytes as u64).sum()
    }

    /// Nothing is left to read.
    pub fn all(&self) {
        let total = self.checkpoint.total_bytes();
        lock(&self.told).1(Progress { done: total, total });
    }

    /// A module was read.
    pub fn add(&self, module: &str) {
        self.count(self.bytes(module));
    }

    /// Tensors were read that are no module's.
    pub fn tensors(&self, names: &[&str]) {
        self.count(names.iter().filter_map(|n| self.checkpoint.info(n)).map(|i| i.bytes as u64).sum());
    }

    fn count(&self, bytes: u64) {
        let mut told = lock(&self.told);
        let (done, progress) = &mut *told;
        *done += bytes;
        progress(Progress { done: *done, total: self.checkpoint.total_bytes() });
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // a panic of another module ends the load; what it leaves behind is whole
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that may be taken, and wait until they are there.
struct Budget {
    left: Mutex<u64>,
    returned: Condvar,
}

/// Bytes that were taken; they go back when it is dropped, also by a panic, so that nobody waits for ever.
struct Taken<'a>(&'a Budget, u64);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *lock(&self.0.left) += self.1;
        self.0.returned.notify_all();
    }
}

impl Budget {
    /// Takes so many bytes, all there are at most.
    fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(IN_FLIGHT);
        let mut left = lock(&self.left);
        while *left < bytes {
            left = self.returned.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        *left -= bytes;
        Taken(self, bytes)
    }
}

/// Reads and packs one module, as `dense` says if it is not quantized. Where `pool` is given, all its threads work on it.
pub(crate) fn pack(checkpoint: &Checkpoint, l: &Linear, dense: DenseLayout, pool: Option<&Pool>) -> Result<Weight, ModelError> {
    let wrong = |source| ModelError::Pack { module: l.name.clone(), source };
    let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
    match checkpoint.linear_rows(&l.name, l.in_features, l.out_features, rule)? {
        LinearRows::Quantized(m) => {
            let packed = match pool {
                Some(pool) => PackedMatrix::packed_by(&m, pool),
                None => {
                    let packed = PackedMatrix::new(&m);
                    // one of many of its size
                    checkpoint.recycle(m);
                    packed
                }
            };
            packed.map(Weight::Quantized).map_err(wrong)
        }
        LinearRows::Dense { weight, bias } => {
            let size = (l.in_features, l.out_features);
            let packed = PackedDense::from_rows(weight.dtype(), size, bias, dense, pool, &reads(&weight));
            Ok(Weight::Dense(Arc::new(packed.map_err(|e| e.of(&l.name))?)))
        }
    }
}

/// Why rows cannot be packed, of a module that is not yet named.
pub(crate) enum RowsError {
    Read(FormatError),
    Pack(KernelError),
}

impl From<KernelError> for RowsError {
    fn from(e: KernelError) -> Self {
        RowsError::Pack(e)
    }
}

impl RowsError {
    pub fn of(self, module: &str) -> ModelError {
        match self {
            RowsError::Read(e) => e.into(),
            RowsError::Pack(source) => ModelError::Pack { module: module.into(), source },
        }
    }
}

/// The function that reads rows of a dense matrix.
pub(crate) fn reads(rows: &Rows<'_>) -> impl Fn(usize, &mut [u8]) -> Result<(), RowsError> + Sync {
    move |first, out| rows.read(first, out).map_err(RowsError::Read)
}

/// Reads and packs modules, each on one thread of `pool`, in the order of `linears`.
///
/// # Errors
/// That of the first module that is wrong, however many threads there are.
pub(crate) fn pack_all(
    checkpoint: &Checkpoint,
    linears: &[Linear],
    dense: DenseLayout,
    pool: &Pool,
    account: &Account<'_>,
) -> Result<HashMap<String, Weight>, ModelError> {
    let budget = Budget { left: Mutex::new(IN_FLIGHT), returned: Condvar::new() };
    let wrong = AtomicUsize::new(usize::MAX);
    let packed: Vec<Mutex<Option<Result<Weight, ModelError>>>> = linears.iter().map(|_| Mutex::new(None)).collect();
    pool.run(linears.len(), &|i| {
        let l = &linears[i];
        // modules before a wrong one are still looked at: one of them may be wrong too, and would be named
        if i > wrong.load(Ordering::Relaxed) {
            return;
        }
        let taken = budget.take(account.bytes(&l.name));
        let result = pack(checkpoint, l, dense, None);
        drop(taken);
        match result {
            Ok(_) => account.add(&l.name),
            Err(_) => _ = wrong.fetch_min(i, Ordering::Relaxed),
        }
        *lock(&packed[i]) = Some(result);
    });
    checkpoint.free_recycled();
    let results = packed.into_iter().map(|p| p.into_inner().unwrap_or_else(PoisonError::into_inner));
    // only modules behind a wrong one have no result
    linears.iter().zip(results).filter_map(|(l, result)| Some(result?.map(|weight| (l.name.clone(), weight)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn no_more_bytes_are_taken_than_there_are() {
        let budget = Budget { left: Mutex::new(IN_FLIGHT), returned: Condvar::new() };
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        // the last is larger than all there is, and has it alone
        let sizes = [IN_FLIGHT / 2, IN_FLIGHT / 3, IN_FLIGHT / 4, 1, 2 * IN_FLIGHT];
        std::thread::scope(|s| {
            for i in 0..40 {
                let (budget, now, most, bytes) = (&budget, &now, &most, sizes[i % sizes.len()]);
                s.spawn(move || {
                    let taken = budget.take(bytes);
                    let sum = now.fetch_add(bytes.min(IN_FLIGHT), Ordering::SeqCst) + bytes.min(IN_FLIGHT);
                    most.fetch_max(sum, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(bytes.min(IN_FLIGHT), Ordering::SeqCst);
                    drop(taken);
                });
            }
        });
        assert_eq!(most.into_inner(), IN_FLIGHT);
        assert_eq!(*lock(&budget.left), IN_FLIGHT);
    }
}
