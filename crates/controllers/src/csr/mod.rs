//! certificatesigningrequest-approving, -signing and -cleaner: Kubernetes's own signers.
//!
//! Signing needs a CA in [`ManagerConfig::cluster_signing_ca`](crate::ManagerConfig); without it only the other two run.
//!
//! Follows: `pkg/controller/certificates` (`approver`, `signer`, `cleaner`), `pkg/apis/certificates/helpers.go`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::{DeleteOptions, Informer, ObjectKey, ObjectMeta, Outcome, Resource, null_default};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::Deserialize;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509CertificationRequest};

use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue, wait};
use crate::resources::CERTIFICATE_SIGNING_REQUESTS;
use crate::types::{Condition, cached, condition_is_true, to_value};

const REVIEWS: Resource = Resource::new("authorization.k8s.io", "v1", "subjectaccessreviews");
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// `--cluster-signing-duration`.
const VALIDITY_SECONDS: i64 = 365 * 24 * 3600;
/// Clocks differ: a certificate is valid a little before it was made.
const BACKDATE_SECONDS: i64 = 300;
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// The authority that signs, as PEM.
#[derive(Clone)]
pub struct SigningCa {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for SigningCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningCa")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    metadata: ObjectMeta,
    spec: RequestSpec,
    status: RequestStatus,
}

cached!(Request);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RequestSpec {
    request: String,
    signer_name: Str,
    #[serde(deserialize_with = "null_default")]
    usages: BTreeSet<Str>,
    expiration_seconds: Option<i64>,
    username: Str,
    uid: Str,
    #[serde(deserialize_with = "null_default")]
    groups: Vec<Str>,
    extra: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RequestStatus {
    #[serde(deserialize_with = "null_default")]
    conditions: Vec<Condition>,
    certificate: String,
}

/// What a request asks to have certified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subject {
    common_name: String,
    organizations: Vec<String>,
    dns_or_ip: bool,
    other_names: bool,
}

fn pem_of(spec: &RequestSpec) -> Option<String> {
    String::from_utf8(STANDARD.decode(&spec.request).ok()?).ok()
}

fn subject(pem: &str) -> Option<Subject> {
    let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
    let der = STANDARD.decode(body.trim()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    let name = &request.certification_request_info.subject;
    let mut subject = Subject {
        common_name: name.iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or("").to_owned(),
        organizations: name.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect(),
        ..Subject::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(_) | GeneralName::IPAddress(_) => subject.dns_or_ip = true,
                _ => subject.other_names = true,
            }
        }
    }
    Some(subject)
}

fn usages_within(usages: &BTreeSet<Str>, required: &[&str], allowed: &[&str]) -> bool {
    usages.iter().all(|u| allowed.contains(&u.as_str())) && required.iter().all(|r| usages.iter().any(|u| u == r))
}

/// Why a signer does not sign a request; `Ok` when it may.
fn check(spec: &RequestSpec, subject: &Subject) -> Result<(), &'static str> {
    let node = subject.organizations == ["system:nodes"] && subject.common_name.starts_with("system:node:");
    let common = ["digital signature", "key encipherment"];
    match spec.signer_name.as_str() {
        CLIENT => usages_within(&spec.usages, &["client auth"], &["client auth", common[0], common[1]])
            .then_some(())
            .ok_or("usages did not match [client auth digital signature key encipherment]"),
        KUBELET_CLIENT => {
            if !node {
                return Err("subject is not that of a node");
            }
            if subject.dns_or_ip || subject.other_names {
                return Err("subjectAltNames are not allowed");
            }
            usages_within(&spec.usages, &["client auth", common[0]], &["client auth", common[0], common[1]])
                .then_some(())
                .ok_or("usages did not match those of a kubelet client")
        }
        KUBELET_SERVING => {
            if !node {
                return Err("subject is not that of a node");
            }
            if !subject.dns_or_ip || subject.other_names {
                return Err("at least one DNS or IP subjectAltName is required, and no other");
            }
            usages_within(&spec.usages, &["server auth", common[0]], &["server auth", common[0], common[1]])
                .then_some(())
                .ok_or("usages did not match those of a kubelet server")
        }
        LEGACY => Ok(()),
        _ => Err("not a signer of this controller"),
    }
}

fn signs(signer: &str) -> bool {
    matches!(signer, CLIENT | KUBELET_CLIENT | KUBELET_SERVING | LEGACY)
}

/// Signs a request; the error says what was wrong with it.
fn sign(ca: &SigningCa, spec: &RequestSpec, pem: &str, now: Timestamp) -> Result<String, String> {
    let key = KeyPair::from_pem(&ca.key_pem).map_err(|_| "the signing key cannot be read".to_owned())?;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate_pem, key).map_err(|e| e.to_string())?;
    let mut request = CertificateSigningRequestParams::from_pem(pem).map_err(|e| e.to_string())?;
    let seconds = spec.expiration_seconds.unwrap_or(VALIDITY_SECONDS).clamp(600, VALIDITY_SECONDS);
    let at = |second: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second.max(0) as u64);
    request.params.not_before = at(now.as_second() - BACKDATE_SECONDS);
    request.params.not_after = at(now.as_second() - BACKDATE_SECONDS + seconds);
    request.params.is_ca = IsCa::ExplicitNoCa;
    request.params.use_authority_key_identifier_extension = true;
    request.params.key_usages.clear();
    request.params.extended_key_usages.clear();
    for usage in &spec.usages {
        match usage.as_str() {
            "signing" | "digital signature" => request.params.key_usages.push(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => request.params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "content commitment" => request.params.key_usages.push(KeyUsagePurpose::ContentCommitment),
            "key agreement" => request.params.key_usages.push(KeyUsagePurpose::KeyAgreement),
            "data encipherment" => request.params.key_usages.push(KeyUsagePurpose::DataEncipherment),
            "client auth" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            "server auth" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
            "code signing" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
            "email protection" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection),
            "timestamping" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::TimeStamping),
            "ocsp signing" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::OcspSigning),
            "any" => request.params.extended_key_usages.push(ExtendedKeyUsagePurpose::Any),
            other => return Err(format!("unrecognized key usage: {other}")),
        }
    }
    request.params.key_usages.dedup();
    request.signed_by(&issuer).map(|c| c.pem()).map_err(|e| e.to_string())
}

fn watch(context: &Context) -> (Informer<Request>, informer::Queue<ObjectKey>) {
    let queue = key_queue();
    let requests: Informer<Request> = context.factory.informer(CERTIFICATE_SIGNING_REQUESTS);
    let adds = queue.clone();
    requests.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    (requests, queue)
}

pub(crate) fn start_approving(context: &Context) {
    let context = context.for_controller("certificate-controller", "certificate-controller");
    let (requests, queue) = watch(&context);
    let synced = vec![requests.synced()];
    context.clone().run("certificatesigningrequest-approving", 1, &queue, synced, move |key| {
        approve(context.clone(), requests.clone(), key)
    });
}

async fn approve(context: Context, requests: Informer<Request>, key: ObjectKey) -> ReconcileResult {
    let Some(request) = requests.get(&key) else { return Ok(Outcome::Done) };
    let decided = |kind: &str| request.status.conditions.iter().any(|c| c.kind == kind);
    if request.spec.signer_name != KUBELET_CLIENT || decided("Approved") || decided("Denied") {
        return Ok(Outcome::Done);
    }
    let Some(subject) = pem_of(&request.spec).and_then(|pem| subject(&pem)) else { return Ok(Outcome::Done) };
    if check(&request.spec, &subject).is_err() {
        return Ok(Outcome::Done);
    }
    let own = (subject.common_name == request.spec.username.as_str())
        .then_some(("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."));
    let any = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
    for (subresource, message) in own.into_iter().chain([any]) {
        let mut review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {
            "user": request.spec.username.as_str(), "uid": request.spec.uid.as_str(),
            "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                "verb": "create", "subresource": subresource, "version": "*"}}});
        review["spec"]["groups"] = request.spec.groups.clone().into();
        if let Some(extra) = &request.spec.extra {
            review["spec"]["extra"] = extra.clone();
        }
        let answer = context.rest.create(&REVIEWS, "", &review).await?;
        if answer["status"]["allowed"] == true {
            let mut live = context.rest.get(&CERTIFICATE_SIGNING_REQUESTS, "", &key.name).await?;
            let mut condition = Condition::new("Approved", true, "AutoApproved", message, context.now());
            condition.last_update_time = Some(context.now());
            let mut conditions = live.array_at(&["status", "conditions"]).to_vec();
            conditions.push(to_value(&condition));
            live.set_at(&["status", "conditions"], Value::Array(conditions));
            let written = context.rest.update(&CERTIFICATE_SIGNING_REQUESTS, "approval", "", &key.name, &live).await;
            ignore_not_found(written)?;
            return Ok(Outcome::Done);
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn start_signing(context: &Context) {
    let Some(ca) = context.config.cluster_signing_ca.clone() else { return };
    let context = context.for_controller("certificate-controller", "certificate-controller");
    let (requests, queue) = watch(&context);
    let synced = vec![requests.synced()];
    let ca = Arc::new(ca);
    context.clone().run("certificatesigningrequest-signing", 1, &queue, synced, move |key| {
        issue(context.clone(), requests.clone(), ca.clone(), key)
    });
}

async fn issue(context: Context, requests: Informer<Request>, ca: Arc<SigningCa>, key: ObjectKey) -> ReconcileResult {
    let Some(request) = requests.get(&key) else { return Ok(Outcome::Done) };
    let conditions = &request.status.conditions;
    let done = !request.status.certificate.is_empty() || condition_is_true(conditions, "Failed");
    if done || !condition_is_true(conditions, "Approved") || !signs(&request.spec.signer_name) {
        return Ok(Outcome::Done);
    }
    let now = context.now();
    let result = match pem_of(&request.spec) {
        None => Err("unable to parse csr".to_owned()),
        Some(pem) => match subject(&pem) {
            None => Err("unable to parse csr".to_owned()),
            Some(subject) => match check(&request.spec, &subject) {
                Ok(()) => sign(&ca, &request.spec, &pem, now),
                Err(reason) => Err(reason.to_owned()),
            },
        },
    };
    let mut status = Value::object();
    match result {
        Ok(certificate) => status["certificate"] = STANDARD.encode(certificate).into(),
        // Requests of the oldest signer are left alone, since others may sign them.
        Err(_) if request.spec.signer_name == LEGACY => return Ok(Outcome::Done),
        Err(reason) => {
            let mut condition = Condition::new("Failed", true, "SignerValidationFailure", reason, now);
            condition.last_update_time = Some(now);
            let mut conditions = conditions.clone();
            conditions.push(condition);
            status["conditions"] = to_value(&conditions);
        }
    }
    let written = context.patch_status(&CERTIFICATE_SIGNING_REQUESTS, &request.metadata, status).await;
    ignore_not_found(written).map_err(ReconcileError::from)?;
    Ok(Outcome::Done)
}

/// How long a request is kept; `None` for ever (that is, until its state changes).
fn time_left(request: &Request, now: Timestamp) -> Option<SignedDuration> {
    let since = |kind: &str| {
        let condition = request.status.conditions.iter().find(|c| c.kind == kind)?;
        condition.last_update_time.or(condition.last_transition_time)
    };
    let created = request.metadata.creation_timestamp?;
    let (from, limit) = if let Some(at) = since("Denied").or_else(|| since("Failed")).or_else(|| since("Approved")) {
        (at, HOUR)
    } else {
        (created, HOUR * 24)
    };
    Some(limit - now.duration_since(from))
}

pub(crate) fn start_cleaner(context: &Context) {
    let context = context.for_controller("certificate-controller", "certificate-controller");
    let (requests, queue) = watch(&context);
    let synced = vec![requests.synced()];
    context.clone().run("certificatesigningrequest-cleaner", 1, &queue, synced, move |key| {
        clean(context.clone(), requests.clone(), key)
    });
}

async fn clean(context: Context, requests: Informer<Request>, key: ObjectKey) -> ReconcileResult {
    let Some(request) = requests.get(&key) else { return Ok(Outcome::Done) };
    match time_left(&request, context.now()) {
        None => Ok(Outcome::Done),
        Some(left) if left.is_positive() => Ok(Outcome::After(wait(left))),
        Some(_) => {
            let options = DeleteOptions::uid(request.metadata.uid.clone());
            context.delete(&CERTIFICATE_SIGNING_REQUESTS, &key, &options).await?;
            Ok(Outcome::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType};

    fn request(common_name: &str, organization: &str) -> String {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn spec(signer: &str, usages: &[&str], pem: &str) -> RequestSpec {
        RequestSpec {
            signer_name: signer.into(),
            usages: usages.iter().map(|u| Str::from(*u)).collect(),
            request: STANDARD.encode(pem),
            ..RequestSpec::default()
        }
    }

    #[test]
    fn signers_check_subject_and_usages() {
        let node = request("system:node:n1", "system:nodes");
        let user = request("jane", "team");
        for (signer, usages, pem, want) in [
            (CLIENT, &["client auth"][..], &user, true),
            (CLIENT, &["client auth", "server auth"], &user, false),
            (KUBELET_CLIENT, &["client auth", "digital signature"], &node, true),
            (KUBELET_CLIENT, &["client auth", "digital signature"], &user, false),
            (KUBELET_SERVING, &["server auth", "digital signature"], &node, false),
            ("example.com/other", &["client auth"], &user, false),
        ] {
            let got = check(&spec(signer, usages, pem), &subject(pem).unwrap());
            assert_eq!(got.is_ok(), want, "{signer} {usages:?} {got:?}");
        }
    }

    #[test]
    fn a_signed_certificate_has_the_asked_subject_usage_and_lifetime() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate_pem = params.self_signed(&key).unwrap().pem();
        let ca = SigningCa { certificate_pem, key_pem: key.serialize_pem() };
        let pem = request("jane", "team");
        let mut spec = spec(CLIENT, &["client auth"], &pem);
        spec.expiration_seconds = Some(3600);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let signed = sign(&ca, &spec, &pem, now).unwrap();
        let body: String = signed.lines().filter(|l| !l.starts_with("-----")).collect();
        let der = STANDARD.decode(body).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), "jane");
        let validity = certificate.validity();
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 3600);
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.client_auth);
    }

    #[test]
    fn requests_are_cleaned_by_their_state() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (conditions, want_hours) in [
            (json!([]), 0),
            (json!([{"type": "Denied", "lastUpdateTime": "2026-01-01T23:30:00Z"}]), 0),
            (json!([{"type": "Approved", "lastUpdateTime": "2026-01-01T22:00:00Z"}]), -1),
        ] {
            let mut object = json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"}});
            object.set_at(&["status", "conditions"], conditions.clone());
            let left = time_left(&object.to().unwrap(), now).unwrap();
            assert_eq!(left.as_hours(), want_hours, "{conditions}");
        }
    }
}
