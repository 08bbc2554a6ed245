//! What `/v1/inspect` says about the served model: what `inspect --json` and `doctor --json` print.

use super::super::options::{FolderArgs, isa_from_env};
use super::super::{doctor, inspect};
use billfish_server::Inspection;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Looks at the folder, or at the built-in model if none is named. The folder is opened anew for each of the two, so
/// that neither lists what the other met.
pub fn inspection(folder: FolderArgs, model: Option<PathBuf>) -> Inspection {
    Box::new(move || look(&folder, model.as_ref()).map_err(|e| format!("{e:#}")))
}

fn look(folder: &FolderArgs, model: Option<&PathBuf>) -> anyhow::Result<Value> {
    let open = || folder.open(model.map(PathBuf::as_path));
    Ok(json!({
        "inspect": inspect::object(&open()?, isa_from_env()?.as_deref())?,
        "doctor": doctor::object(&open()?),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::super::options::ZerosArg;
    use super::*;

    #[test]
    fn the_built_in_model_is_inspected_and_sound() {
        let found = inspection(FolderArgs::new(ZerosArg::Auto), None)().unwrap();
        assert_eq!(found["inspect"]["name"], billfish::BUILTIN_NAME);
        assert_eq!(found["inspect"]["modules"].as_array().unwrap().len(), 43);
        assert_eq!(found["doctor"]["sound"], true);
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let error = inspection(FolderArgs::new(ZerosArg::Auto), Some("no-such-folder".into()))().unwrap_err();
        assert!(error.contains("no-such-folder"), "{error}");
    }
}
