//! Who may approve and sign certificates, and which ones nobody gets.
//!
//! Follows: `plugin/pkg/admission/certificates`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::status::StatusResult;
use async_trait::async_trait;
use base64::Engine;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authn::{SYSTEM_MASTERS, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision, is_privileged};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(gvr: &GroupVersionResource) -> bool {
    gvr.group == "certificates.k8s.io" && gvr.resource == "certificatesigningrequests"
}

/// Whether a user has this verb for a signer, by its name or by its domain.
async fn may(authorizer: &dyn Authorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    if is_privileged(user) {
        return true;
    }
    let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
    for name in [signer, &domain] {
        let attributes = Attributes {
            user: user.clone(),
            verb: verb.to_owned(),
            group: "certificates.k8s.io".to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        };
        if authorizer.authorize(&attributes).await.decision == Decision::Allow {
            return true;
        }
    }
    false
}

/// The verb `approve` on the signer is needed to approve.
pub struct CertificateApproval(pub Arc<dyn Authorizer>);

#[async_trait]
impl AdmissionPlugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "approval" && is_request(gvr)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let signer = request.old_object.as_ref().map_or("", |o| o.str_at(&["spec", "signerName"]));
        if may(self.0.as_ref(), &request.user, "approve", signer).await {
            return Ok(());
        }
        Err(request.forbidden(format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

/// The verb `sign` on the signer is needed to issue.
pub struct CertificateSigning(pub Arc<dyn Authorizer>);

#[async_trait]
impl AdmissionPlugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "status" && is_request(gvr)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let (Some(new), Some(old)) = (&request.object, &request.old_object) else { return Ok(()) };
        let same = |key: &str| new.at(&["status", key]) == old.at(&["status", key]);
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        let signer = old.str_at(&["spec", "signerName"]);
        if may(self.0.as_ref(), &request.user, "sign", signer).await {
            return Ok(());
        }
        Err(request.forbidden(format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// Nobody becomes an administrator by a client certificate of the cluster.
pub struct CertificateSubjectRestriction;

#[async_trait]
impl AdmissionPlugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && is_request(gvr)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let csr = request.object.as_ref().unwrap_or(&Value::Null);
        if csr.str_at(&["spec", "signerName"]) != CLIENT_SIGNER {
            return Ok(());
        }
        match organizations(csr.str_at(&["spec", "request"])) {
            None => Err(request.forbidden("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST")),
            Some(groups) if groups.iter().any(|g| g == SYSTEM_MASTERS) => {
                Err(request
                    .forbidden(format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed")))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The organisations of the subject of a request (base64 of PEM).
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = base64::engine::general_purpose::STANDARD.decode(request).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    if pem.label != "CERTIFICATE REQUEST" {
        return None;
    }
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &csr.certification_request_info.subject;
    Some(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}
