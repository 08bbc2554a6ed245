//! Packed caches: the same bits from the file as from the folder, no tensor read where the file is there, and no file that is
//! wrong in any way believed.

use billfish_formats::{Checkpoint, ZeroLabel};
use billfish_kernels::{Backend, Isa};
use billfish_models::{LoadOptions, Logits, Model, ModelError, Scratch};
use billfish_quantize::synth;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder and a place for its caches.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(spec: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        synth(&spec.parse().unwrap(), &dir.path().join("model"), 1, false, 1, &[], &mut |_, _| ()).unwrap();
        Self { dir }
    }

    /// A copy of a fixture.
    fn of(fixture: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(fixture);
        for file in fs::read_dir(from).unwrap().map(|e| e.unwrap().path()) {
            fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.dir.path().join("model")).unwrap()
    }

    fn shard(&self) -> PathBuf {
        self.dir.path().join("model/model.safetensors")
    }

    fn caches(&self) -> PathBuf {
        self.dir.path().join("caches")
    }

    fn load(&self) -> Model {
        self.cached(&self.open(), LoadOptions::default())
    }

    fn cached(&self, checkpoint: &Checkpoint, options: LoadOptions) -> Model {
        Model::load_cached(checkpoint, backend(), options, &self.caches(), &mut |_| ()).unwrap()
    }

    fn plain(&self) -> Model {
        Model::load(&self.open(), backend(), LoadOptions::default(), &mut |_| ()).unwrap()
    }

    /// Files with this ending among the caches.
    fn files(&self, end: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.caches()).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|f| f.to_string_lossy().ends_with(end));
        files.sort();
        files
    }
}

fn backend() -> Arc<Backend> {
    Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap())
}

/// The bits of some logits.
fn bits(model: &Model) -> Vec<u32> {
    let mut scratch = Scratch::default();
    let logits = model.forward(&mut model.new_cache(64), &[1, 5, 2, 9, 40, 3, 7], Logits::All, &mut scratch).unwrap();
    logits.iter().map(|v| v.to_bits()).collect()
}

fn made(model: &Model) -> bool {
    model.cache().unwrap().made
}

/// What reports say about the modules.
fn modules(model: &Model) -> String {
    format!("{:?} {:?}", model.modules(), model.head_rounding())
}

#[test]
fn the_same_bits_from_the_folder_and_from_the_cache() {
    for spec in ["tiny:w4g32", "tiny:w3g32:asym:act", "tiny:w8g16:act", "tiny:w2g64:asym:v2"] {
        let place = Place::new(spec);
        let (first, plain) = (place.open(), place.plain());
        let one = place.cached(&first, LoadOptions::default());
        let second = place.open();
        let two = place.cached(&second, LoadOptions::default());
        assert!(made(&one) && !made(&two) && one.cache().unwrap().notes.is_empty() && two.cache().unwrap().notes.is_empty(), "{spec}");
        assert!(bits(&plain) == bits(&one) && bits(&one) == bits(&two), "{spec}");
        assert_eq!(modules(&plain), modules(&two), "{spec}");
        assert_eq!((first.warnings(), first.unread()), (second.warnings(), second.unread()), "{spec}");
        assert_eq!(place.files(".packed").len(), 1);
        assert!(place.files(".draft").is_empty());
    }
}

#[test]
fn what_changes_the_weights_has_a_file_of_its_own() {
    let place = Place::of("llama-w4-asym-g64");
    let rounded = LoadOptions { quantize_head: true, ..LoadOptions::default() };
    let before = place.cached(&place.open(), rounded);
    let forced = place.open().with_zeros(Some(ZeroLabel::V2)).unwrap();
    let other = place.cached(&forced, LoadOptions::default());
    assert!(made(&before) && made(&other) && made(&place.load()));
    assert_eq!(place.files(".packed").len(), 3);
    let after = place.cached(&place.open(), rounded);
    assert!(!made(&after) && after.head_rounding().is_some());
    assert!(modules(&before) == modules(&after) && bits(&before) == bits(&after));
    // the warning about zero points that are read against their evidence comes again
    let again = place.open().with_zeros(Some(ZeroLabel::V2)).unwrap();
    assert!(!made(&place.cached(&again, LoadOptions::default())));
    assert!(!forced.warnings().is_empty());
    assert_eq!(forced.warnings(), again.warnings());
}

/// The shard is emptied of all but its header, and the record says that this is what was hashed: whoever reads a tensor
/// then, fails.
#[test]
fn a_second_start_reads_no_tensor() {
    let place = Place::new("tiny:w4g32:act");
    let expected = bits(&place.load());
    let checkpoint = place.open();
    let header = 8 + u64::from_le_bytes(fs::read(place.shard()).unwrap()[..8].try_into().unwrap());
    fs::File::options().write(true).open(place.shard()).unwrap().set_len(header).unwrap();
    let record = &place.files(".json")[0];
    let mut value: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    value["stamps"] = json!(checkpoint.stamps().unwrap().unwrap());
    fs::write(record, value.to_string()).unwrap();
    assert!(Model::load(&checkpoint, backend(), LoadOptions::default(), &mut |_| ()).is_err());
    let model = place.cached(&checkpoint, LoadOptions::default());
    assert!(!made(&model) && bits(&model) == expected);
}

#[test]
fn other_times_are_looked_into_and_other_contents_are_packed_again() {
    let place = Place::new("tiny:w4g32");
    let before = bits(&place.load());
    let record = fs::read(&place.files(".json")[0]).unwrap();
    // written again as it was
    let shard = fs::read(place.shard()).unwrap();
    fs::write(place.shard(), &shard).unwrap();
    let model = place.load();
    assert!(!made(&model) && bits(&model) == before && model.cache().unwrap().notes.is_empty());
    assert_ne!(fs::read(&place.files(".json")[0]).unwrap(), record, "the new times are remembered");
    // another file of the same size
    let info = place.open().info("model.layers.0.mlp.up_proj.qweight").unwrap().clone();
    let mut other = shard.clone();
    other[info.offset as usize..][..info.bytes].reverse();
    fs::write(place.shard(), &other).unwrap();
    let model = place.load();
    assert!(made(&model) && bits(&model) == bits(&place.plain()) && bits(&model) != before);
    assert!(model.cache().unwrap().notes[0].contains("are others than when they were packed"));
    assert!(!made(&place.load()));
    // and back: its file is still there
    fs::write(place.shard(), &shard).unwrap();
    let model = place.load();
    assert!(!made(&model) && bits(&model) == before);
}

/// Damages a cache in one way: the next load says so, makes it again, and gives the right bits.
/// Returns what was said.
fn refused(place: &Place, expected: &[u32], what: &str, damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let path = &place.files(".packed")[0];
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    damage(&mut bytes);
    assert!(bytes != whole, "{what} changes nothing");
    // a new file, as the old one is mapped by models that may be alive
    fs::remove_file(path).unwrap();
    fs::write(path, &bytes).unwrap();
    let model = place.load();
    let usage = model.cache().unwrap();
    let name = path.display().to_string();
    assert!(usage.made && usage.notes.len() == 1 && usage.notes[0].contains(&name), "{what}: {usage:?}");
    assert!(bits(&model) == expected, "{what}");
    assert_eq!(fs::read(path).unwrap(), whole, "{what}");
    usage.notes[0].clone()
}

#[test]
fn damage_is_named_and_made_good() {
    let place = Place::new("tiny:w4g32:act");
    let expected = bits(&place.load());
    let length = fs::metadata(&place.files(".packed")[0]).unwrap().len() as usize;
    for at in (0..72).chain([length - 1, length - 100, length - 2000]) {
        refused(&place, &expected, &format!("byte {at}"), |bytes| bytes[at] ^= 0x10);
    }
    for at in [4096, length / 2] {
        refused(&place, &expected, &format!("byte {at} of the weights"), |bytes| bytes[at] ^= 1);
    }
    for left in [0, 1, 71, 72, 4096, length / 2, length - 1] {
        refused(&place, &expected, &format!("{left} bytes"), |bytes| bytes.truncate(left));
    }
    refused(&place, &expected, "a byte too many", |bytes| bytes.push(b' '));
    refused(&place, &expected, "another layout", |bytes| bytes[20] += 1);
}

/// Changes the table, and gives it its hash.
fn edit(bytes: &mut Vec<u8>, change: &dyn Fn(&mut Value)) {
    let start = u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
    let mut table: Value = serde_json::from_slice(&bytes[start..]).unwrap();
    change(&mut table);
    let table = table.to_string();
    bytes.truncate(start);
    bytes.extend(table.as_bytes());
    bytes[32..40].copy_from_slice(&(table.len() as u64).to_le_bytes());
    bytes[40..72].copy_from_slice(&Sha256::digest(table.as_bytes()));
}

/// A table with the right hash that is not what a table should be: nothing in it is believed.
#[test]
fn hostile_tables_are_refused() {
    let place = Place::new("tiny:w4g32:act");
    let expected = bits(&place.load());
    const UP: &str = "model.layers.0.mlp.up_proj";
    let up = |t: &Value, key: &str| t["weights"][UP]["quantized"][key].as_u64().unwrap() as usize;
    let data = |t: &Value| t["weights"][UP]["data"].as_u64().unwrap() as usize;
    let huge = json!(u64::MAX);
    type Change<'a> = (&'a str, Box<dyn Fn(&mut Value) + 'a>);
    let set = |pointer: &'static str, value: Value| -> Change<'_> {
        (pointer, Box::new(move |t: &mut Value| *t.pointer_mut(pointer).unwrap() = value.clone()))
    };
    let changes: Vec<Change<'_>> = vec![
        set("/weights/model.layers.0.mlp.up_proj/in_features", json!(0)),
        set("/weights/model.layers.0.mlp.up_proj/in_features", json!(1)),
        set("/weights/model.layers.0.mlp.up_proj/in_features", json!(4_000_000_000u64)),
        set("/weights/model.layers.0.mlp.up_proj/in_features", huge.clone()),
        set("/weights/model.layers.0.mlp.up_proj/out_features", huge.clone()),
        set("/weights/model.layers.0.mlp.up_proj/dtype", json!("F32")),
        set("/weights/model.layers.0.mlp.up_proj/dtype", json!("I32")),
        set("/weights/model.layers.0.mlp.up_proj/data", json!(100_000)),
        set("/weights/model.layers.0.mlp.up_proj/data", json!(0)),
        set("/weights/model.layers.0.mlp.up_proj/bias", json!(0)),
        set("/weights/model.layers.0.mlp.up_proj/quantized", Value::Null),
        set("/weights/model.layers.0.mlp.up_proj/quantized/bits", json!(8)),
        set("/weights/model.layers.0.mlp.up_proj/quantized/bits", json!(31)),
        set("/weights/model.layers.0.mlp.up_proj/quantized/zero_bytes", json!(2)),
        set("/weights/model.layers.0.mlp.up_proj/quantized/zero_bytes", json!(7)),
        set("/rows", json!({"dtype": "BF16", "shape": [u64::MAX, 2], "data": 0})),
        set("/identity/files_sha256", json!("0")),
        set("/warnings", json!([{"kind": "no kind", "message": "", "subjects": []}])),
        set("/vectors", json!({})),
        set("/weights", json!({})),
        ("not an object", Box::new(|t| *t = json!([]))),
        ("an unknown key", Box::new(|t| t["more"] = json!(1))),
        (
            "the permutation of fewer rows",
            Box::new(|t| {
                let p = up(t, "permutation");
                let length = t["sections"][p]["length"].as_u64().unwrap();
                t["sections"][p]["length"] = json!(length - 4);
            }),
        ),
        (
            "groups as the permutation",
            Box::new(|t| {
                let groups = up(t, "group_rows");
                t["weights"][UP]["quantized"]["permutation"] = json!(groups);
            }),
        ),
        (
            "codes as the permutation",
            Box::new(|t| {
                let (p, codes) = (up(t, "permutation"), data(t));
                t["sections"][p]["offset"] = t["sections"][codes]["offset"].clone();
            }),
        ),
        (
            "the permutation as groups",
            Box::new(|t| {
                let p = up(t, "permutation");
                t["weights"][UP]["quantized"]["group_rows"] = json!(p);
            }),
        ),
        (
            "codes off a line",
            Box::new(|t| {
                let codes = data(t);
                let offset = t["sections"][codes]["offset"].as_u64().unwrap();
                t["sections"][codes]["offset"] = json!(offset + 4);
            }),
        ),
        (
            "codes behind the end",
            Box::new(|t| {
                let codes = data(t);
                t["sections"][codes]["offset"] = json!(u64::MAX - 63);
            }),
        ),
        (
            "codes in the head",
            Box::new(|t| {
                let codes = data(t);
                t["sections"][codes]["offset"] = json!(0);
            }),
        ),
        (
            "fewer codes",
            Box::new(|t| {
                let codes = data(t);
                let length = t["sections"][codes]["length"].as_u64().unwrap();
                t["sections"][codes]["length"] = json!(length - 64);
            }),
        ),
        (
            "a norm of another size",
            Box::new(|t| {
                let p = up(t, "permutation");
                let norms = t["vectors"].as_object_mut().unwrap();
                norms.values_mut().for_each(|v| *v = json!(p + 100_000));
            }),
        ),
        (
            "no head",
            Box::new(|t| {
                let weights = t["weights"].as_object_mut().unwrap();
                weights.shift_remove("lm_head");
                weights.shift_remove("model.embed_tokens");
            }),
        ),
    ];
    for (what, change) in changes {
        let said = refused(&place, &expected, what, |bytes| edit(bytes, &change));
        // it is not the hash of the weights that saves us
        assert!(!said.contains("others than were packed"), "{what}: {said}");
    }
}

#[test]
fn a_cache_that_was_touched_is_hashed_once() {
    let place = Place::new("tiny:w4g32");
    let expected = bits(&place.load());
    let (path, record) = (place.files(".packed").remove(0), place.files(".json").remove(0));
    let before = fs::read(&record).unwrap();
    // the same bytes in another file
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, whole).unwrap();
    let model = place.load();
    assert!(!made(&model) && bits(&model) == expected && model.cache().unwrap().notes.is_empty());
    let after = fs::read(&record).unwrap();
    assert!(after != before && !made(&place.load()) && fs::read(&record).unwrap() == after);
    // without a record all is hashed, and found whole
    fs::remove_file(&record).unwrap();
    assert!(!made(&place.load()) && fs::read(&record).unwrap() == after);
}

#[test]
fn two_at_once_leave_one_whole_file() {
    let place = Place::new("tiny:w4g32");
    let expected = bits(&place.plain());
    std::thread::scope(|s| {
        let loads: Vec<_> = (0..4).map(|_| s.spawn(|| bits(&place.load()))).collect();
        loads.into_iter().for_each(|l| assert!(l.join().unwrap() == expected));
    });
    let model = place.load();
    assert!(!made(&model) && bits(&model) == expected && place.files(".packed").len() == 1 && place.files(".draft").is_empty());
}

#[test]
fn what_cannot_be_is_an_error() {
    let place = Place::new("tiny:w4g32");
    // a file where the folder should be
    fs::write(place.caches(), "").unwrap();
    let found = Model::load_cached(&place.open(), backend(), LoadOptions::default(), &place.caches(), &mut |_| ());
    let Err(ModelError::Cache { path, .. }) = found else { panic!("a file is no folder") };
    assert_eq!(Path::new(&path), place.caches());
    // weights that are on no disk
    let memory = Checkpoint::from_memory("m", &[("config.json", b"{}"), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")]).unwrap();
    let found = Model::load_cached(&memory, backend(), LoadOptions::default(), place.dir.path(), &mut |_| ());
    assert!(matches!(found, Err(ModelError::Cache { reason, .. }) if reason.contains("no folder on disk")));
}
