//! The API server in process: objects, lists and watches through a `kube::Client`.

mod aggregation;
mod authentication;
mod crd;
mod custom_objects;
mod explosions;
mod generations;
mod policy_types;
mod real_crds;
mod replicas;
mod security;

use std::time::Duration;

use apiserver::{ApiServer, Config, UserInfo};
use futures::{StreamExt, TryStreamExt};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};

async fn server() -> ApiServer {
    let store = store::Store::in_memory(store::Options::default()).await;
    ApiServer::start(Config::default(), store).await.expect("a server over an empty store starts")
}

fn config_maps(client: kube::Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
    Api::namespaced_with(client, "default", &resource)
}

fn config_map(name: &str, value: &str) -> DynamicObject {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value},
    }))
    .expect("this is a ConfigMap")
}

#[tokio::test]
async fn objects_are_created_read_listed_watched_updated_and_deleted() {
    let server = server().await;
    let api = config_maps(server.kube_client(UserInfo::admin()));
    let list = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 0);
    let version = list.metadata.resource_version.unwrap();
    let watch = api.watch(&WatchParams::default(), &version).await.unwrap();

    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.metadata.uid.is_some());
    let mut changed = api.get("a").await.unwrap();
    assert_eq!(changed, created);
    changed.data["data"]["k"] = "2".into();
    let updated = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(updated.metadata.resource_version, created.metadata.resource_version);
    let stale = api.replace("a", &PostParams::default(), &changed).await;
    assert!(matches!(stale, Err(kube::Error::Api(s)) if s.code == 409), "an old resourceVersion is a conflict");
    let again = api.create(&PostParams::default(), &config_map("a", "1")).await;
    assert!(matches!(again, Err(kube::Error::Api(s)) if s.reason == "AlreadyExists"));
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());

    let events = watch.take(3).try_collect::<Vec<_>>();
    let events = tokio::time::timeout(Duration::from_secs(10), events).await.expect("three events come").unwrap();
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| match e {
            WatchEvent::Added(_) => "ADDED",
            WatchEvent::Modified(_) => "MODIFIED",
            WatchEvent::Deleted(_) => "DELETED",
            WatchEvent::Bookmark(_) => "BOOKMARK",
            WatchEvent::Error(_) => "ERROR",
        })
        .collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"]);
    server.shutdown().await;
}

#[tokio::test]
async fn an_expired_continue_token_goes_on_from_a_newer_version() {
    let store = store::Store::in_memory(store::Options::default()).await;
    let server = ApiServer::start(Config::default(), store.clone()).await.expect("a server over an empty store starts");
    let client = server.kube_client(UserInfo::admin());
    let api = config_maps(client.clone());
    for i in 0..6 {
        api.create(&PostParams::default(), &config_map(&format!("m{i}"), "1")).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    let token = first.metadata.continue_.clone().expect("there is more");
    // One of the rest changes, and the version of the first page is forgotten.
    let mut changed = api.get("m3").await.unwrap();
    changed.data["data"]["k"] = "2".into();
    api.replace("m3", &PostParams::default(), &changed).await.unwrap();
    store.compact(store.current_revision()).await.expect("a compaction");
    let list = async |token: &str| {
        let uri = format!("/api/v1/namespaces/default/configmaps?limit=2&continue={token}");
        let request = http::Request::get(uri).body(kube::client::Body::empty()).unwrap();
        let response = client.send(request).await.unwrap();
        let code = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (code, serde_json::from_slice::<serde_json::Value>(&body).unwrap())
    };
    let (code, expired) = list(&token).await;
    assert_eq!((code, expired["reason"].as_str()), (410, Some("Expired")), "{expired}");
    let token = expired["metadata"]["continue"].as_str().expect("a token to go on with").to_owned();
    let (code, page) = list(&token).await;
    assert_eq!(code, 200, "{page}");
    let names: Vec<&str> =
        page["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["m2", "m3"]);
    assert_eq!(page["items"][1]["data"]["k"], "2", "the list is newer than its beginning");
    assert_ne!(page["metadata"]["resourceVersion"].as_str(), first.metadata.resource_version.as_deref());
    server.shutdown().await;
}

#[tokio::test]
async fn a_watch_from_nowhere_says_where_its_initial_events_end() {
    let server = server().await;
    let api = config_maps(server.kube_client(UserInfo::admin()));
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    for version in ["", "0"] {
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=true&allowWatchBookmarks=true&resourceVersion={version}"
        );
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        let events = server.kube_client(UserInfo::admin()).request_events::<serde_json::Value>(request).await.unwrap();
        let events = tokio::time::timeout(Duration::from_secs(10), events.take(2).try_collect::<Vec<_>>());
        let events = events.await.expect("two events come").unwrap();
        assert!(matches!(&events[0], WatchEvent::Added(object) if object["metadata"]["name"] == "a"), "{version:?}");
        let WatchEvent::Bookmark(bookmark) = &events[1] else { panic!("{:?}", events[1]) };
        assert_eq!(bookmark.metadata.annotations["k8s.io/initial-events-end"], "true", "{version:?}");
    }
    let late = http::Request::get("/api/v1/namespaces?timeout=soon").body(Vec::new()).unwrap();
    let refused = server.kube_client(UserInfo::admin()).request_text(late).await;
    let message = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
    assert!(matches!(refused, Err(kube::Error::Api(s)) if s.code == 400 && s.message == message));
    server.shutdown().await;
}

#[tokio::test]
async fn events_are_selected_by_the_fields_of_the_version_that_is_asked() {
    let server = server().await;
    let client = server.kube_client(UserInfo::admin());
    let ask = async |method: &str, path: &str, body: serde_json::Value| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        client.request::<serde_json::Value>(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
    };
    for name in ["a", "b"] {
        let event = serde_json::json!({"metadata": {"name": name, "namespace": "default"}, "reason": "Tested", "type": "Normal",
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": format!("pod-{name}")}});
        ask("POST", "/api/v1/namespaces/default/events", event).await;
    }
    for (path, selector) in [
        ("/api/v1/namespaces/default/events", "involvedObject.name%3Dpod-b"),
        ("/apis/events.k8s.io/v1/namespaces/default/events", "regarding.name%3Dpod-b"),
        ("/apis/events.k8s.io/v1/namespaces/default/events", "reason%3DTested,regarding.name!%3Dpod-a"),
    ] {
        let list = ask("GET", &format!("{path}?fieldSelector={selector}"), serde_json::Value::Null).await;
        let names: Vec<&str> =
            list["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
        assert_eq!(names, ["b"], "{path} {selector}");
    }
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn events_go_when_their_time_is_over_and_other_objects_stay() {
    let store = store::Store::in_memory(store::Options::default()).await;
    let config = Config { event_ttl: Duration::from_secs(3600), ..Config::default() };
    let server = ApiServer::start(config, store).await.expect("a server over an empty store starts");
    let client = server.kube_client(UserInfo::admin());
    config_maps(client.clone()).create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let events = |group: &str| match group {
        "" => "/api/v1/namespaces/default/events".to_owned(),
        group => format!("/apis/{group}/v1/namespaces/default/events"),
    };
    let core =
        serde_json::json!({"metadata": {"name": "core"}, "involvedObject": {"namespace": "default", "name": "a"}});
    let new = serde_json::json!({"metadata": {"name": "new"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Test",
        "reason": "Test", "type": "Normal", "reportingController": "example.com/test", "reportingInstance": "test-1",
        "regarding": {"namespace": "default", "name": "a"}});
    for (group, event) in [("", core), ("events.k8s.io", new)] {
        let request = http::Request::post(events(group)).body(event.to_string().into_bytes()).unwrap();
        client.request::<serde_json::Value>(request).await.unwrap();
    }
    let names = async || {
        let request = http::Request::get(events("")).body(Vec::new()).unwrap();
        let list: serde_json::Value = client.request(request).await.unwrap();
        let names =
            list["items"].as_array().unwrap().iter().map(|e| e["metadata"]["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    tokio::time::sleep(Duration::from_secs(3000)).await;
    // Written again, it begins anew.
    let patch = serde_json::json!({"count": 2}).to_string().into_bytes();
    let request = http::Request::patch(format!("{}/core", events("")))
        .header("content-type", "application/merge-patch+json")
        .body(patch)
        .unwrap();
    client.request::<serde_json::Value>(request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(names().await, ["core"]);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(names().await, [] as [&str; 0]);
    assert!(config_maps(client).get("a").await.is_ok());
}

#[tokio::test]
async fn who_owns_fields_is_given_up_when_it_makes_an_object_too_large() {
    let options = store::Options { value_bytes_max: 8000, ..store::Options::default() };
    let store = store::Store::in_memory(options).await;
    let server = ApiServer::start(Config::default(), store).await.expect("a server over an empty store starts");
    let api = config_maps(server.kube_client(UserInfo::admin()));
    let mut large = config_map("a", "1");
    for i in 0..100 {
        large.data["data"][format!("a-key-that-is-not-short-and-comes-again-in-field-sets-{i}")] = "v".into();
    }
    let created = api.create(&PostParams::default(), &large).await.unwrap();
    assert_eq!(created.metadata.managed_fields, None);
    let mut changed = created.clone();
    changed.data["data"]["k"] = "2".into();
    let updated = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(updated.metadata.managed_fields, None);
    large.metadata.managed_fields = None;
    let applied = api.patch("a", &PatchParams::apply("m").force(), &Patch::Apply(&large)).await;
    assert!(matches!(applied, Err(kube::Error::Api(s)) if s.code == 413), "an apply is about who owns what");
    server.shutdown().await;
}

#[tokio::test]
async fn owners_that_a_patch_gives_twice_count_once() {
    let server = server().await;
    let client = server.kube_client(UserInfo::admin());
    config_maps(client.clone()).create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let owner = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u-1"});
    let patch = serde_json::json!({"metadata": {"ownerReferences": [owner, owner]}}).to_string();
    let request = http::Request::patch("/api/v1/namespaces/default/configmaps/a")
        .header("content-type", "application/merge-patch+json")
        .body(kube::client::Body::from(patch.into_bytes()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let warning = response.headers()["warning"].to_str().unwrap().to_owned();
    assert!(warning.contains("duplicate entries after mutating admission happens"), "{warning}");
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let object: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(object["metadata"]["ownerReferences"].as_array().map(Vec::len), Some(1), "{object}");
    server.shutdown().await;
}

#[tokio::test]
async fn an_empty_list_of_managed_fields_forgets_the_owners() {
    let server = server().await;
    let api = config_maps(server.kube_client(UserInfo::admin()));
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.metadata.managed_fields.is_some());
    let mut changed = created;
    changed.metadata.managed_fields = Some(Vec::new());
    let updated = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(updated.metadata.managed_fields, None);
    assert_eq!(api.get("a").await.unwrap().metadata.managed_fields, None);
    let mut empty = config_map("b", "1");
    empty.metadata = serde_json::from_value(serde_json::json!({"name": "b", "managedFields": []})).unwrap();
    let created = api.create(&PostParams::default(), &empty).await.unwrap();
    assert!(created.metadata.managed_fields.is_some_and(|entries| !entries.is_empty()), "a creation is tracked");
    server.shutdown().await;
}

#[tokio::test]
async fn only_a_real_version_is_refused_when_an_object_is_created() {
    let server = server().await;
    let api = config_maps(server.kube_client(UserInfo::admin()));
    for (name, version, want) in [("a", "", true), ("b", "0", true), ("c", "none", true), ("d", "7", false)] {
        let mut object = config_map(name, "1");
        object.metadata.resource_version = Some(version.to_owned());
        let created = api.create(&PostParams::default(), &object).await;
        assert_eq!(created.is_ok(), want, "{version}");
        if let Ok(created) = created {
            assert!(created.metadata.resource_version.is_some_and(|given| given != version), "{version}");
        }
    }
    server.shutdown().await;
}
