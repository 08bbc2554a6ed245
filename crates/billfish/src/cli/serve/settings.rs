//! Settings with their values: a flag wins over the environment, that over the file, that over the default.

use super::schema::{Kind, SETTINGS, Setting, Value, find};
use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Flag,
    Environment(String),
    File(String),
    Default,
    /// There is none.
    Unset,
}

/// The settings as given on the command line.
pub struct Args {
    given: Vec<(&'static Setting, Value)>,
    file: Option<PathBuf>,
}

/// Every setting with its value and where that comes from.
pub struct Settings {
    values: Vec<(&'static Setting, Option<Value>, Source)>,
    /// Names that were asked for.
    read: RefCell<BTreeSet<&'static str>>,
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = vec![];
        for setting in SETTINGS {
            let name = setting.name;
            let said = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
            let value = match setting.kind {
                Kind::Flag(_) if said(name) => Some(Value::Flag(true)),
                Kind::Flag(opposite) if said(opposite) => Some(Value::Flag(false)),
                Kind::Flag(_) => None,
                Kind::List => matches.get_many::<String>(name).map(|all| Value::List(all.cloned().collect())),
                _ => match matches.get_one::<String>(name).map(|text| setting.parse(text)) {
                    Some(Err(e)) => return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("--{name}: {e}"))),
                    value => value.and_then(Result::ok),
                },
            };
            given.extend(value.map(|v| (setting, v)));
        }
        Ok(Args { given, file: matches.get_one::<PathBuf>("config").cloned() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Args {
    fn augment_args(mut command: Command) -> Command {
        let config = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        command = command.arg(config.help("File with settings in TOML: the names are those of the flags"));
        for setting in SETTINGS {
            let mut help = setting.help.to_owned();
            if let Some(default) = setting.default.filter(|_| !matches!(setting.kind, Kind::Flag(_))) {
                help += &format!(" [default: {default}]");
            }
            if let Kind::Choice(names) = setting.kind {
                help += &format!(" [possible values: {}]", names().join(", "));
            }
            let arg = Arg::new(setting.name).help(help);
            let arg = match setting.kind {
                _ if setting.name == "model" => arg.value_name("MODEL"),
                Kind::Flag(opposite) => {
                    let no = Arg::new(opposite).long(opposite).action(ArgAction::SetTrue).hide(true);
                    command = command.arg(no.conflicts_with(setting.name));
                    arg.long(setting.name).action(ArgAction::SetTrue)
                }
                Kind::List => arg.long(setting.name).value_name(setting.value).action(ArgAction::Append),
                _ => arg.long(setting.name).value_name(setting.value),
            };
            command = command.arg(if setting.name == "threads" { arg.short('t') } else { arg });
        }
        let environment = "Every setting can also come from the environment (BILLFISH_MAX_NUM_SEQS for --max-num-seqs; commas part the \
                           entries of lists) or from the file; `billfish config print` shows which value holds.";
        command.after_help(environment)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Args {
    /// All settings. `environment` looks a variable up.
    pub fn resolve(&self, environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
        let file = self.file.as_deref().map(read_file).transpose()?;
        let mut values = vec![];
        for setting in SETTINGS {
            let variable = setting.variable();
            let (value, source) = if let Some((_, value)) = self.given.iter().find(|(s, _)| s.name == setting.name) {
                (Some(value.clone()), Source::Flag)
            } else if let Some(text) = environment(&variable).filter(|t| !t.is_empty()) {
                let value = setting.parse(&text).map_err(|e| anyhow::anyhow!("{variable}: {e}"))?;
                (Some(value), Source::Environment(variable))
            } else if let Some((_, value)) = file.iter().flatten().find(|(name, _)| name == setting.name) {
                let path = self.file.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
                let value = setting.read(value).map_err(|e| anyhow::anyhow!("{path}, key `{}`: {e}", setting.name))?;
                (Some(value), Source::File(path))
            } else if let Some(text) = setting.default {
                (Some(setting.parse(text).map_err(anyhow::Error::msg)?), Source::Default)
            } else {
                (None, Source::Unset)
            };
            values.push((setting, value, source));
        }
        Ok(Settings { values, read: RefCell::default() })
    }
}

/// The keys of a file. `_` stands for `-`, as TOML files often have it.
fn read_file(path: &Path) -> anyhow::Result<Vec<(String, toml::Value)>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{name}: the configuration cannot be read"))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| anyhow::anyhow!("{name}: expected TOML, found: {}", e.message()))?;
    let mut out = vec![];
    for (key, value) in table {
        let key = key.replace('_', "-");
        if find(&key).is_none() {
            bail!("{name}: there is no setting `{key}`; `billfish config print` lists them");
        }
        if out.iter().any(|(k, _)| *k == key) {
            bail!("{name}: `{key}` is there twice, once with `_`; remove one");
        }
        out.push((key, value));
    }
    Ok(out)
}

impl Settings {
    fn get(&self, name: &str) -> Option<&Value> {
        let (setting, value, _) = self.values.iter().find(|(s, _, _)| s.name == name)?;
        self.read.borrow_mut().insert(setting.name);
        value.as_ref()
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            Some(Value::List(list)) => list.clone(),
            _ => vec![],
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        self.get(name) == Some(&Value::Flag(true))
    }

    /// A count or a size.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::Number(n)) => Some(*n),
            _ => None,
        }
    }

    /// A count that has a default.
    pub fn count(&self, name: &str) -> usize {
        self.number(name).map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// A time; none for 0.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        match self.get(name) {
            Some(Value::Seconds(s)) if *s > 0.0 => Some(Duration::from_secs_f64(*s)),
            _ => None,
        }
    }

    /// As TOML, with a comment that says where each value comes from.
    pub fn toml(&self) -> String {
        let mut out = String::new();
        for (setting, value, source) in &self.values {
            let from = match source {
                Source::Flag => "command line".to_owned(),
                Source::Environment(variable) => variable.clone(),
                Source::File(path) => path.clone(),
                Source::Default => "default".into(),
                Source::Unset => "not set".into(),
            };
            let line = match value {
                None => format!("# {} =", setting.name),
                Some(value) => format!("{} = {}", setting.name, written(setting, value)),
            };
            out += &format!("{line}  # {from}\n");
        }
        out
    }

    /// Settings that nothing asked for.
    #[cfg(test)]
    pub fn unread(&self) -> Vec<&'static str> {
        SETTINGS.iter().map(|s| s.name).filter(|n| !self.read.borrow().contains(n)).collect()
    }
}

/// A value as TOML writes it: strings, numbers and arrays of strings look as they do in JSON.
fn written(setting: &Setting, value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::List(list) if setting.secret => vec!["…"; list.len()].into(),
        Value::List(list) => list.clone().into(),
        Value::Flag(flag) => (*flag).into(),
        Value::Number(n) => (*n).into(),
        Value::Seconds(s) => (*s).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    fn args(line: &[&str]) -> Result<Args, clap::Error> {
        let matches = Args::augment_args(Command::new("serve")).try_get_matches_from([&["serve"], line].concat())?;
        Args::from_arg_matches(&matches)
    }

    #[test]
    fn the_nearest_source_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "port = 3\nmax_num_seqs = 7\nkv-cache-memory = \"2GB\"\nstrict-params = true\napi-key = [\"a\"]\n").unwrap();
        let file = path.to_str().unwrap();
        let environment = |v: &str| (v == "BILLFISH_MAX_NUM_SEQS" || v == "BILLFISH_PORT").then(|| "5".to_owned());
        let s = args(&["--port", "4", "--config", file, "--no-strict-params", "DIR"]).unwrap().resolve(environment).unwrap();
        assert_eq!((s.count("port"), s.count("max-num-seqs"), s.number("kv-cache-memory")), (4, 5, Some(2_000_000_000)));
        assert_eq!((s.flag("strict-params"), s.text("model"), s.list("api-key")), (false, Some("DIR"), vec!["a".to_owned()]));
        let printed = s.toml();
        assert!(printed.contains("api-key = [\"…\"]") && printed.contains("max-num-seqs = 5  # BILLFISH_MAX_NUM_SEQS"), "{printed}");
        // what is printed can be read again
        printed.parse::<toml::Table>().unwrap();
    }

    #[test]
    fn wrong_values_name_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        for (text, word) in
            [("port = \"x\"", "port"), ("prot = 1", "prot"), ("port = ", "TOML"), ("max_waiting = 1\nmax-waiting = 2", "twice")]
        {
            std::fs::write(&path, text).unwrap();
            let e = args(&["--config", path.to_str().unwrap()]).unwrap().resolve(|_| None).err().unwrap().to_string();
            assert!(e.contains(word) && e.contains("a.toml"), "{e}");
        }
        let e = args(&[]).unwrap().resolve(|v| (v == "BILLFISH_PORT").then(|| "70000".into())).err().unwrap().to_string();
        assert!(e.contains("BILLFISH_PORT") && e.contains("65535"), "{e}");
        assert!(args(&["--max-num-seqs", "0"]).err().unwrap().to_string().contains("max-num-seqs"));
    }
}
