//! Writes seeds for the target `crd_validate` into a directory: `cargo run --bin crd_seeds -- corpus/crd_validate`.
//!
//! Each is a definition of the golden transcripts with an object that they create for it.

use std::error::Error;
use std::path::{Path, PathBuf};

use apimachinery::Value;

/// Bodies of requests that create something, in order.
fn created(case: &Value) -> Vec<&Value> {
    let steps = case.array_at(&["setup"]).iter().chain(case.array_at(&["steps"]));
    let requests = steps.map(|step| &step["request"]);
    requests.filter(|r| r["method"] == "POST").filter_map(|r| r.get("body")).filter(|b| b.is_object()).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let to: PathBuf = std::env::args().nth(1).ok_or("usage: crd_seeds DIRECTORY")?.into();
    std::fs::create_dir_all(&to)?;
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/cases/crd");
    for entry in std::fs::read_dir(&cases).map_err(|e| format!("{}: {e}", cases.display()))? {
        let path = entry?.path();
        let case = Value::from_slice(&std::fs::read(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        let (definitions, objects): (Vec<&Value>, Vec<&Value>) =
            created(&case).into_iter().partition(|b| b["kind"] == "CustomResourceDefinition");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (i, definition) in definitions.iter().enumerate() {
            let kind = definition.str_at(&["spec", "names", "kind"]);
            let mut seed = definition.to_vec();
            if let Some(object) = objects.iter().find(|o| o.str_at(&["kind"]) == kind) {
                seed.push(0);
                seed.extend(object.to_vec());
            }
            std::fs::write(to.join(format!("{name}-{i}")), seed)?;
        }
    }
    Ok(())
}
