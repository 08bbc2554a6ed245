//! A program that was built without grammars.

use super::Form;
use crate::error::ApiError;
use billfish_engine::Constraint;
use billfish_text::Tokenizer;

/// No grammars.
pub(crate) struct Grammars;

impl Grammars {
    pub fn new(_: &Tokenizer, _: usize) -> Grammars {
        Grammars
    }

    pub fn compile(&self, form: &Form) -> Result<Box<dyn Constraint>, ApiError> {
        form.check_size()?;
        let field = form.field;
        Err(ApiError::unsupported(field, format!("`{field}`: this server was built without grammars (feature `grammar`)")))
    }
}
