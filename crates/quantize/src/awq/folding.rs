//! The factors of a layer: which weights they multiply, and what is divided by them instead.
//!
//! Nothing is lost beyond the rounding that is to come. What stays dense is divided or multiplied by powers of two; where a
//! norm or a bias rounds, the factor is what it was before over what is stored of it now.

use super::stored::Stored;
use crate::QuantizeError;
use crate::report::Scaling;
use crate::workspace::Tensors;
use billfish_formats::{BiasRule, Checkpoint, LinearWeight};
use billfish_kernels::{PackedDense, Weight};
use billfish_models::{FoldSite, Linear, LoneLayer, Maker};
use billfish_tensor::DenseTensor;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What became of the tensors of a layer.
#[derive(Default)]
pub struct Folding {
    /// What the weights of a module are multiplied by, input by input.
    inputs: BTreeMap<String, Vec<f64>>,
    /// What they are divided by, output by output.
    outputs: BTreeMap<String, Vec<f64>>,
    /// Dense tensors that changed, by name.
    stored: BTreeMap<String, Stored>,
    /// Dense modules among them.
    dense: BTreeMap<String, Linear>,
    notes: BTreeMap<String, Scaling>,
}

/// A site and the dense tensors that have to take a part of its factors.
pub struct Place<'a> {
    site: &'a FoldSite,
    /// By name, `[channels, ...]`: what is divided.
    divided: Vec<(String, Stored)>,
    /// `[N, K]`: what has its columns multiplied.
    multiplied: Vec<(String, Stored)>,
    /// Modules that stay dense. With one of them only powers of two can be had.
    dense: Vec<&'a Linear>,
}

impl Place<'_> {
    /// The factors that there can be in place of those that are wanted: 1 for a channel that no reader sees.
    pub fn storable(&self, wanted: &[f64]) -> Vec<f64> {
        let k = self.site.readers.first().map_or(0, |(_, l)| l.in_features);
        let mut scales = vec![1.0; wanted.len()];
        for c in (0..k).map(|i| self.site.maker.channel(i)) {
            scales[c] = match self.dense.is_empty() {
                // a norm or a bias decides, if there is one
                true => self.divided.first().map_or(wanted[c], |(_, t)| t.ratio(c, wanted[c])),
                false => wanted[c].log2().round().exp2(),
            };
        }
        if self.dense.is_empty() {
            return scales;
        }
        for (c, s) in scales.iter_mut().enumerate() {
            if !self.divided.iter().all(|(_, t)| t.divides(c, *s)) {
                *s = 1.0;
            }
        }
        for (input, c) in (0..k).map(|i| (i, self.site.maker.channel(i))) {
            if !self.multiplied.iter().all(|(_, t)| t.multiplies(input, scales[c])) {
                scales[c] = 1.0;
            }
        }
        scales
    }
}

impl Folding {
    /// The dense tensors of a site, as they are by now. `dense` says which of its modules are not quantized.
    ///
    /// # Errors
    /// [`QuantizeError`] if one cannot be read.
    pub fn place<'a>(&self, source: &Checkpoint, site: &'a FoldSite, dense: &dyn Fn(&Linear) -> bool) -> Result<Place<'a>, QuantizeError> {
        let tensor = |name: String, shape: &[usize]| -> Result<(String, Stored), QuantizeError> {
            let known = self.stored.get(&name).cloned();
            let stored = known.map_or_else(|| Stored::read(source, &name, shape), Ok)?;
            Ok((name, stored))
        };
        let weight = |l: &Linear| tensor(format!("{}.weight", l.name), &[l.out_features, l.in_features]);
        let mut place = Place { site, divided: vec![], multiplied: vec![], dense: vec![] };
        match &site.maker {
            Maker::Norm(name, size) => place.divided.push(tensor(format!("{name}.weight"), &[*size])?),
            Maker::Linear { linear, .. } => {
                if linear.bias {
                    place.divided.push(tensor(format!("{}.bias", linear.name), &[linear.out_features])?);
                }
                if dense(linear) {
                    place.divided.push(weight(linear)?);
                    place.dense.push(linear);
                }
            }
        }
        for (_, reader) in site.readers.iter().filter(|(group, l)| group.is_none() || dense(l)) {
            place.multiplied.push(weight(reader)?);
            place.dense.push(reader);
        }
        Ok(place)
    }

    /// Folds factors, which must be storable, at a place.
    pub fn take(&mut self, place: Place<'_>, scales: &[f64]) {
        let Place { site, divided, multiplied, dense } = place;
        let of_input = |i: usize| scales[site.maker.channel(i)];
        for (name, mut t) in divided {
            t.divide(scales);
            self.stored.insert(name, t);
        }
        for (name, mut t) in multiplied {
            t.multiply(of_input);
            self.stored.insert(name, t);
        }
        let is_dense = |l: &Linear| dense.iter().any(|d| d.name == l.name);
        for (_, reader) in site.readers.iter().filter(|(_, l)| !is_dense(l)) {
            self.inputs.insert(reader.name.clone(), (0..reader.in_features).map(of_input).collect());
        }
        if let Maker::Linear { linear, .. } = &site.maker
            && !is_dense(linear)
        {
            self.outputs.insert(linear.name.clone(), scales.to_vec());
        }
        self.dense.extend(dense.into_iter().map(|l| (l.name.clone(), l.clone())));
    }

    /// The factors of a quantized module's inputs, and of its outputs; none where all are 1.
    pub fn scales(&self, module: &str) -> [Option<&[f64]>; 2] {
        [&self.inputs, &self.outputs].map(|of| of.get(module).map(Vec::as_slice))
    }

    /// The weight of a quantized module with its factors, of that of the source, `[N, K]`.
    pub fn weight<'a>(&self, l: &Linear, weight: &'a [f32]) -> Cow<'a, [f32]> {
        let [inputs, outputs] = self.scales(&l.name);
        if inputs.is_none() && outputs.is_none() {
            return weight.into();
        }
        let of = |(at, &w): (usize, &f32)| {
            let (i, c) = (at % l.in_features, at / l.in_features);
            (f64::from(w) * inputs.map_or(1.0, |s| s[i]) / outputs.map_or(1.0, |s| s[c])) as f32
        };
        weight.iter().enumerate().map(of).collect()
    }

    /// The bias of a module, if it changed.
    pub fn bias(&self, l: &Linear) -> Option<Vec<f32>> {
        self.stored.get(&format!("{}.bias", l.name)).map(|t| t.values().to_vec())
    }

    /// What is known of the inputs of a module.
    pub fn note(&self, module: &str) -> Option<&Scaling> {
        self.notes.get(module)
    }

    pub(super) fn remember(&mut self, module: &str, note: Scaling) {
        self.notes.insert(module.into(), note);
    }

    /// Changes the norms and the dense modules of a layer.
    ///
    /// # Errors
    /// [`QuantizeError`] if a bias cannot be read.
    pub fn apply(&self, source: &Checkpoint, layer: &mut LoneLayer) -> Result<(), QuantizeError> {
        for (name, t) in &self.stored {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let Some(l) = self.dense.get(module) else {
                layer.replace_norm(module, t.values());
                continue;
            };
            let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
            let LinearWeight::Dense { bias, .. } = source.linear(module, l.in_features, l.out_features, rule)? else { continue };
            let wrong = |e: String| QuantizeError::setting(module, "a matrix", e, "this is a defect of the program; report it");
            let weight = DenseTensor::new(t.dtype(), t.shape().to_vec(), t.bytes()).map_err(|e| wrong(e.to_string()))?;
            let packed = PackedDense::new(&weight, self.bias(l).or(bias)).map_err(|e| wrong(e.to_string()))?;
            layer.replace(module, Weight::Dense(Arc::new(packed)));
        }
        Ok(())
    }

    /// The dense tensors that changed.
    pub(crate) fn tensors(&self) -> Tensors {
        self.stored.iter().map(|(name, t)| t.tensor(name)).collect()
    }
}
