//! What is wanted, from flags; what is missing is asked for, if there is somebody to ask.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::distribution::{FormerHere, Place};
use super::former::Former;
use super::refused::Refused;
use super::wanted::Wanted;
use crate::cli::install::{Distribution, InitArgs};
use crate::config::{Config, ConfigError};
use crate::key_stores::KINDS;

/// Takes the flags, and asks for the rest.
///
/// # Errors
/// Without a terminal: every flag that is missing. Else what cannot be used as it is.
pub(super) fn gather(args: &InitArgs) -> Result<Wanted> {
    let mut asked = Asked { missing: Vec::new(), is_terminal: std::io::stdin().is_terminal() };
    let distribution = match args.distribution {
        Some(distribution) => Some(distribution),
        None => asked.distribution()?,
    };
    let cluster = asked.text(args.cluster.as_deref(), "--cluster NAME", "Name of the cluster (never changed later)")?;
    let kind = asked.text(args.kek.as_deref(), "--kek KIND", &format!("Kind of KEK ({})", KINDS.join(", ")))?;
    let Some(distribution) = distribution else { return Err(asked.refusal()) };
    let place = Place::new(distribution, args.unit)?;
    let image = if place.needs_image() {
        Some(asked.text(args.image.as_deref(), "--image IMAGE", "Image of the plugin, best by digest")?)
    } else {
        None
    };
    let root = args.root.clone().unwrap_or_else(|| place.default_root().into());
    let former = asked.former(args, &place, &root)?;
    let control_planes = asked.control_planes(args)?;
    if !asked.missing.is_empty() {
        return Err(asked.refusal());
    }
    let mut wanted = Wanted {
        place,
        cluster,
        settings: settings(&args.set, &kind)?,
        kind,
        resources: args.resources.clone(),
        former,
        is_new: args.new_cluster,
        control_planes,
        image,
        provider_name: args.provider_name.clone(),
        root,
    };
    asked.settings(&mut wanted)?;
    Ok(wanted)
}

/// `FIELD=VALUE`, dots between the names of tables; for a keyring, its usual file.
fn settings(set: &[String], kind: &str) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    if kind == "keyring" {
        settings.insert("file".into(), "/etc/kube-envelope/keyring.json".into());
    }
    for one in set {
        insert(&mut settings, one)?;
    }
    Ok(settings)
}

fn insert(settings: &mut Map<String, Value>, one: &str) -> Result<()> {
    let Some((path, value)) = one.split_once('=').filter(|(path, _)| !path.is_empty()) else {
        bail!("--set {one}: write FIELD=VALUE, for example key=alias/kube-envelope");
    };
    let value: Value = serde_saphyr::from_str(value)
        .map_err(|error| anyhow::anyhow!("--set {one}: the value is not YAML: {}", error.without_snippet()))?;
    let mut table = settings;
    let mut names: Vec<_> = path.split('.').collect();
    let last = names.pop().unwrap_or_default();
    for name in names {
        let inner = table.entry(name).or_insert_with(|| Value::Object(Map::new()));
        let Some(inner) = inner.as_object_mut() else { bail!("--set {one}: {name} already has a value") };
        table = inner;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

struct Asked {
    missing: Vec<String>,
    is_terminal: bool,
}

impl Asked {
    fn refusal(&self) -> anyhow::Error {
        Refused(format!(
            "{} {} missing, and there is no terminal to ask for it",
            self.missing.join(", "),
            if self.missing.len() == 1 { "is" } else { "are" }
        ))
        .into()
    }

    fn ask(question: &str) -> Result<String> {
        eprint!("{question}: ");
        std::io::stderr().flush()?;
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            bail!("the input ended before all questions were answered");
        }
        Ok(line.trim().to_owned())
    }

    fn text(&mut self, given: Option<&str>, flag: &str, question: &str) -> Result<String> {
        if let Some(given) = given {
            return Ok(given.to_owned());
        }
        // Missing flags are collected, so that a script is told all of them at once.
        if !self.is_terminal {
            self.missing.push(flag.to_owned());
            return Ok(String::new());
        }
        loop {
            let answer = Self::ask(question)?;
            if !answer.is_empty() {
                return Ok(answer);
            }
        }
    }

    fn distribution(&mut self) -> Result<Option<Distribution>> {
        let names: Vec<_> = Distribution::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
        let names = names.iter().map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>().join(", ");
        loop {
            let answer = self.text(None, "--for DISTRIBUTION", &format!("The control plane is run by ({names})"))?;
            if !self.is_terminal {
                return Ok(None);
            }
            if let Ok(distribution) = Distribution::from_str(&answer, true) {
                return Ok(Some(distribution));
            }
        }
    }

    fn control_planes(&mut self, args: &InitArgs) -> Result<u16> {
        if let Some(number) = args.control_planes {
            return Ok(number);
        }
        if !self.is_terminal {
            return Ok(1);
        }
        loop {
            let answer = Self::ask("Number of control-plane nodes [1]")?;
            match if answer.is_empty() { Ok(1) } else { answer.parse() } {
                Ok(number) if (1..=99).contains(&number) => return Ok(number),
                _ => eprintln!("a whole number from 1 to 99"),
            }
        }
    }

    /// The former configuration: never taken for none unless that was seen or said.
    fn former(&mut self, args: &InitArgs, place: &Place, root: &Path) -> Result<Former> {
        let of = |file: &Path| if file == Path::new("none") { Ok(Former::default()) } else { Former::read(file) };
        if args.new_cluster {
            return Ok(Former::default());
        }
        if let Some(file) = &args.former {
            return of(file);
        }
        match place.former_on_this_node(root)? {
            FormerHere::Is(file) => return Former::read(&file),
            FormerHere::Nothing => return Ok(Former::default()),
            FormerHere::Unknown => {}
        }
        let hint = format!("--former FILE ({}; or none, or --new-cluster)", place.former_hint());
        let question = format!("EncryptionConfiguration in use ({}; none if there is none)", place.former_hint());
        let answer = self.text(None, &hint, &question)?;
        if self.is_terminal { of(Path::new(&answer)) } else { Ok(Former::default()) }
    }

    /// Has the configuration checked, and asks for the settings that are missing.
    fn settings(&self, wanted: &mut Wanted) -> Result<()> {
        loop {
            // What `serve` would refuse is refused here, by the same code; the name of the file is only for the
            // message.
            let error = match Config::parse(Path::new("config.yaml"), &super::files::config(wanted)) {
                Ok(config) if config.keks.iter().all(|kek| kek.offline().is_some()) => {
                    let kind = &wanted.kind;
                    return Err(Refused(format!(
                        "{kind} unwraps nothing without its private half, so it cannot be the only KEK: name another kind, \
                         and add {kind} to the configuration that is written"
                    ))
                    .into());
                }
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !self.is_terminal || !KINDS.contains(&wanted.kind.as_str()) {
                return Err(refused_settings(wanted, &error));
            }
            eprintln!("{error}");
            let answer = Self::ask(&format!("A setting of {}, as FIELD=VALUE", wanted.kind))?;
            if let Err(error) = insert(&mut wanted.settings, &answer) {
                eprintln!("{error}");
            }
        }
    }
}

fn refused_settings(wanted: &Wanted, error: &ConfigError) -> anyhow::Error {
    Refused(format!(
        "the resulting configuration cannot work; settings of {} are given with --set FIELD=VALUE\n{error}",
        wanted.kind
    ))
    .into()
}
