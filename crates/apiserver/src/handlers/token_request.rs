//! `serviceaccounts/token`: a fresh token for a service account.
//!
//! Follows: `pkg/registry/core/serviceaccount/storage/token.go`.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::{GroupKind, GroupResource};
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use apimachinery::time::Timestamp;
use http::Response;

use super::{Cx, body_bytes, write};
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::managed_fields;
use crate::options::WriteOptions;
use crate::output::{self, Form};
use crate::tokens::{KubernetesClaims, Reference, TokenAuthority};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
/// What kubelets ask for when nobody chose: such tokens live longer, so that programs that never read them anew go on.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub async fn create(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let Some(authority) = &cx.server.config.tokens else {
        let message = "this server has no key to sign service account tokens with";
        return Err(Box::new(Status::failure(501, "NotImplemented", message)));
    };
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "CreateOptions", false)?;
    let kind = write::endpoint_kind(cx);
    let mut request = cx.decode(&kind, &body, encoding, options.field_validation)?;
    if request.at(&["spec", "expirationSeconds"]).is_none_or(Value::is_null) {
        request.set_at(&["spec", "expirationSeconds"], DEFAULT_SECONDS.into());
    }
    let options_value = options.to_value("CreateOptions");
    let admission = |object: Value| {
        cx.admission(Operation::Create, &kind, Some(object), None, options_value.clone(), options.dry_run)
    };
    let mut request = cx.admit(admission(request)).await?.unwrap_or_default();
    let manager = options.manager(cx.user_agent());
    managed_fields::track_create_of(cx, &kind, "TokenRequest", &mut request, &manager);

    let (namespace, name) = (cx.info.namespace.as_str(), cx.info.name.as_str());
    let metadata = FieldPath::new("metadata");
    let invalid = |name: &str, error: FieldError| {
        let kind = GroupKind::new("authentication.k8s.io", "TokenRequest");
        Box::new(Status::invalid(&kind, name, &[error]))
    };
    if !request.name().is_empty() && request.name() != name {
        let text = "must match the service account name if specified";
        return Err(invalid(name, FieldError::invalid(&metadata.child("name"), request.name(), text)));
    }
    if !request.namespace().is_empty() && request.namespace() != namespace {
        let text = "must match the service account namespace if specified";
        return Err(invalid(name, FieldError::invalid(&metadata.child("namespace"), request.namespace(), text)));
    }
    let storage = &cx.server.storage;
    let account = storage.read(&cx.resource, namespace, name).await?.ok_or_else(|| cx.not_found())?;
    if !request.uid().is_empty() && request.uid() != account.uid() {
        let resource = GroupResource::new("authentication.k8s.io", "TokenRequest");
        let message = format!(
            "the UID in the token request ({}) does not match the UID of the service account ({})",
            request.uid(),
            account.uid()
        );
        return Err(Box::new(Status::conflict(&resource, name, message)));
    }
    if request.array_at(&["spec", "audiences"]).is_empty() {
        let audiences: Vec<&str> = authority.audiences.iter().map(String::as_str).collect();
        request.set_at(&["spec", "audiences"], audiences.into());
    }
    request.set_name(name);
    request.set_namespace(namespace);
    request.set_uid(account.uid());
    let now = Timestamp::from(std::time::SystemTime::now()).truncated();
    request.metadata_mut().insert("creationTimestamp", now.to_rfc3339().into());
    request.remove_at(&["status"]);

    let seconds = request.at(&["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    let path = FieldPath::new("spec").child("expirationSeconds");
    if seconds < MIN_SECONDS {
        let text = "may not specify a duration less than 10 minutes";
        return Err(invalid("", FieldError::invalid(&path, seconds, text)));
    }
    if seconds > 1 << 32 {
        let text = "may not specify a duration larger than 2^32 seconds";
        return Err(invalid("", FieldError::invalid(&path, seconds, text)));
    }
    cx.validate(admission(request.clone())).await?;
    let mut claims = KubernetesClaims {
        namespace: namespace.to_owned(),
        serviceaccount: Reference::to(&account),
        ..KubernetesClaims::default()
    };
    bind(cx, &request, &mut claims).await?;
    sign(cx, authority, &mut request, claims, now)?;
    output::object_response(&cx.resource, &form, 201, request).await
}

/// Binds the token to the object that the request names.
async fn bind(cx: &Cx, request: &Value, claims: &mut KubernetesClaims) -> StatusResult<()> {
    let reference = &request["spec"]["boundObjectRef"];
    if !reference.is_object() {
        return Ok(());
    }
    let (api_version, kind) = (reference.str_at(&["apiVersion"]), reference.str_at(&["kind"]));
    let name = reference.str_at(&["name"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let bound = match (group, kind) {
        ("", "Pod") => {
            let pod = find(cx, "pods", &claims.namespace, name).await?;
            if pod.str_at(&["spec", "serviceAccountName"]) != cx.info.name {
                return Err(Box::new(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    cx.info.name
                ))));
            }
            let node = pod.str_at(&["spec", "nodeName"]);
            if !node.is_empty() {
                // A node that does not exist is still named.
                let uid = find(cx, "nodes", "", node).await.map(|n| n.uid().to_owned()).unwrap_or_default();
                claims.node = Some(Reference { name: node.to_owned(), uid });
            }
            claims.pod = Some(Reference::to(&pod));
            pod
        }
        ("", "Node") => {
            let node = find(cx, "nodes", "", name).await?;
            claims.node = Some(Reference::to(&node));
            node
        }
        ("", "Secret") => {
            let secret = find(cx, "secrets", &claims.namespace, name).await?;
            claims.secret = Some(Reference::to(&secret));
            secret
        }
        _ => {
            let message = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Box::new(Status::bad_request(message)));
        }
    };
    let uid = reference.str_at(&["uid"]);
    if !uid.is_empty() && uid != bound.uid() {
        let message = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Box::new(Status::conflict(&GroupResource::new(group, kind), name, message)));
    }
    Ok(())
}

async fn find(cx: &Cx, resource: &str, namespace: &str, name: &str) -> StatusResult<Value> {
    let not_found = || Box::new(Status::not_found(&GroupResource::new("", resource), name));
    let storage = &cx.server.storage;
    let resource = storage.registry.get("", "v1", resource).ok_or_else(not_found)?;
    storage.read(&resource, namespace, name).await?.ok_or_else(not_found)
}

fn sign(
    cx: &Cx,
    authority: &TokenAuthority,
    request: &mut Value,
    mut claims: KubernetesClaims,
    now: Timestamp,
) -> StatusResult<()> {
    let mut seconds = request.at(&["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    let max = authority.max_expiration_seconds;
    if max > 0 && seconds > max {
        cx.warn(format!("requested expiration of {seconds} seconds shortened to {max} seconds"));
        seconds = max;
        request.set_at(&["spec", "expirationSeconds"], seconds.into());
    }
    let audiences = request.array_at(&["spec", "audiences"]);
    let audiences: Vec<String> = audiences.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut lives = seconds;
    if authority.extend_expiration
        && seconds == WARN_ONLY_SECONDS
        && claims.pod.is_some()
        && audiences.iter().all(|a| authority.audiences.contains(a))
    {
        claims.warnafter = Some(now.seconds + seconds);
        lives = EXTENDED_SECONDS;
    }
    let token = authority
        .issue(claims, &audiences, now, lives)
        .map_err(|e| Box::new(Status::internal_error(format!("failed to generate token: {e}"))))?;
    if request.at(&["spec", "boundObjectRef"]).is_none() {
        request.set_at(&["spec", "boundObjectRef"], Value::Null);
    }
    let expires = Timestamp::from_seconds(now.seconds + seconds);
    request.set_at(&["status", "token"], token.into());
    request.set_at(&["status", "expirationTimestamp"], expires.to_rfc3339().into());
    Ok(())
}
