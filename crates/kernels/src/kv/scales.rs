//! Scales that a model brings for its keys and values.

/// The scales of the keys and values of one layer, one for each KV head. A number is stored as the code nearest to it over
/// its head's scale, the largest if that is out of range, and read as the code's value times the scale, which is nowhere
/// rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct KvScales {
    /// Of keys. All are finite and above zero.
    pub keys: Vec<f32>,
    /// Of values. All are finite and above zero.
    pub values: Vec<f32>,
}

impl KvScales {
    /// The scales of the keys and of the values of a head.
    pub(crate) fn of(&self, kv_head: usize) -> [f32; 2] {
        [self.keys[kv_head], self.values[kv_head]]
    }
}
