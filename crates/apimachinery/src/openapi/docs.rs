//! Descriptions of types and fields, kept compressed and unpacked only while a document is made.

use std::collections::HashMap;
use std::io::Read;

static PACKED: &[u8] = include_bytes!("../schema/data/docs.deflate");

/// The compressed text.
pub(super) fn source() -> &'static [u8] {
    PACKED
}

/// Descriptions by model name.
#[derive(Debug, Default)]
pub struct Docs {
    types: HashMap<String, TypeDocs>,
}

#[derive(Debug, Default)]
struct TypeDocs {
    description: String,
    fields: HashMap<String, String>,
}

impl Docs {
    /// Unpacks the descriptions: about a megabyte, to be dropped after use.
    pub fn load() -> Docs {
        let mut text = String::new();
        if let Err(e) = flate2::read::DeflateDecoder::new(PACKED).read_to_string(&mut text) {
            panic!("the built-in descriptions are broken: {e}");
        }
        let mut docs = Docs::default();
        let mut model = String::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let Some((name, rest)) = line.split_once('\t') else { continue };
            if let Some((m, description)) = rest.split_once('\t').filter(|_| name == "T") {
                model = m.to_owned();
                docs.types.entry(model.clone()).or_default().description = unescape(description);
            } else if !rest.is_empty() {
                docs.types.entry(model.clone()).or_default().fields.insert(name.to_owned(), unescape(rest));
            }
        }
        docs
    }

    /// The description of a type, `""` when it has none.
    pub fn of_type(&self, model: &str) -> &str {
        self.types.get(model).map_or("", |t| t.description.as_str())
    }

    /// The description of a field, `""` when it has none.
    pub fn of_field(&self, model: &str, field: &str) -> &str {
        self.types.get(model).and_then(|t| t.fields.get(field)).map_or("", String::as_str)
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(c) => c,
                None => '\\',
            },
            c => c,
        });
    }
    out
}
