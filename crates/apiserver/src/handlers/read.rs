//! get, list and watch.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/get.go`.

use std::time::Duration;

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::status::{Status, StatusResult};
use http::Response;

use super::Cx;
use crate::body::Body;
use crate::output::{self, Form, ListMeta};
use crate::request_info::{Query, RequestInfo};
use crate::selection::Selection;
use crate::storage::{ListRequest, cache_status, parse_revision};
use crate::watch::{self, WatchRequest};

pub async fn get(cx: &Cx) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    if cx.info.query.flag("export") {
        let text = "the export parameter, deprecated since v1.14, is no longer supported";
        return Err(Box::new(Status::bad_request(text)));
    }
    let (namespace, name) = (cx.info.namespace.as_str(), cx.info.name.as_str());
    let namespace = if cx.resource.namespaced { namespace } else { "" };
    let entry = match cx.info.query.str("resourceVersion") {
        "" => cx.server.storage.get(&cx.resource, namespace, name).await?,
        "0" => cx.server.storage.get_cached(&cx.resource, namespace, name),
        text => {
            let revision = parse_revision(text).map_err(|reason| {
                let text = Value::from(text);
                let reason = format!("invalid resource version: resourceVersion: Invalid value: {text}: {reason}");
                Box::new(Status::bad_request(reason))
            })?;
            let caches = &cx.server.storage.caches;
            caches.wait_for(revision, Duration::from_secs(3)).await.map_err(cache_status)?;
            cx.server.storage.get_cached(&cx.resource, namespace, name)
        }
    };
    let entry = entry.ok_or_else(|| cx.not_found())?;
    output::entry_response(&cx.resource, &form, 200, &entry, entry.revision).await
}

/// The options of a list or watch, read from the query and checked.
pub struct ListOptions {
    pub request: ListRequest,
    pub watch: WatchRequest,
}

fn parse_int(query: &Query, name: &str) -> StatusResult<Option<i64>> {
    match query.get(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            let text = Value::from(text);
            Box::new(Status::bad_request(format!("strconv.ParseInt: parsing {text}: invalid syntax")))
        }),
    }
}

impl ListOptions {
    pub fn parse(info: &RequestInfo, watch: bool) -> StatusResult<ListOptions> {
        let query = &info.query;
        let limit = parse_int(query, "limit")?.unwrap_or(0).max(0) as u64;
        let timeout = parse_int(query, "timeoutSeconds")?;
        let mut send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let version = query.str("resourceVersion");
        let mut version_match = query.str("resourceVersionMatch");
        // A watch from nowhere is one with initial events. Source: `SetListOptionsDefaults`.
        if watch && send_initial_events.is_none() && version_match.is_empty() && matches!(version, "" | "0") {
            send_initial_events = Some(true);
            version_match = "NotOlderThan";
        }
        let continue_token = query.str("continue");

        let mut errors = Vec::new();
        let path = FieldPath::new("resourceVersionMatch");
        let forbid = |errors: &mut Vec<FieldError>, text: &str| errors.push(FieldError::forbidden(&path, text));
        if watch {
            if send_initial_events.is_some() && version_match != "NotOlderThan" {
                forbid(&mut errors, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if !version_match.is_empty() {
                if send_initial_events.is_none() {
                    forbid(
                        &mut errors,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                if version_match != "NotOlderThan" {
                    errors.push(FieldError::not_supported(&path, version_match, &["NotOlderThan"]));
                }
                if !continue_token.is_empty() {
                    forbid(&mut errors, "resourceVersionMatch is forbidden when continue is provided");
                }
            }
        } else {
            if !version_match.is_empty() {
                if version.is_empty() {
                    forbid(&mut errors, "resourceVersionMatch is forbidden unless resourceVersion is provided");
                }
                if !continue_token.is_empty() {
                    forbid(&mut errors, "resourceVersionMatch is forbidden when continue is provided");
                }
                if version_match != "Exact" && version_match != "NotOlderThan" {
                    errors.push(FieldError::not_supported(&path, version_match, &["Exact", "NotOlderThan", ""]));
                }
                if version_match == "Exact" && version == "0" {
                    forbid(&mut errors, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
                }
            }
            if send_initial_events.is_some() {
                errors.push(FieldError::forbidden(
                    &FieldPath::new("sendInitialEvents"),
                    "sendInitialEvents is forbidden for list",
                ));
            }
        }
        if !errors.is_empty() {
            return Err(Box::new(Status::invalid(&GroupKind::new("meta.k8s.io", "ListOptions"), "", &errors)));
        }
        Ok(ListOptions {
            request: ListRequest {
                resource_version: version.to_owned(),
                resource_version_match: version_match.to_owned(),
                limit,
                continue_token: continue_token.to_owned(),
                selective: false,
            },
            watch: WatchRequest {
                resource_version: version.to_owned(),
                send_initial_events,
                allow_bookmarks: query.flag("allowWatchBookmarks"),
                timeout: timeout.filter(|t| *t > 0).map(|t| Duration::from_secs(t as u64)),
            },
        })
    }
}

/// The selection of a request; a name in the path of a deprecated watch narrows it to that object.
fn selection(cx: &Cx) -> StatusResult<Selection> {
    if cx.info.watch_prefix && !cx.info.name.is_empty() && !cx.info.name_from_selector {
        return Ok(Selection::named(&cx.info.name));
    }
    Selection::parse(&cx.resource, &cx.info)
}

pub async fn list(cx: &Cx) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let mut options = ListOptions::parse(&cx.info, false)?;
    let selection = selection(cx)?;
    options.request.selective = !selection.is_everything();
    let namespace = if cx.resource.namespaced { cx.info.namespace.as_str() } else { "" };
    let keep = |entry: &crate::cache::Entry| selection.may_match(&cx.resource, entry);
    let mut page = cx.server.storage.list(&cx.resource, namespace, &options.request, keep).await?;
    selection.narrow(&cx.resource, &mut page.entries).await?;
    let meta = ListMeta { revision: page.revision, continue_token: page.continue_token, remaining: page.remaining };
    output::list_response(&cx.resource, &form, &meta, &page.entries).await
}

pub async fn watch(cx: &Cx) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let options = ListOptions::parse(&cx.info, true)?;
    let selection = selection(cx)?;
    let namespace = if cx.resource.namespaced { cx.info.namespace.clone() } else { String::new() };
    watch::start(
        cx.server.storage.clone(),
        cx.resource.clone(),
        namespace,
        selection,
        form,
        options.watch,
        cx.server.stop.clone(),
    )
    .await
}
