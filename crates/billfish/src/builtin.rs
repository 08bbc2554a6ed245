//! The model inside the binary: small, trained on fairy tales, 4-bit GPTQ.

/// Name of the built-in model.
pub const BUILTIN_NAME: &str = "tales-6m-w4-sym-g128";

macro_rules! asset {
    ($file:literal) => {
        ($file, include_bytes!(concat!("../assets/tales-6m-w4-sym-g128/", $file)) as &'static [u8])
    };
}

/// The files of the built-in model's folder.
pub fn builtin_files() -> &'static [(&'static str, &'static [u8])] {
    static FILES: [(&str, &[u8]); 7] = [
        asset!("config.json"),
        asset!("quantize_config.json"),
        asset!("generation_config.json"),
        asset!("model.safetensors"),
        asset!("tokenizer.json"),
        asset!("tokenizer_config.json"),
        asset!("chat_template.jinja"),
    ];
    &FILES
}
