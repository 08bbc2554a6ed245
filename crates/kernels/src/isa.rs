//! Which instruction set runs. Chosen once, at run time; never a fallback from one that was asked for.

use crate::{DenseLayout, KernelError};

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with FMA, F16C and the 256-bit dot product of AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AVX-512 with the tiles of AMX for products of bytes with many rows.
    Amx,
    /// What every 64-bit Arm CPU has.
    Neon,
    /// NEON with the dot products of Armv8.2.
    DotProd,
}

/// Names that `BILLFISH_ISA` takes.
pub const ISA_NAMES: &str = "scalar, avx2, avxvnni, avx512, amx, neon, dotprod";

impl Isa {
    /// All of them, those of one architecture slowest first.
    pub const ALL: [Isa; 7] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Amx, Isa::Neon, Isa::DotProd];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::DotProd => "dotprod",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        self.missing().is_none()
    }

    /// Why this machine cannot run it; none if it can. Of tiles this is more than what the processor has: the system must
    /// permit their use, and a few products on them must have the bits of portable code.
    pub fn missing(self) -> Option<&'static str> {
        #[cfg(target_arch = "x86_64")]
        if self == Isa::Amx {
            return crate::arch::amx::missing();
        }
        (!self.has_features()).then_some("this CPU lacks it")
    }

    /// Whether the processor has the features that the kernels are compiled for.
    fn has_features(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::DotProd => Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            // those of other architectures
            _ => false,
        }
    }

    /// How weights that are not quantized should be laid out for it: narrow where an instruction takes a whole line of them.
    pub fn dense_layout(self) -> DenseLayout {
        if matches!(self, Isa::Avx512 | Isa::Amx) { DenseLayout::Narrow } else { DenseLayout::Stored }
    }

    /// Those that this machine has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|i| i.is_available())
    }

    /// The one called `name`, or the best of the machine if none is named.
    ///
    /// # Errors
    /// [`KernelError::IsaUnknown`] for a name that is none, [`KernelError::IsaMissing`] for one the machine lacks.
    pub fn choose(name: Option<&str>) -> Result<Isa, KernelError> {
        let Some(name) = name else {
            return Ok(Isa::available().last().unwrap_or(Isa::Scalar));
        };
        let isa = Isa::ALL.into_iter().find(|i| i.name() == name);
        let isa = isa.ok_or_else(|| KernelError::IsaUnknown { found: name.into(), expected: ISA_NAMES })?;
        match isa.missing() {
            None => Ok(isa),
            Some(reason) => {
                let found = Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ");
                Err(KernelError::IsaMissing { isa: isa.name(), reason, found })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_and_unknown_names_do_not() {
        assert_eq!(Isa::choose(Some("scalar")), Ok(Isa::Scalar));
        assert!(Isa::choose(None).unwrap().is_available());
        let message = Isa::choose(Some("sse9")).unwrap_err().to_string();
        assert!(message.contains("sse9") && message.contains("avx512"), "{message}");
    }

    #[test]
    fn one_that_is_missing_is_an_error() {
        for isa in Isa::ALL {
            let chosen = Isa::choose(Some(isa.name()));
            assert_eq!(chosen.is_ok(), isa.is_available());
            if let Some(reason) = isa.missing() {
                let message = chosen.unwrap_err().to_string();
                assert!(message.contains(isa.name()) && message.contains(reason) && message.contains("scalar"), "{message}");
            }
        }
    }
}
