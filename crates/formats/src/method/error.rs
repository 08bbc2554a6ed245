//! What vLLM 0.14.1 refuses (and, where that is said, a later release), in its own words.

/// Why vLLM would not load a checkpoint. The text is what its users see; what a text leaves open stands in the fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// A required key is missing.
    #[error("Cannot find any of {keys} in the model's quantization config.")]
    MissingKey {
        /// The keys that would do, as a list in brackets.
        keys: String,
    },
    /// A width that the method `gptq` does not have.
    #[error("Currently, only 2/3/4/8-bit weight quantization is supported for GPTQ, but got {bits} bits.")]
    GptqBits {
        /// The width.
        bits: String,
    },
    /// A combination that the method `gptq_marlin` does not have.
    #[error("Unsupported quantization config: bits={bits}, sym={sym}")]
    MarlinConfig {
        /// The width.
        bits: String,
        /// `True` or `False`.
        sym: String,
    },
    /// The user asked for another method than the checkpoint's.
    #[error(
        "Quantization method specified in the model config ({config}) does not match the quantization method specified in the \
         `quantization` argument ({user})."
    )]
    Mismatch {
        /// The checkpoint's method.
        config: String,
        /// The user's.
        user: String,
    },
    /// A method that does not exist.
    #[error("Unknown quantization method: {method}. Must be one of {known}.")]
    Unknown {
        /// The method.
        method: String,
        /// All that exist, as a list in brackets.
        known: String,
    },
    /// A method that needs a flag.
    #[error(
        "The quantization method {method} is deprecated and will be removed in future versions of vLLM. To bypass, set \
         `--allow-deprecated-quantization`."
    )]
    Deprecated {
        /// The method.
        method: String,
    },
    /// The method does not take activations of this type.
    #[error("{dtype} is not supported for quantization method {method}. Supported dtypes: {supported}")]
    Dtype {
        /// The type of activations.
        dtype: String,
        /// The method.
        method: String,
        /// Those it takes, as a list in brackets.
        supported: String,
    },
    /// The GPU is too old for the method.
    #[error(
        "The quantization method {method} is not supported for the current GPU. Minimum capability: {minimum}. Current capability: \
         {capability}."
    )]
    Capability {
        /// The method.
        method: String,
        /// What it needs.
        minimum: u32,
        /// What there is.
        capability: u32,
    },
    /// Marlin does not have this type of weight on this device.
    #[error(
        "Marlin does not support weight_bits = {weight}. Only types = {types} are supported (for group_size = {group_size}, \
         device_capability = {capability}, zp = {zero_points})."
    )]
    MarlinType {
        /// The type.
        weight: String,
        /// Those it has, as a list in brackets.
        types: String,
        /// Rows of a group.
        group_size: i64,
        /// Of the device; -1 where there is none.
        capability: i64,
        /// `True` or `False`.
        zero_points: String,
    },
    /// Marlin does not have this group size.
    #[error("Marlin does not support group_size = {group_size}. Only group_sizes = [-1, 32, 64, 128] are supported.")]
    MarlinGroup {
        /// Rows of a group.
        group_size: i64,
    },
    /// The columns of a rank are no whole tiles. (The two blanks are in the original.)
    #[error(
        "Weight output_size_per_partition = {columns} is not divisible by  min_thread_n = 64. Consider reducing tensor_parallel_size or \
         running with --quantization gptq."
    )]
    MarlinColumns {
        /// Columns of a rank.
        columns: usize,
    },
    /// The rows of a rank are no whole tiles.
    #[error(
        "Weight input_size_per_partition = {rows} is not divisible by min_thread_k = 128. Consider reducing tensor_parallel_size or \
         running with --quantization gptq."
    )]
    MarlinRows {
        /// Rows of a rank.
        rows: usize,
    },
    /// The rows of a rank are no whole groups.
    #[error(
        "Weight input_size_per_partition = {rows} is not divisible by group_size = {group_size}. Consider reducing tensor_parallel_size or \
         running with --quantization gptq."
    )]
    MarlinGroups {
        /// Rows of a rank.
        rows: usize,
        /// Rows of a group.
        group_size: i64,
    },
    /// Only a part of a fused module is quantized.
    #[error("Detected some but not all shards of {prefix} are quantized. All shards of fused layers to have the same precision.")]
    MixedShards {
        /// The fused module.
        prefix: String,
    },
    /// A width that the AWQ methods do not have.
    #[error("Currently, only 4-bit weight quantization is supported for AWQ, but got {bits} bits.")]
    AwqBits {
        /// The width.
        bits: String,
    },
    /// A value that AutoRound does not have.
    #[error("Unsupported {key}: {found}, currently only support {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// Those it has.
        supported: String,
    },
    /// AutoRound has different numbers for the parts of a fused module.
    #[error("Fused {what} '{prefix}' requires consistent quant config for {parts}")]
    Inconsistent {
        /// `module` or `MoE layer`.
        what: &'static str,
        /// The fused module.
        prefix: String,
        /// Its parts, as a list in brackets.
        parts: String,
    },
    /// Act-order, since 0.33.
    #[error(
        "GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static activation ordering or \
         desc_act=False."
    )]
    ActOrder,
    /// No kernel runs the layer.
    #[error("Failed to find a kernel that can implement the WNA16 linear layer. Reasons: {reasons}")]
    NoKernel {
        /// One line for each kernel.
        reasons: String,
    },
    /// `moe_wna16` was to read a checkpoint of another method.
    #[error("moe_wna16 only support gptq and awq.")]
    MoeWna16,
    /// A key has a value that vLLM would trip over later, without a text of its own.
    #[error("the quantization config: key `{key}`: expected {expected}, found {found}; correct the config")]
    Value {
        /// The key.
        key: String,
        /// The legal values.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// A pattern of `dynamic` cannot be used.
    #[error("the quantization config: rule `{rule}` of `dynamic`: expected a pattern that can be decided, found {found}; simplify it")]
    Pattern {
        /// The rule as written.
        rule: String,
        /// What is wrong.
        found: String,
    },
    /// The method is none of those whose modules are described here.
    #[error("method `{method}`: expected gptq or gptq_marlin, found another; its decisions on modules are not described here")]
    NotDescribed {
        /// The method.
        method: String,
    },
}
