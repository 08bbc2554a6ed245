//! What Marlin kernels can do: types of weights, group sizes, shapes.

use super::python::boolean;
use super::{MethodError, Platform};

/// Group sizes that Marlin has.
pub const MARLIN_GROUP_SIZES: [i64; 4] = [-1, 32, 64, 128];

/// A type of quantized weight: an integer, with a bias that stands for 0, or with zero points at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 4 bit, 0 is the code 8.
    Uint4b8,
    /// 8 bit, 0 is the code 128.
    Uint8b128,
    /// 4 bit with zero points.
    Uint4,
    /// 8 bit with zero points.
    Uint8,
}

impl WeightType {
    /// The type of a symmetric GPTQ checkpoint.
    pub(super) fn of_gptq(bits: i64, sym: bool) -> Option<Self> {
        match (bits, sym) {
            (4, true) => Some(WeightType::Uint4b8),
            (8, true) => Some(WeightType::Uint8b128),
            _ => None,
        }
    }

    /// Width of a code.
    pub fn bits(self) -> u32 {
        match self {
            WeightType::Uint4b8 | WeightType::Uint4 => 4,
            WeightType::Uint8b128 | WeightType::Uint8 => 8,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::Uint4b8 => "uint4b8",
            WeightType::Uint8b128 => "uint8b128",
            WeightType::Uint4 => "uint4",
            WeightType::Uint8 => "uint8",
        }
    }
}

/// Whether Marlin kernels of a platform have a type of weight and a group size.
///
/// # Errors
/// [`MethodError::MarlinType`] or [`MethodError::MarlinGroup`].
pub fn check_marlin(platform: Platform, weight: WeightType, group_size: i64, zero_points: bool) -> Result<(), MethodError> {
    let types: &[&str] = match platform {
        Platform::Cpu if zero_points => &["uint4"],
        Platform::Cpu => &["uint4b8"],
        Platform::Cuda { capability: 75.. } if zero_points => &["uint4"],
        Platform::Cuda { capability: 75.. } => &["uint4b8", "uint8b128", "float8_e4m3fn", "float4_e2m1f"],
        Platform::Cuda { .. } | Platform::Rocm => &[],
    };
    if !types.contains(&weight.name()) {
        let types: Vec<String> = types.iter().map(|name| format!("ScalarType.{name}")).collect();
        return Err(MethodError::MarlinType {
            weight: weight.name().into(),
            types: format!("[{}]", types.join(", ")),
            group_size,
            capability: platform.capability().map_or(-1, i64::from),
            zero_points: boolean(zero_points),
        });
    }
    if MARLIN_GROUP_SIZES.contains(&group_size) { Ok(()) } else { Err(MethodError::MarlinGroup { group_size }) }
}

/// Whether Marlin's tiles fit a rank's part of a matrix whose whole has `input_size` rows.
///
/// # Errors
/// [`MethodError::MarlinColumns`], [`MethodError::MarlinRows`] or [`MethodError::MarlinGroups`].
pub fn check_marlin_shape(columns: usize, rows: usize, input_size: usize, group_size: i64) -> Result<(), MethodError> {
    if !columns.is_multiple_of(64) {
        return Err(MethodError::MarlinColumns { columns });
    }
    if !rows.is_multiple_of(128) {
        return Err(MethodError::MarlinRows { rows });
    }
    match usize::try_from(group_size) {
        Ok(group) if group < input_size && !rows.is_multiple_of(group) => Err(MethodError::MarlinGroups { rows, group_size }),
        _ => Ok(()),
    }
}

/// Whether the Marlin kernel for experts takes a layer; otherwise `moe_wna16` does.
pub fn check_marlin_moe(platform: Platform, shape: super::MoeShape, group_size: i64) -> bool {
    let unit = usize::try_from(group_size).map_or(64, |group| group.max(64));
    platform != Platform::Rocm
        && shape.hidden_size.is_multiple_of(128)
        && shape.intermediate_per_rank.is_multiple_of(unit)
        && MARLIN_GROUP_SIZES.contains(&group_size)
        && !shape.router_weight_on_input
        && shape.silu
}
