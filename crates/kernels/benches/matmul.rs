//! How fast a packed matrix is multiplied, beside what the machine can do.
//!
//! `cargo bench -p billfish-kernels` prints, for each instruction set, the weight bytes read per second at M = 1 as a
//! fraction of a plain read measured between the samples, and the multiply-adds per second at larger M. Minima of many
//! short samples: the machines are shared.

use billfish_kernels::{Activations, Backend, Input, Isa, MatmulScratch, PackedMatrix, Product, Weight};
use billfish_tensor::{Codes, Groups, Packing, QuantMatrix, ScaleValues, Zeros};
use std::time::Instant;

const K: usize = 4096;
const N: usize = 4096;
/// Copies of the matrix, so that no cache holds the weights of the last pass.
const COPIES: usize = 24;

fn matrix(bits: u32, group: usize, seed: u64) -> Weight {
    let mut s = seed | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s
    };
    let words = (0..Packing::Continuous.words(bits, K) * N).map(|_| next() as u32).collect();
    let count = K / group;
    let scales = (0..count * N).map(|_| half::f16::from_f32((next() % 100) as f32 * 1e-4)).collect();
    let codes = Codes::Words { words, packing: Packing::Continuous };
    let m =
        QuantMatrix::new(K, N, bits, codes, ScaleValues::F16(scales), Zeros::Midpoint, Groups::Contiguous { size: group }, None).unwrap();
    Weight::Quantized(PackedMatrix::new(&m).unwrap())
}

fn main() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("unknown CPU", |l| l.trim_start_matches([' ', '\t', ':']));
    println!("{cpu}; [{K}, {N}], best of many samples");
    let data = vec![1u8; 256 << 20];
    let quick = std::env::args().any(|a| a == "--quick");
    for isa in Isa::available().collect::<Vec<_>>().into_iter().rev() {
        if isa == Isa::Scalar && !quick {
            continue;
        }
        for threads in [1, 2] {
            let backend = Backend::new(isa, threads).unwrap();
            for (bits, group) in [(4, 128), (4, 32), (8, 128), (3, 128), (2, 128)] {
                let copies = if isa == Isa::Scalar { 2 } else { COPIES };
                let weights: Vec<Weight> = (0..copies).map(|i| matrix(bits, group, i as u64)).collect();
                for activations in [Activations::Exact, Activations::Int8, Activations::Strict] {
                    let mut line = format!("{:7} {threads} thread(s) w{bits} g{group:<3} {:6}", isa.name(), activations.name());
                    for m in [1, 4, 8, 128, 512] {
                        let x: Vec<f32> = (0..m * K).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
                        let mut y = vec![0.0; m * N];
                        let mut scratch = MatmulScratch::default();
                        let (mut best, mut limit, mut peak) = (f64::MAX, 0.0f64, 0.0f64);
                        let rounds = if m >= 128 { 2 } else { 4 };
                        // a read of as many bytes beside every sample, from a place that no cache holds
                        let len = weights[0].bytes().min(data.len());
                        let mut parts = data.chunks_exact(len).cycle();
                        for _ in 0..rounds {
                            for w in &weights[..if m >= 128 { 2.min(copies) } else { copies }] {
                                limit = limit.max(parts.next().map_or(0.0, |part| backend.probe_read(part)));
                                peak = peak.max(backend.probe_dots());
                                let begin = Instant::now();
                                backend.matmul(&mut scratch, Input::Rows(&x), m, activations, &mut [Product::new(w, &mut y)]);
                                best = best.min(begin.elapsed().as_secs_f64());
                            }
                        }
                        if m == 1 {
                            let rate = weights[0].bytes() as f64 / best;
                            line += &format!(" | M=1 {:6.1} GB/s, {:3.0} % of read {:.1}", rate / 1e9, 100.0 * rate / limit, limit / 1e9);
                        } else {
                            let planes = match activations {
                                Activations::Int8 => 1.0,
                                Activations::Exact => 2.0,
                                Activations::Strict => 3.0,
                            };
                            let rate = 2.0 * (m * K * N) as f64 / best;
                            line += &format!(" | M={m} {:6.0} Gop/s {:3.0} %", rate / 1e9, 100.0 * rate * planes / peak);
                        }
                    }
                    println!("{line}");
                    if quick {
                        break;
                    }
                }
                if quick {
                    break;
                }
            }
        }
    }
}
