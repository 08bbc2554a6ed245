//! Bodies of fuzz targets: any bytes, no panic, no memory beyond a small multiple of the input.

use crate::warning::Warnings;
use crate::{BiasRule, Checkpoint, Header, QuantConfig, Source, diff, dynamic, explain, json, serially};
use std::borrow::Cow;

/// A safetensors file; the header is what matters.
pub fn safetensors_header(data: &[u8]) {
    drop(Header::read(&Source::from_bytes("fuzz", data.to_vec())));
}

/// A quantization config.
pub fn quant_config(data: &[u8]) {
    let warnings = Warnings::default();
    let Ok(map) = json::object("fuzz", data) else { return };
    let Ok(config) = QuantConfig::read("fuzz", "", &map, &warnings) else { return };
    drop(config.scheme("model.layers.0.self_attn.q_proj"));
    config.selection.says("model.layers.0.self_attn.q_proj");
    drop(config.selection.warn_unmatched("fuzz", &["lm_head", "model.layers.0.mlp.down_proj"], &warnings));
}

/// The rules of a quantization config, tried on names of modules.
pub fn dynamic(data: &[u8]) {
    let warnings = Warnings::default();
    let Ok(map) = json::object("fuzz", data) else { return };
    let Ok(rules) = dynamic::Dynamic::read("fuzz", &map, &warnings) else { return };
    for module in ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.10.mlp.experts.63.down_proj"] {
        drop(rules.find(module));
    }
    drop(rules.warn_unmatched(&["lm_head"], &warnings));
}

/// The line that starts a file in the input of [`checkpoint`]; the name follows, up to the end of the line.
const FILE: &[u8] = b"\n#file ";

/// A whole folder: each file starts with a line `#file NAME`, and its bytes follow. Reads every module and tensor,
/// compares the folder with itself and explains a place of each.
pub fn checkpoint(data: &[u8]) {
    let mut files = vec![];
    let mut rest = data.strip_prefix(&FILE[1..]).unwrap_or_default();
    while !rest.is_empty() {
        let end = rest.windows(FILE.len()).position(|w| w == FILE);
        let (file, next) = end.map_or((rest, &[][..]), |e| (&rest[..e], &rest[e + FILE.len()..]));
        let line = file.iter().position(|&b| b == b'\n').unwrap_or(file.len());
        let name = String::from_utf8_lossy(&file[..line]).into_owned();
        files.push((Cow::Owned(name), Cow::Owned(file.get(line + 1..).unwrap_or_default().to_vec())));
        rest = next;
    }
    let Ok(folder) = Checkpoint::from_files("fuzz", files) else { return };
    for module in folder.quantized_modules() {
        if let Ok(report) = folder.describe(&module) {
            drop(folder.linear(&module, report.in_features, report.out_features, BiasRule::Optional));
        }
        drop(folder.linear(&module, 64, 64, BiasRule::Absent));
    }
    for name in folder.tensor_names() {
        let shape = folder.info(name).map(|i| i.shape.clone()).unwrap_or_default();
        drop(folder.dense(name, &shape));
        drop(
            name.strip_suffix(".weight")
                .map(|m| folder.linear(m, shape.get(1).copied().unwrap_or(0), shape.first().copied().unwrap_or(0), BiasRule::Optional)),
        );
    }
    if let Ok(found) = diff(&folder, &folder, &serially, &mut |_, _| ()) {
        assert!(found.certificate.equal(), "a folder equals itself");
    }
    for name in folder.tensor_names() {
        for index in ["[]", "[0]", "[0, 0]", "[63, 63]"] {
            drop(explain(&folder, &format!("{name}{index}")));
            drop(name.rsplit_once('.').map(|(module, _)| explain(&folder, &format!("{module}{index}"))));
        }
    }
    for warning in folder.warnings() {
        drop(warning.to_string());
    }
    drop(folder.unread());
}
