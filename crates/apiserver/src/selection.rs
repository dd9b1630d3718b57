//! Which objects a list, a watch or a deletecollection is about.

use std::sync::Arc;

use apimachinery::fields::Selector as FieldSelector;
use apimachinery::labels::{Labels, Selector as LabelSelector};
use apimachinery::status::{Status, StatusResult};

use crate::cache::Entry;
use crate::registry::Resource;
use crate::request_info::RequestInfo;

/// A label selector and a field selector, parsed and checked for one resource.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// The field selector looks at more than name and namespace, so the object itself is needed.
    needs_object: bool,
}

impl Labels for Entry {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.label(key)
    }
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    pub fn parse(resource: &Resource, info: &RequestInfo) -> StatusResult<Selection> {
        let bad = |message: String| Box::new(Status::bad_request(message));
        let labels = LabelSelector::parse(info.query.str("labelSelector")).map_err(|e| bad(e.to_string()))?;
        let fields = FieldSelector::parse_with(info.query.str("fieldSelector"), |label, value| {
            Ok((resource.strategy.convert_field_label(label)?, value.to_owned()))
        })
        .map_err(|e| bad(e.to_string()))?;
        let simple = |f: &str| f == "metadata.name" || f == "metadata.namespace";
        let needs_object = fields.requirements().iter().any(|r| !simple(&r.field));
        Ok(Selection { labels, fields, needs_object })
    }

    /// Only the object of this name.
    pub fn named(name: &str) -> Selection {
        Selection { fields: FieldSelector::one("metadata.name", name), ..Selection::default() }
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, if the selector says so.
    pub fn name(&self) -> Option<&str> {
        self.fields.requires_exact_match("metadata.name")
    }

    /// Must [`Selection::read_fields`] come before [`Selection::matches`]?
    pub fn needs_reading(&self, resource: &Resource) -> bool {
        self.needs_object && resource.strategy.converts_fields()
    }

    /// Converts objects that are stored in another version, so that [`Selection::matches`] knows what their fields are in
    /// the one that is asked for. Fails when a webhook does.
    pub async fn read_fields(
        &self,
        resource: &Resource,
        entries: impl IntoIterator<Item = &Arc<Entry>>,
    ) -> StatusResult<()> {
        if !self.needs_reading(resource) {
            return Ok(());
        }
        let api_version = resource.api_version();
        let fields: Vec<&str> = self.fields.requirements().iter().map(|r| r.field.as_str()).collect();
        let unread = |entry: &&Arc<Entry>| fields.iter().any(|field| !entry.knows_field(&api_version, field));
        let entries: Vec<&Arc<Entry>> = entries.into_iter().filter(unread).collect();
        let objects = entries.iter().map(|entry| entry.to_value()).collect();
        let objects = resource.strategy.all_to_version(objects, &resource.gvk).await?;
        for (entry, object) in entries.into_iter().zip(&objects) {
            for field in &fields {
                entry.learn_field(&api_version, field, &resource.strategy.field_value(object, field));
            }
        }
        Ok(())
    }

    /// A first look, which needs no conversion: objects that pass may still not match.
    pub fn may_match(&self, resource: &Resource, entry: &Entry) -> bool {
        if self.needs_reading(resource) {
            self.labels.is_empty() || self.labels.matches(entry)
        } else {
            self.matches(resource, entry)
        }
    }

    /// Drops the objects that passed the first look only.
    pub async fn narrow(&self, resource: &Resource, entries: &mut Vec<Arc<Entry>>) -> StatusResult<()> {
        if self.needs_reading(resource) {
            self.read_fields(resource, &*entries).await?;
            entries.retain(|entry| self.matches(resource, entry));
        }
        Ok(())
    }

    pub fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        // An empty selector matches everything; only what is given is looked at.
        if !self.labels.is_empty() && !self.labels.matches(entry) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        let api_version = if self.needs_object { resource.api_version() } else { String::new() };
        self.fields.requirements().iter().all(|r| {
            let equal = match r.field.as_str() {
                "metadata.name" => entry.name() == r.value,
                "metadata.namespace" => entry.namespace() == r.value,
                field => {
                    let read = |object: &apimachinery::Value| resource.strategy.field_value(object, field);
                    entry.field_is(&api_version, field, &r.value, read)
                }
            };
            equal != r.negated
        })
    }

    pub fn matches_some(&self, resource: &Resource, entry: Option<&Arc<Entry>>) -> bool {
        entry.is_some_and(|e| self.matches(resource, e))
    }
}
