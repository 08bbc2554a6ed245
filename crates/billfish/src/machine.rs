//! What this machine is, as far as it tells.

use std::fs::read_to_string;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, `unknown` if it was not built in a repository.
pub const COMMIT: &str = env!("BILLFISH_COMMIT");

/// What a figure depends on besides the program.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Features of the processor that kernels use or could use.
    pub features: Vec<&'static str>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of the largest cache.
    pub cache: Option<u64>,
    /// The operating system, its version and the architecture.
    pub os: String,
}

impl Machine {
    /// This machine.
    pub fn detect() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpuinfo.lines().find_map(|l| l.strip_prefix("model name"));
        let release = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: name.map_or("unknown processor", |n| n.trim_start_matches([' ', '\t', ':'])).to_string(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get()),
            features: cpu_features(),
            memory: read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemTotal:")),
            cache: largest_cache(),
            os: [std::env::consts::OS, release.trim(), std::env::consts::ARCH]
                .into_iter()
                .filter(|s| !s.is_empty())
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

/// Bytes of a line such as `VmHWM:   1234 kB`.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of memory that programs may still take, where the system tells.
pub fn free_memory() -> Option<u64> {
    kilobytes(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Largest resident size of this process since it began or since [`reset_peak_memory`], in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    kilobytes(&read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Resident size of this process now, in bytes, where the system tells.
pub fn resident_memory() -> Option<u64> {
    kilobytes(&read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Lets [`peak_memory`] begin anew from what is resident now. Returns whether the system does that.
pub fn reset_peak_memory() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn largest_cache() -> Option<u64> {
    let size = |i: usize| read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok();
    (0..8).filter_map(size).filter_map(|s| s.trim().strip_suffix('K')?.parse::<u64>().ok()).map(|kb| kb * 1024).max()
}

/// The features of a list that this processor has.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! detected {
    ($detect:ident: $($name:tt)*) => {
        [$(($name, std::arch::$detect!($name))),*].into_iter().filter(|f| f.1).map(|f| f.0).collect()
    };
}

/// Features of the processor that kernels use or could use, by the names that compilers give them.
#[cfg(target_arch = "x86_64")]
pub fn cpu_features() -> Vec<&'static str> {
    let mut found: Vec<&str> = detected!(is_x86_feature_detected: "sse4.2" "avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512dq" "avx512vnni" "avx512bf16" "avx512fp16");
    // the standard library does not tell of tiles yet, the system does
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or("");
    let told = |name: &str| flags.split_ascii_whitespace().any(|f| f == name);
    found.extend(["amx_tile", "amx_int8", "amx_bf16"].into_iter().filter(|f| told(f)));
    found
}

/// Features of the processor that kernels use or could use, by the names that compilers give them.
#[cfg(target_arch = "aarch64")]
pub fn cpu_features() -> Vec<&'static str> {
    detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2")
}

/// Features of the processor that kernels use or could use: none are known for this architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn cpu_features() -> Vec<&'static str> {
    vec![]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_kilobytes() {
        let text = "VmPeak:\t 9 kB\nVmHWM:\t   1234 kB\n";
        assert_eq!(kilobytes(text, "VmHWM:"), Some(1234 * 1024));
        assert_eq!(kilobytes(text, "VmRSS:"), None);
        assert_eq!(kilobytes("VmHWM: many kB", "VmHWM:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells_its_size() {
        let m = Machine::detect();
        assert!(m.cpus >= 1 && m.memory.unwrap() > 1 << 20 && m.os.starts_with("linux "), "{m:?}");
        assert!(peak_memory().unwrap() > 1 << 20);
        let now = resident_memory().unwrap();
        assert!(now > 1 << 20 && now <= peak_memory().unwrap());
    }

    /// What an instruction set needs is listed where it is available.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn features_agree_with_the_kernels() {
        let features = cpu_features();
        for (isa, feature) in [(crate::Isa::Avx2, "avx2"), (crate::Isa::Avx512, "avx512vnni"), (crate::Isa::Amx, "amx_int8")] {
            assert!(!isa.is_available() || features.contains(&feature), "{features:?}");
        }
    }
}
