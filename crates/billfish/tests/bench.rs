//! `bench`: what its outputs hold, what its gate stops, what it refuses. No figure is looked at but for its sense.

mod common;

use common::{Folder, billfish, error, fixture, json, ok, output};
use serde_json::{Value, json};

/// The smallest test of a model that shows everything.
const SHORT: [&str; 6] = ["-p", "12", "-n", "3", "-r", "2"];

fn bench<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["bench"], extra].concat()
}

fn positive(v: &Value, key: &str) -> bool {
    v[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite())
}

/// The machine and the program, in every output.
fn has_machine(v: &Value) {
    let m = &v["machine"];
    assert!(m["cpu"].is_string() && m["os"].is_string() && m["build_commit"].is_string() && m["features"].is_array(), "{m}");
    for key in ["cpus", "threads", "read_gb_per_s", "int8_gop_per_s", "f32_gop_per_s"] {
        assert!(positive(m, key), "{key}: {m}");
    }
    assert_eq!(m["version"], env!("CARGO_PKG_VERSION"));
}

/// The built-in model with a final norm of zeros: every logit is 0, every token as likely as any.
fn speechless() -> Folder {
    let f = Folder::of("../crates/billfish/assets/tales-6m-w4-sym-g128");
    f.tensor("model.norm.weight", |bytes| bytes.fill(0));
    f
}

#[test]
fn json_has_the_keys_of_llama_bench_and_ours() {
    let rows = json(&bench(&[&SHORT[..], &["--pg", "4,2", "-d", "0,5", "-t", "1", "-o", "json"]].concat()));
    let tests: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp12", "tg3", "pp4+tg2", "pp12 @ d5", "tg3 @ d5", "pp4+tg2 @ d5"]);
    for r in rows.as_array().unwrap() {
        has_machine(r);
        for key in
            ["avg_ns", "avg_ts", "model_size", "model_n_params", "n_batch", "gb_per_s", "gop_per_s", "limit_fraction", "bits_per_weight"]
        {
            assert!(positive(r, key), "{key}: {r}");
        }
        for key in ["build_commit", "cpu_info", "backends", "model_filename", "model_type", "type_k", "type_v", "kernel", "isa", "limit"] {
            assert!(r[key].as_str().is_some_and(|s| !s.is_empty()), "{key}: {r}");
        }
        assert_eq!((r["samples_ns"].as_array().unwrap().len(), r["samples_ts"].as_array().unwrap().len()), (2, 2));
        assert!(r["stddev_ts"].as_f64().unwrap() >= 0.0 && r["stddev_ns"].is_u64());
        assert_eq!((r["n_threads"].as_u64(), &r["bits"], r["activations"].as_str()), (Some(1), &json!([4]), Some("exact")));
        assert_eq!(r["files_sha256"].as_str().unwrap().len(), 64);
        assert_eq!(r["quality"]["status"], "PASSED");
        assert!(r["quality"]["perplexity"].as_f64().unwrap() < r["quality"]["perplexity_limit"].as_f64().unwrap());
        let time = r["test_time"].as_str().unwrap();
        assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{time}");
        // the mean of the samples' rates
        let rates: Vec<f64> = r["samples_ts"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!((r["avg_ts"].as_f64().unwrap() / ((rates[0] + rates[1]) / 2.0) - 1.0).abs() < 1e-9);
    }
    assert_eq!((rows[3]["n_prompt"].as_u64(), rows[3]["n_gen"].as_u64(), rows[3]["n_depth"].as_u64()), (Some(12), Some(0), Some(5)));
    if cfg!(target_os = "linux") {
        assert!(positive(&rows[0], "peak_memory_bytes"));
    }
}

#[test]
fn tables_have_the_columns_of_llama_bench_under_the_machine() {
    let (out, _) = ok(&bench(&SHORT));
    let heading = out.lines().find(|l| l.starts_with("| model")).unwrap_or_else(|| panic!("{out}"));
    let columns: Vec<&str> = heading.trim_matches('|').split('|').map(str::trim).collect();
    assert_eq!(columns[..7], ["model", "size", "params", "backend", "threads", "test", "t/s"]);
    for column in ["activations", "bits", "kernel", "ISA", "GB/s", "limit", "% of limit", "peak GB", "quality"] {
        assert!(columns.contains(&column), "{column} in {heading}");
    }
    let (head, table) = out.split_at(out.find("| model").unwrap());
    for word in ["- machine: ", "features: ", "limits with ", "read ", "int8 ", "files sha256 ", "quality: perplexity "] {
        assert!(head.contains(word), "{word} in {head}");
    }
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("| pp12 ") && table.contains("| tg3 ") && table.contains(" ± ") && table.contains("ppl "), "{table}");
}

#[test]
fn csv_has_a_line_for_each_test() {
    let (out, _) = ok(&bench(&[&SHORT[..], &["-o", "csv"]].concat()));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    for key in ["avg_ts", "stddev_ts", "limit_fraction", "machine_cpu", "machine_read_gb_per_s", "quality_status"] {
        assert!(lines[0].split(',').any(|k| k == format!("\"{key}\"")), "{key} in {}", lines[0]);
    }
    assert!(lines.iter().all(|l| l.matches("\",\"").count() == lines[0].matches("\",\"").count()));
    assert!(lines[2].contains("\"tg3\""));
}

#[test]
fn lists_are_multiplied() {
    let lists = ["--activations", "exact,int8", "--kv-cache-dtype", "f16,f32", "-b", "4,8", "-t", "1,2"];
    let rows = json(&bench(&[&["-p", "9", "-n", "0", "-r", "1", "-o", "json"][..], &lists].concat()));
    let rows = rows.as_array().unwrap();
    let mut seen: Vec<String> = rows
        .iter()
        .map(|r| format!("{} {} {} {} {}", r["activations"], r["type_k"], r["n_batch"], r["n_threads"], r["machine"]["threads"]))
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!((rows.len(), seen.len()), (16, 16));
    assert!(rows.iter().all(|r| r["machine"]["threads"] == r["n_threads"]));
    // a row tells of its own settings, not of the last ones
    let path = fixture("llama-ct-w8a8");
    let both = ["-p", "2", "-n", "0", "-r", "1", "--activations", "int8,exact", "--no-quality-gate", "-o", "json"];
    let rows = json(&bench(&[&[path.to_str().unwrap()], &both[..]].concat()));
    assert_eq!((rows[0]["token_scaled_modules"].as_u64(), rows[1]["token_scaled_modules"].as_u64()), (Some(14), Some(0)));
    assert_eq!((rows[0]["activations"].as_str(), rows[1]["activations"].as_str()), (Some("int8"), Some("exact")));
}

#[test]
fn a_model_that_says_nothing_is_not_measured() {
    let f = speechless();
    for command in [bench(&SHORT), bench(&["latency"]), bench(&["throughput"]), bench(&["matrix"])] {
        let (code, out, err) = output(billfish(&[&command[..], &[f.dir()]].concat()));
        assert_eq!((code, out.as_str()), (2, ""), "{command:?}: {err}");
        assert!(err.contains("perplexity") && err.contains("4096.0") && err.contains("--no-quality-gate"), "{err}");
    }
    // whoever wants a figure all the same gets one with a mark
    let forced = [&bench(&SHORT)[..], &[f.dir(), "--no-quality-gate"]].concat();
    let (table, _) = ok(&forced);
    assert_eq!(table.matches("| UNVERIFIED").count(), 2, "{table}");
    let rows = json(&[&forced[..], &["-o", "json"]].concat());
    assert_eq!(rows[0]["quality"]["status"], "UNVERIFIED");
    assert!(rows[0]["quality"]["perplexity"].is_null());
    assert!(ok(&[&forced[..], &["-o", "csv"]].concat()).0.contains("\"UNVERIFIED\""));
}

#[test]
fn the_hash_is_of_the_files() {
    let f = speechless();
    let hash =
        |dir: &str| json(&bench(&[dir, "-p", "1", "-n", "0", "-r", "1", "--no-quality-gate", "-o", "json"]))[0]["files_sha256"].clone();
    let before = hash(f.dir());
    assert_eq!(before, hash(f.dir()));
    f.tensor("model.norm.weight", |bytes| bytes[1] = 0x3f);
    assert_ne!(before, hash(f.dir()));
}

#[test]
fn synthetic_models_are_marked_and_leave_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let run = |extra: &[&str]| {
        let mut command = billfish(&[&bench(&SHORT)[..], &["--synthetic", "tiny:w3g32:asym:act", "-t", "1"], extra].concat());
        command.env("TMPDIR", temporary.path());
        let (code, out, err) = output(command);
        assert_eq!(code, 0, "{err}");
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left behind");
        out
    };
    assert_eq!(run(&[]).matches("| SYNTHETIC").count(), 2);
    let rows: Value = serde_json::from_str(&run(&["-o", "json"])).unwrap();
    assert_eq!((rows[0]["quality"]["status"].as_str(), &rows[0]["bits"]), (Some("SYNTHETIC"), &json!([3])));
    assert_eq!(rows[0]["model_filename"], "synthetic tiny:w3g32:asym:act");
    assert_eq!(rows[0]["schemes"], json!(["w3g32:asym:act"]));
    assert!(rows[0]["files_sha256"].is_null());
}

#[test]
fn kernels_are_checked_and_measured() {
    let given =
        ["kernels", "--shape", "256x320", "--bits", "3,4", "--group-size", "32,-1", "--asym", "--act-order", "-m", "1,5", "-r", "3"];
    let rows = json(&bench(&[&given[..], &["--activations", "exact,int8", "-t", "1", "-o", "json"]].concat()));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 2 * 2);
    for r in rows {
        has_machine(r);
        for key in ["weight_bytes", "min_ns", "median_ns", "gb_per_s", "gop_per_s", "limit_fraction", "limit_fraction_median"] {
            assert!(positive(r, key), "{key}: {r}");
        }
        assert_eq!((r["in_features"].as_u64(), r["out_features"].as_u64(), r["checked"].as_str()), (Some(256), Some(320), Some("oracle")));
        assert_eq!((r["n_samples"].as_u64(), r["samples_ns"].as_array().unwrap().len()), (Some(3), 3));
        // cold: more than any cache holds
        assert!(r["copies"].as_u64().unwrap() * r["weight_bytes"].as_f64().unwrap() as u64 >= 64 << 20);
        assert!(r["min_ns"].as_f64() <= r["median_ns"].as_f64());
    }
    let mut schemes: Vec<&str> = rows.iter().map(|r| r["scheme"].as_str().unwrap()).collect();
    schemes.dedup();
    // one group a column has no order of its own
    assert_eq!(schemes, ["w3g32:asym:act", "w3g-1:asym", "w4g32:asym:act", "w4g-1:asym"]);
    for isa in billfish::Isa::available() {
        let rows = json(&bench(&["kernels", "--shape", "128x64", "-m", "2", "-r", "1", "-t", "1", "--isa", isa.name(), "-o", "json"]));
        assert_eq!((rows[0]["isa"].as_str(), rows[0]["machine"]["isa"].as_str()), (Some(isa.name()), Some(isa.name())));
    }
}

#[test]
fn kernels_of_a_model_are_those_of_its_modules() {
    let path = fixture("llama-dynamic");
    let rows = json(&bench(&["kernels", path.to_str().unwrap(), "-m", "1", "-r", "2", "-t", "1", "-o", "json"]));
    let of = |module: &str| rows.as_array().unwrap().iter().find(|r| r["modules"].as_str().unwrap().contains(module)).unwrap().clone();
    assert_eq!((of("down_proj")["bits"].as_u64(), of("down_proj")["scheme"].as_str()), (Some(8), Some("w8g32")));
    let schemes: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["scheme"].as_str().unwrap()).collect();
    assert!(schemes.contains(&"w2g32:act"), "{schemes:?}");
    let (table, _) = ok(&bench(&["kernels", "-m", "1", "-r", "2", "-t", "1"]));
    assert!(
        table.contains("| gate_proj,up_proj x12 ") && table.contains("checked against the oracle") && table.contains("w4g128"),
        "{table}"
    );
}

#[test]
fn regions_of_the_pool_are_measured() {
    let rows = json(&bench(&["kernels", "--fork-join", "-t", "1,2", "--busy-neighbours", "1", "-o", "json"]));
    let tests: Vec<_> = rows.as_array().unwrap().iter().map(|r| (r["test"].as_str().unwrap(), r["n_threads"].as_u64().unwrap())).collect();
    assert_eq!(tests, [("fork_join", 1), ("product", 1), ("fork_join", 2), ("product", 2)]);
    for r in rows.as_array().unwrap() {
        has_machine(r);
        let ns: Vec<f64> = ["min_ns", "median_ns", "p99_ns", "max_ns"].iter().map(|key| r[key].as_f64().unwrap()).collect();
        assert!(ns.is_sorted() && ns[0] > 0.0 && r["busy_neighbours"] == 1, "{r}");
        assert!((r["p99_over_median"].as_f64().unwrap() - ns[2] / ns[1]).abs() < 1e-9);
    }
}

/// Threads are by default as many as the processors that the process may use, and not all of the machine's.
#[cfg(target_os = "linux")]
#[test]
fn one_processor_gets_one_thread() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_string();
    let first = allowed.split([',', '-']).next().unwrap();
    let arguments = ["-c", first, env!("CARGO_BIN_EXE_billfish"), "bench", "kernels", "--fork-join", "-o", "json"];
    let found = std::process::Command::new("taskset").args(arguments).output();
    // the program belongs to util-linux, which nearly every system has
    let Ok(found) = found else { return eprintln!("taskset is not there: nothing was looked at") };
    let rows: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((rows[0]["n_threads"].as_u64(), rows[0]["machine"]["cpus"].as_u64()), (Some(1), Some(1)), "allowed: {allowed}");
}

#[test]
fn latency_has_the_keys_of_vllm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latency.json");
    let sizes = ["--input-len", "5", "--output-len", "3", "--batch-size", "2", "--num-iters-warmup", "1", "--num-iters", "4"];
    let (out, _) = ok(&bench(&[&["latency"], &sizes[..], &["--output-json", file.to_str().unwrap()]].concat()));
    assert!(out.contains("Avg latency: ") && out.contains("99% percentile latency: ") && out.contains("side by side"), "{out}");
    let v: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    has_machine(&v);
    let latencies: Vec<f64> = v["latencies"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 4);
    assert!((v["avg_latency"].as_f64().unwrap() - latencies.iter().sum::<f64>() / 4.0).abs() < 1e-9);
    let percentiles = v["percentiles"].as_object().unwrap();
    assert_eq!(percentiles.keys().collect::<Vec<_>>(), ["10", "25", "50", "75", "90", "99"]);
    assert_eq!((v["batching"].as_str(), v["quality"]["status"].as_str()), (Some("side by side"), Some("PASSED")));
}

#[test]
fn throughput_has_the_keys_of_vllm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("throughput.json");
    let path = file.to_str().unwrap();
    let read = || -> Value { serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap() };
    let base = ["throughput", "--num-prompts", "3", "--dataset-name", "random", "--output-json", path];
    let (out, _) = ok(&bench(&[&base[..], &["--random-input-len", "6", "--random-output-len", "2"]].concat()));
    assert!(out.contains("Throughput: ") && out.contains(" total tokens/s, ") && out.contains("Total num prompt tokens:  18"), "{out}");
    let v = read();
    has_machine(&v);
    assert_eq!((v["num_requests"].as_u64(), v["total_num_tokens"].as_u64()), (Some(3), Some(24)));
    let (seconds, rate) = (v["elapsed_time"].as_f64().unwrap(), |key: &str| v[key].as_f64().unwrap());
    assert!((rate("requests_per_second") * seconds - 3.0).abs() < 1e-6 && (rate("tokens_per_second") * seconds - 24.0).abs() < 1e-6);
    assert_eq!((v["batching"].as_str(), v["max_num_seqs"].as_u64()), (Some("side by side"), Some(64)));
    let (out, _) = ok(&bench(&[&base[..], &["--random-input-len", "6", "--random-output-len", "2", "--max-num-seqs", "2"]].concat()));
    assert!(out.contains("up to 2 requests run side by side") && read()["max_num_seqs"] == 2, "{out}");
    // the older names, and lengths that differ
    ok(&bench(&[&base[..], &["--input-len", "40", "--output-len", "2", "--random-range-ratio", "0.5", "--seed", "3"]].concat()));
    let total = read()["total_num_tokens"].as_u64().unwrap();
    assert!((63..=189).contains(&total) && total != 126, "{total}");
}

#[test]
fn the_matrix_has_every_batch_and_length() {
    let text = fixture("text/valid-20k.txt");
    let grid = ["matrix", "--batch-size", "1,2", "--length", "6,9", "--output-len", "2"];
    let rows = json(&bench(&[&grid[..], &["--text", text.to_str().unwrap(), "--limit-tokens", "18", "-o", "json"]].concat()));
    let rows = rows.as_array().unwrap();
    let cells: Vec<_> = rows.iter().map(|r| (r["input_len"].as_u64().unwrap(), r["batch_size"].as_u64().unwrap())).collect();
    assert_eq!(cells, [(6, 1), (6, 2), (9, 1), (9, 2)]);
    for r in rows {
        has_machine(r);
        for key in ["tokens_per_second", "output_tokens_per_second", "mean_ttft_s", "perplexity"] {
            assert!(positive(r, key), "{key}: {r}");
        }
        assert_eq!(r["samples_ttft_s"].as_array().unwrap().len() as u64, r["batch_size"].as_u64().unwrap());
        assert_eq!(r["batching"], "side by side");
    }
    assert_eq!(rows[0]["perplexity"], rows[1]["perplexity"]);
    assert_ne!(rows[0]["perplexity"], rows[2]["perplexity"]);
    if cfg!(target_os = "linux") {
        assert!(positive(&rows[0], "gb_per_billion_params"));
    }
    let (table, err) = ok(&bench(&[
        "matrix",
        "--batch-size",
        "1",
        "--length",
        "6,50",
        "--output-len",
        "1",
        "--text",
        text.to_str().unwrap(),
        "--limit-tokens",
        "18",
    ]));
    for word in ["first token, mean s", "GB per B params", "perplexity", "side by side"] {
        assert!(table.contains(word), "{word} in {table}");
    }
    assert!(err.contains("no perplexity in windows of 50") && table.contains(" – |"), "{err}");
}

#[test]
fn what_is_not_supported_is_refused() {
    for (args, words) in [
        (&["-p", "0", "-n", "0"][..], &["no test", "--n-prompt"][..]),
        (&["--pg", "5"], &["512,128"]),
        (&["--pg", "0,4"], &["at least 1"]),
        (&["-b", "0"], &["--batch-size", "from 1"]),
        (&["-r", "0"], &["--repetitions"]),
        (&["-t", "0"], &["--threads"]),
        (&["-ngl", "99"], &["-g"]),
        (&["--synthetic", "llama-7b"], &["llama-8b"]),
        (&["--synthetic", "tiny", "--no-quality-gate"], &["cannot be used with"]),
        (&["x", "--synthetic", "tiny"], &["cannot be used with"]),
        (&["nowhere"], &["nowhere", "a model folder"]),
        (&["-o", "xml"], &["md", "json", "csv"]),
        (&["kernels", "--bits", "4"], &["--shape"]),
        (&["kernels", "--shape", "4x4"], &["at least 64"]),
        (&["kernels", "--shape", "64", "-m", "1"], &["KxN"]),
        (&["kernels", "--shape", "64x64", "--bits", "9"], &["--bits"]),
        (&["kernels", "--shape", "64x64", "--group-size", "0"], &["--group-size"]),
        (&["kernels", "--shape", "64x64", "--synthetic", "tiny"], &["cannot be used with"]),
        (&["kernels", "--fork-join", "-m", "1"], &["cannot be used with"]),
        (&["kernels", "--busy-neighbours", "1"], &["--fork-join"]),
        (&["kernels", "--busy-neighbours", "1", "--shape", "64x64"], &["cannot be used with"]),
        (&["throughput", "--max-num-seqs", "0"], &["--max-num-seqs"]),
        (&["kernels", "--isa", "sse9"], &["sse9", "avx512"]),
        (&["latency", "--use-beam-search"], &["--use-beam-search"]),
        (&["latency", "--n", "2"], &["--n"]),
        (&["latency", "--num-iters", "0"], &["--num-iters"]),
        (&["throughput", "--dataset-name", "sharegpt"], &["sharegpt", "random"]),
        (&["throughput", "--random-range-ratio", "1"], &["below 1"]),
        (&["throughput", "--async-engine"], &["--async-engine"]),
        (&["matrix", "--limit-tokens", "4"], &["--text"]),
        (&["matrix", "--text", "nowhere.txt"], &["nowhere.txt"]),
        (&["-p", "4", "matrix"], &["matrix"]),
    ] {
        let message = error(&bench(args));
        assert!(words.iter().all(|w| message.contains(w)), "{args:?}: {message}");
    }
    let dense = fixture("llama-oldrope-dense");
    let message = error(&bench(&["kernels", dense.to_str().unwrap()]));
    assert!(message.contains("quantized modules") && message.contains("--shape"), "{message}");
}

#[test]
fn the_long_version_says_what_it_would_run_on() {
    let short = ok(&["--version"]).0;
    assert_eq!(short, format!("billfish {}\n", env!("CARGO_PKG_VERSION")));
    let (long, _) = ok(&["--version", "-v"]);
    assert!(long.starts_with(&short), "{long}");
    for line in ["commit  ", "processor  ", "features  ", "system  ", "runs on  ", "kernels  "] {
        assert!(long.lines().any(|l| l.starts_with(line)), "{line} in {long}");
    }
    assert!(long.contains("k4n16-w3, k4n16-w4") && long.contains("scalar") && long.contains("dense-bf16"), "{long}");
    // whoever has no tiles is told why
    assert!(
        !cfg!(target_arch = "x86_64") || long.contains(" amx") && long.contains(billfish::Isa::Amx.missing().unwrap_or("amx available"))
    );
    let mut command = billfish(&["-V", "-v"]);
    command.env("BILLFISH_ISA", "scalar");
    assert!(output(command).1.contains("runs on      scalar ("));
    assert!(error(&["-v"]).contains("--version"));
    assert!(error(&["--version", "run"]).contains("without a command"));
}

#[test]
fn reports_name_the_processor_and_the_kernels() {
    let features = billfish::machine::cpu_features().join(" ");
    let (_, err) = ok(&["run", "--prompt", "Once", "--max-tokens", "2", "--seed", "1"]);
    assert!(err.contains(&format!("({features})")), "{err}");
    let v = json(&["run", "--prompt", "Once", "--max-tokens", "2", "--seed", "1", "--json"]);
    assert_eq!(v["cpu_features"].as_array().unwrap().len(), billfish::machine::cpu_features().len());
    assert!(billfish::Isa::available().any(|i| v["isa"] == i.name()));
    assert!(ok(&["inspect"]).0.contains(&format!("processor     {features}")));
}
