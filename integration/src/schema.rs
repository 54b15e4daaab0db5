//! What `enictl … --json` prints, held against the published JSON Schemas.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use jsonschema::Validator;
use serde_json::Value;
use vpc::Output;

thread_local! {
    /// Those that were read already.
    static VALIDATORS: RefCell<HashMap<String, Validator>> = RefCell::default();
}

/// Whether a command that was to print JSON has printed what its schema allows, and nothing that the
/// schema does not know. One that was refused prints nothing.
///
/// # Errors
/// When it has not.
pub(crate) fn check(arguments: &[&str], said: &Output) -> anyhow::Result<()> {
    if !arguments.contains(&"--json") || said.stdout.is_empty() {
        return Ok(());
    }
    let command = command(arguments).with_context(|| format!("no command in {arguments:?}"))?;
    valid(command, &said.json()?)
}

/// Whether a value is what the schema of this name allows.
///
/// # Errors
/// When it is not.
pub fn valid(name: &str, value: &Value) -> anyhow::Result<()> {
    VALIDATORS.with_borrow_mut(|validators| {
        if !validators.contains_key(name) {
            validators.insert(name.to_owned(), read(name)?);
        }
        let wrong: Vec<String> = validators[name]
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        if !wrong.is_empty() {
            bail!("docs/schema/{name}.json does not allow {value}:\n{}", wrong.join("\n"));
        }
        Ok(())
    })
}

/// The first word that is neither an option nor the value of one that stands before the command.
fn command<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let mut words = arguments.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--socket" | "--config" => _ = words.next(),
            word if word.starts_with('-') => {}
            word => return Some(word),
        }
    }
    None
}

fn read(name: &str) -> anyhow::Result<Validator> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schema/{name}.json"));
    let reading = || format!("reading {}", file.display());
    let text = std::fs::read_to_string(&file).with_context(reading)?;
    let mut schema = serde_json::from_str(&text).with_context(reading)?;
    close(&mut schema);
    jsonschema::validator_for(&schema).with_context(reading)
}

/// Users ignore fields that they do not know; here, one that is not published is a mistake.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            if fields.get("type").is_some_and(|kind| kind == "object")
                && fields.get("properties").is_some_and(Value::is_object)
            {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_published_is_a_mistake() {
        valid("wait", &json!({ "met": true, "waiting": ["for this"] })).unwrap();
        for wrong in [
            json!({ "met": true }),
            json!({ "met": "yes", "waiting": [] }),
            json!({ "met": true, "waiting": [7] }),
            json!({ "met": true, "waiting": [], "more": 1 }),
        ] {
            assert!(valid("wait", &wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_is_found_among_options() {
        for words in [
            &["status", "--json"][..],
            &["--json", "status"],
            &["--socket", "control", "status", "--json"],
        ] {
            assert_eq!(command(words), Some("status"), "{words:?}");
        }
    }
}
