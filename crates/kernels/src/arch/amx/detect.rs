//! Whether this machine has tiles and this process may use them. Without the system's permission the first tile
//! instruction ends the process, so nothing is ever tried: everything is asked for, then a few products are compared.

use super::{KERNELS, unit::CONFIG};
use crate::activations::{Activations, Input};
use crate::arch::scalar;
use crate::backend::{Backend, MatmulScratch, Product, Weight};
use crate::isa::Isa;
use crate::pack::PackedMatrix;
use billfish_tensor::{Codes, Groups, Packing, QuantMatrix, ScaleValues, Zeros};
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Why tiles cannot be used here; found out once.
pub(crate) fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        if !Isa::Avx512.is_available() {
            return Some("it needs AVX-512 with VNNI beside the tiles".to_string());
        }
        let refused = Facts::of_this_machine().refuse().map(str::to_string);
        refused.or_else(|| permission().err()).or_else(|| compare().err())
    };
    MISSING.get_or_init(find).as_deref()
}

/// What the processor and the system say about tiles.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// CPUID 7.0, EDX: bit 24 tiles, bit 25 products of bytes.
    features: u32,
    /// XCR0, 0 where the system does not let it be read: bits 17 and 18 say that it keeps tiles.
    kept: u64,
    /// CPUID 1DH.0, EAX: the largest palette.
    palettes: u32,
    /// CPUID 1DH.1, EAX, EBX, ECX: bytes of all tiles and of one, bytes of a row and tiles, rows.
    palette: [u32; 3],
}

impl Facts {
    fn of_this_machine() -> Self {
        let largest = __cpuid(0).eax;
        let leaf = |leaf, sub| if leaf <= largest { Some(__cpuid_count(leaf, sub)) } else { None };
        let readable = leaf(1, 0).is_some_and(|l| l.ecx >> 27 & 1 == 1);
        // SAFETY: OSXSAVE says that the instruction is there.
        let kept = if readable { unsafe { _xgetbv(0) } } else { 0 };
        Facts {
            features: leaf(7, 0).map_or(0, |l| l.edx),
            kept,
            palettes: leaf(0x1d, 0).map_or(0, |l| l.eax),
            palette: leaf(0x1d, 1).map_or([0; 3], |l| [l.eax, l.ebx, l.ecx]),
        }
    }

    fn refuse(&self) -> Option<&'static str> {
        const BITS: u32 = 1 << 24 | 1 << 25;
        // eight tiles of 1 KiB, 16 rows of 64 bytes
        const PALETTE: [u32; 3] = [1024 << 16 | 8192, 8 << 16 | 64, 16];
        if self.features & BITS != BITS {
            Some("this processor has no AMX tiles for bytes")
        } else if self.kept >> 17 & 3 != 3 {
            Some("the operating system does not keep AMX tiles (XCR0)")
        } else if self.palettes < u32::from(CONFIG.0[0]) || [self.palette[0], self.palette[1], self.palette[2] & 0xffff] != PALETTE {
            Some("the AMX tiles of this processor have another size than the kernels'")
        } else {
            None
        }
    }
}

/// Asks the system for the use of tiles in all threads of this process, and whether it is granted.
#[cfg(target_os = "linux")]
fn permission() -> Result<(), String> {
    const GET: u64 = 0x1022;
    const REQUEST: u64 = 0x1023;
    const TILES: u64 = 18;
    let asked = arch_prctl(REQUEST, TILES);
    if asked != 0 {
        return Err(format!("the system does not permit AMX tiles (arch_prctl says {asked})"));
    }
    let mut granted = 0u64;
    let told = arch_prctl(GET, &raw mut granted as u64);
    if told != 0 || granted >> TILES & 1 == 0 {
        return Err(format!("the system does not confirm that it permits AMX tiles (arch_prctl says {told}, {granted:#x})"));
    }
    Ok(())
}

/// Systems of which we do not know how to ask.
#[cfg(not(target_os = "linux"))]
fn permission() -> Result<(), String> {
    Err("AMX tiles are used on Linux only".into())
}

/// The system call: 0 or a negative error.
#[cfg(target_os = "linux")]
fn arch_prctl(code: u64, argument: u64) -> i64 {
    const CALL: i64 = 158;
    let mut result = CALL;
    // SAFETY: a call that writes nothing but, where `argument` is the address of a `u64`, that number; it changes the
    // three registers named.
    unsafe {
        std::arch::asm!("syscall", inout("rax") result, in("rdi") code, in("rsi") argument, out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// Products of every width and precision on the tiles against portable code, bit by bit.
fn compare() -> Result<(), String> {
    const K: usize = 200;
    const N: usize = 72;
    const M: usize = 37;
    let wrong = |what: String| format!("its self-test failed: {what}");
    let [tiles, portable] = [&KERNELS, &scalar::KERNELS].map(|k| Backend::with(k, 1).map_err(|e| wrong(e.to_string())));
    let (tiles, portable) = (tiles?, portable?);
    let mut state = 1u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let x: Vec<f32> = (0..M * K).map(|_| next() as f32 / 1e7 - 0.8).collect();
    for bits in [2, 3, 4, 8] {
        let codes: Vec<u8> = (0..K * N).map(|_| (next() % (1 << bits)) as u8).collect();
        let codes = Codes::pack(&codes, N, bits, Packing::Continuous);
        let scales = ScaleValues::F32((0..2 * N).map(|_| next() as f32 / 1e9 + 1e-3).collect());
        let zeros = Zeros::PerGroup((0..2 * N).map(|_| (next() % ((1 << bits) + 1)) as u16).collect());
        let matrix = QuantMatrix::new(K, N, bits, codes, scales, zeros, Groups::Contiguous { size: 128 }, None);
        let packed = PackedMatrix::new(&matrix.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
        let weight = Weight::Quantized(packed);
        for activations in Activations::ALL {
            let product = |backend: &Backend| {
                let mut y = vec![0.0f32; M * N];
                let products = &mut [Product::new(&weight, &mut y)];
                backend.matmul(&mut MatmulScratch::default(), Input::Rows(&x), M, activations, products);
                y
            };
            let pairs = product(&tiles).into_iter().zip(product(&portable)).enumerate();
            if let Some((i, (found, expected))) = pairs.into_iter().find(|(_, (a, b))| a.to_bits() != b.to_bits()) {
                let name = activations.name();
                return Err(wrong(format!("{bits} bit, {name}: element {i} is {found}, portable code says {expected}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Facts = Facts { features: 3 << 24, kept: 3 << 17 | 7, palettes: 1, palette: [0x0400_2000, 0x0008_0040, 16] };

    #[test]
    fn each_fact_that_is_amiss_is_named() {
        assert_eq!(FIT.refuse(), None);
        let refused = |facts: Facts, word: &str| assert!(facts.refuse().is_some_and(|r| r.contains(word)), "{facts:?}: {word}");
        refused(Facts { features: 1 << 24, ..FIT }, "processor has no");
        refused(Facts { features: 1 << 25, ..FIT }, "processor has no");
        refused(Facts { kept: 1 << 17, ..FIT }, "XCR0");
        refused(Facts { kept: 1 << 18, ..FIT }, "XCR0");
        refused(Facts { palettes: 0, ..FIT }, "another size");
        for palette in [[0x0400_1000, 0x0008_0040, 16], [0x0400_2000, 0x0008_0020, 16], [0x0400_2000, 0x0008_0040, 8]] {
            refused(Facts { palette, ..FIT }, "another size");
        }
    }

    /// A machine without tiles is told so before the system is asked, one with tiles has passed everything.
    #[test]
    fn this_machine_has_tiles_or_a_reason() {
        let facts = Facts::of_this_machine();
        match missing() {
            None => assert!(facts.refuse().is_none() && facts.features >> 24 & 3 == 3),
            Some(reason) => assert!(reason.len() > 10, "{reason}"),
        }
    }

    /// The call reaches the system: it knows the question, or says that it does not.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_answers() {
        const SUPPORTED: u64 = 0x1021;
        let mut mask = 0u64;
        match arch_prctl(SUPPORTED, &raw mut mask as u64) {
            // x87 and SSE are always among them
            0 => assert_eq!(mask & 3, 3),
            error => assert!((-4095..0).contains(&error), "{error}"),
        }
        if Facts::of_this_machine().kept >> 18 & 1 == 0 {
            assert!(permission().unwrap_err().contains("does not permit"));
        }
    }
}
