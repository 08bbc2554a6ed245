//! What its features do not tell of a processor, but measurements do.

/// Whether one row is multiplied faster with two panels side by side. Zen 4 follows two streams of reads by itself faster
/// than one that is asked for ahead: 4 bit, 4096 by 14336, one thread, 31.5 against 27.0 GB/s of 32. On Zen 5 one stream
/// reaches 95 % of what can be read, and a second costs 6 (cpu_kernels §9); others are not known and take one.
#[cfg(target_arch = "x86_64")]
pub(crate) fn reads_pairs() -> bool {
    use std::arch::x86_64::__cpuid;
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    // of this family only Zen 4 has AVX-512
    name.as_flattened() == b"AuthenticAMD" && vendor.eax >= 1 && family(__cpuid(1).eax) == 0x19
}

/// See the other one.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn reads_pairs() -> bool {
    false
}

/// The family in EAX of CPUID 1.
#[cfg(any(test, target_arch = "x86_64"))]
fn family(signature: u32) -> u32 {
    let base = signature >> 8 & 15;
    if base == 15 { base + (signature >> 20 & 255) } else { base }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_known_signatures() {
        // Genoa, Turin, Sapphire Rapids
        assert_eq!([0x00a1_0f11, 0x00b0_0f21, 0x0008_06f8].map(family), [0x19, 0x1a, 6]);
    }
}
