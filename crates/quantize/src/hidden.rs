//! The rows between two layers, some whole sequences at a time: in memory, or in the file in which they are kept anyway.

use crate::QuantizeError;
use crate::workspace::{RowsWriter, Workspace};
use billfish_formats::{Checkpoint, Source};
use billfish_models::DecoderConfig;
use std::borrow::Cow;
use std::ops::Range;

/// Tokens that run at a time: whole sequences, as many as fit.
pub(crate) const BATCH: usize = 4096;

/// The rows that go into a layer.
pub(crate) struct Hidden {
    /// Numbers of a row.
    width: usize,
    place: Place,
}

enum Place {
    Memory(Vec<f32>),
    File(Source),
}

impl Hidden {
    /// What the embedding of `source` makes of `samples`. They are written to `part` of the workspace unless they are to be
    /// `held` in memory.
    pub fn embedded(
        source: &Checkpoint,
        config: &DecoderConfig,
        samples: &[Vec<u32>],
        (workspace, part): (&Workspace, &str),
        held: bool,
    ) -> Result<Self, QuantizeError> {
        let width = config.hidden_size;
        if held {
            return Ok(Self { width, place: Place::Memory(billfish_models::embed(source, config, &samples.concat())?) });
        }
        let mut writer = workspace.rows_writer(part)?;
        let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
        for (sequences, _) in batches(&lengths) {
            writer.write(&billfish_models::embed(source, config, &samples[sequences].concat())?)?;
        }
        writer.finish()?;
        Self::kept(workspace, part, width, false)
    }

    /// What came out of a finished part.
    pub fn kept(workspace: &Workspace, part: &str, width: usize, held: bool) -> Result<Self, QuantizeError> {
        let file = Source::open(&workspace.rows_path(part))?;
        let place = if held { Place::Memory(read(&file, 0..file.len() / 4)?) } else { Place::File(file) };
        Ok(Self { width, place })
    }

    /// The rows of some tokens.
    pub fn read(&self, tokens: &Range<usize>) -> Result<Cow<'_, [f32]>, QuantizeError> {
        let (start, end) = (tokens.start * self.width, tokens.end * self.width);
        match &self.place {
            Place::Memory(rows) => Ok(Cow::Borrowed(&rows[start..end])),
            Place::File(file) => Ok(Cow::Owned(read(file, start as u64..end as u64)?)),
        }
    }

    /// Replaces all rows by what `run` makes of them, some sequences at a time, and keeps them as `part`. Returns the hash of
    /// the file.
    pub fn advance(
        &mut self,
        lengths: &[usize],
        workspace: &Workspace,
        part: &str,
        run: &mut dyn FnMut(&mut [f32], &[usize]),
    ) -> Result<String, QuantizeError> {
        let mut writer: RowsWriter = workspace.rows_writer(part)?;
        for (sequences, tokens) in batches(lengths) {
            let mut rows = self.read(&tokens)?.into_owned();
            run(&mut rows, &lengths[sequences]);
            writer.write(&rows)?;
            if let Place::Memory(all) = &mut self.place {
                all[tokens.start * self.width..tokens.end * self.width].copy_from_slice(&rows);
            }
        }
        let hash = writer.finish()?;
        if let Place::File(file) = &mut self.place {
            *file = Source::open(&workspace.rows_path(part))?;
        }
        Ok(hash)
    }
}

/// Numbers of a file.
fn read(file: &Source, at: Range<u64>) -> Result<Vec<f32>, QuantizeError> {
    const PIECE: usize = 1 << 18;
    let mut out = Vec::with_capacity((at.end - at.start) as usize);
    let mut bytes = vec![0; 4 * PIECE.min(out.capacity())];
    for from in at.clone().step_by(PIECE) {
        let piece = &mut bytes[..4 * (at.end - from).min(PIECE as u64) as usize];
        file.read_at(from * 4, piece)?;
        out.extend(piece.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
    }
    Ok(out)
}

/// Whole sequences of about [`BATCH`] tokens at a time: which sequences, and which of all tokens.
pub(crate) fn batches(lengths: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut out: Vec<(Range<usize>, Range<usize>)> = vec![];
    let mut token = 0;
    for (i, len) in lengths.iter().enumerate() {
        let end = token + len;
        match out.last_mut().filter(|(_, tokens)| end - tokens.start <= BATCH) {
            Some((sequences, tokens)) => (sequences.end, tokens.end) = (i + 1, end),
            None => out.push((i..i + 1, token..end)),
        }
        token = end;
    }
    out
}
