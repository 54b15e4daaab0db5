//! JSON Schemas of what `enictl COMMAND --json` prints, published in `docs/schema`.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::request::{Affected, Refreshed, Reloaded, Waited};
use crate::{Check, Event, Events, Explained, Objects, Plan, SCHEMA, Status};

/// Each command with the schema of what it prints; `event` is a line of `enictl events -f --json`.
///
/// # Errors
/// Never as things stand: a schema is JSON.
pub fn all() -> serde_json::Result<Vec<(&'static str, Value)>> {
    Ok(vec![
        ("status", of::<Status>()?),
        ("plan", of::<Plan>()?),
        ("check", of::<Check>()?),
        ("explain", of::<Explained>()?),
        ("graph", of::<Objects>()?),
        ("events", of::<Events>()?),
        ("event", of::<Event>()?),
        ("refresh", of::<Refreshed>()?),
        ("wait", of::<Waited>()?),
        ("hold", of::<Affected>()?),
        ("unhold", of::<Affected>()?),
        ("release", of::<Affected>()?),
        ("drop", of::<Affected>()?),
        ("reload", of::<Reloaded>()?),
        ("metrics", of::<Metrics>()?),
    ])
}

/// The schema of a type as it is printed.
fn of<T: JsonSchema>() -> serde_json::Result<Value> {
    let mut schema =
        SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    RecursiveTransform(|schema: &mut schemars::Schema| {
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = plain(text);
        }
    })
    .transform(&mut schema);
    let mut schema = serde_json::to_value(schema)?;
    if let Some(number) = schema.pointer_mut("/properties/schema") {
        *number = json!({ "description": "The number of this schema.", "const": SCHEMA });
    }
    Ok(schema)
}

/// A comment of the code without its links, in one paragraph.
fn plain(comment: &str) -> String {
    comment.replace("[`", "`").replace("`]", "`").replace('\n', " ")
}
