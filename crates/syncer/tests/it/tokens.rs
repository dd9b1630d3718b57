//! Service account tokens of pods: in a Secret, for the asked audience, and nowhere else.

use std::sync::Arc;

use apimachinery::json;
use apiserver::authz::{AlwaysAllow, Authorizer};
use apiserver::tokens::{ServiceAccountKeys, TokenAuthority};

use crate::cluster::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_mounts_a_token_of_its_own_cluster() {
    let host = host().await;
    let host_api = Api::new(host.client());
    let defaults = apiserver::Config::default();
    let authorizer: Arc<dyn Authorizer> = Arc::new(AlwaysAllow);
    let pair = rcgen::KeyPair::generate().expect("a key");
    let keys = ServiceAccountKeys::from_pem(&pair.serialize_pem(), &[]).expect("keys");
    let authority = Arc::new(TokenAuthority::new(keys, defaults.service_account_issuer.clone()));
    let config = apiserver::Config {
        admission: apiserver::admission::chain::chain(&authorizer, &[], &[]).expect("the default plugins"),
        tokens: Some(authority.clone()),
        token_authenticators: vec![authority],
        ..defaults
    };
    let tenant = Virtual::start_with("vc", &host_api, config).await;
    let syncer = tenant.sync(&host).await;
    // Admission mounts a token only where the account exists.
    eventually("the account is there", || async { tenant.api.get(&ACCOUNTS, "default", "default").await }).await;
    tenant.api.create(&PODS, "default", simple_pod("web")).await;
    eventually("the virtual pod runs", || async {
        let pod = tenant.api.get(&PODS, "default", "web").await?;
        (pod.str_at(&["status", "phase"]) == "Running").then_some(())
    })
    .await;
    let on_host = tenant.on_host("default", "web");
    let host_pod = host_api.get(&PODS, &on_host.namespace, &on_host.name).await.expect("the host pod");
    let secret_name = tenant.on_host("default", "web-sa-token");
    let secret = host_api.get(&SECRETS, &secret_name.namespace, &secret_name.name).await.expect("the token's Secret");
    assert!(host_pod["spec"]["volumes"].to_string().contains(&secret_name.name), "{host_pod}");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], host_pod["metadata"]["uid"]);
    let data = secret["data"].as_object().expect("data");
    assert_eq!(data.len(), 1);
    for token in data.values().filter_map(|v| v.as_str()) {
        use base64::Engine;
        let token = base64::engine::general_purpose::STANDARD.decode(token).expect("base64");
        let token = String::from_utf8(token).expect("a token");
        assert_eq!(token.split('.').count(), 3);
        // Nowhere but there.
        assert!(!host_pod.to_string().contains(&token));
        assert!(!secret["metadata"].to_string().contains(&token));
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let reviews = informer::Resource::new("authentication.k8s.io", "v1", "tokenreviews");
        let answer = tenant.api.create(&reviews, "", review.clone()).await;
        assert_eq!(answer.str_at(&["status", "user", "username"]), "system:serviceaccount:default:default", "{answer}");
        // The host does not know it.
        let foreign = host_api.try_create(&reviews, "", review).await;
        assert!(foreign.is_err() || foreign.is_ok_and(|r| r["status"]["authenticated"] != true));
    }
    let (requests, _) = syncer.requests();
    // Pod, token, root CA config map, and what other pods of the cluster may need meanwhile.
    assert!(requests <= 4, "{requests} host requests for one pod");
    tenant.api.delete(&PODS, "default", "web").await;
    eventually("the token goes with the pod", || async {
        host_api.get(&SECRETS, &secret_name.namespace, &secret_name.name).await.is_none().then_some(())
    })
    .await;
    syncer.shutdown().await;
}
