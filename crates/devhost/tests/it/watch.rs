//! Watches, lists in chunks, and what discovery says: what every client is built on.

use apimachinery::{Value, json};

use crate::api::*;

fn config_map(name: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"watch-this": label}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_what_concerns_them_in_order() {
    let api = Api::start().await;
    let ns = api.namespace("watched").await;
    let maps = format!("/api/v1/namespaces/{ns}/configmaps");
    let version = version_of(&api.get(&maps).await).to_owned();
    let mut a = api.watch(&maps, &version, "&labelSelector=watch-this%3Da").await;
    let mut b = api.watch(&maps, &version, "&labelSelector=watch-this%3Db").await;
    let mut both = api.watch(&maps, &version, "&labelSelector=watch-this%20in%20(a,b)").await;
    api.post(&maps, config_map("map-a", "a")).await;
    let first = api.merge(&format!("{maps}/map-a"), json!({"data": {"mutation": "1"}})).await;
    api.merge(&format!("{maps}/map-a"), json!({"data": {"mutation": "2"}})).await;
    api.delete(&format!("{maps}/map-a")).await;
    api.post(&maps, config_map("map-b", "b")).await;
    api.delete(&format!("{maps}/map-b")).await;
    for (kind, mutation) in [("ADDED", ""), ("MODIFIED", "1"), ("MODIFIED", "2"), ("DELETED", "2")] {
        for events in [&mut a, &mut both] {
            let (found, object) = events.next().await;
            assert_eq!(
                (found.as_str(), name_of(&object), object.str_at(&["data", "mutation"])),
                (kind, "map-a", mutation)
            );
        }
    }
    for kind in ["ADDED", "DELETED"] {
        for events in [&mut b, &mut both] {
            let (found, object) = events.next().await;
            assert_eq!((found.as_str(), name_of(&object)), (kind, "map-b"));
        }
    }
    // From a version in the past, what came later comes again.
    let mut late = api.watch(&maps, version_of(&first), "&labelSelector=watch-this%3Da").await;
    assert_eq!(late.next().await.1.str_at(&["data", "mutation"]), "2");
    assert_eq!(late.next().await.0, "DELETED");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_another_ended_and_follows_labels() {
    let api = Api::start().await;
    let ns = api.namespace("restarted").await;
    let maps = format!("/api/v1/namespaces/{ns}/configmaps");
    let selector = "&labelSelector=watch-this%3Da";
    let version = version_of(&api.get(&maps).await).to_owned();
    let mut events = api.watch(&maps, &version, selector).await;
    api.post(&maps, config_map("m", "a")).await;
    let (_, added) = events.next().await;
    drop(events);
    let path = format!("{maps}/m");
    api.merge(&path, json!({"data": {"mutation": "1"}})).await;
    // The label changes: for this watcher the object is gone. It comes back as new.
    api.merge(&path, json!({"metadata": {"labels": {"watch-this": "other"}}})).await;
    api.merge(&path, json!({"data": {"mutation": "2"}})).await;
    api.merge(&path, json!({"metadata": {"labels": {"watch-this": "a"}}})).await;
    api.merge(&path, json!({"data": {"mutation": "3"}})).await;
    api.delete(&path).await;
    let mut events = api.watch(&maps, version_of(&added), selector).await;
    for (kind, mutation) in [("MODIFIED", "1"), ("DELETED", "1"), ("ADDED", "2"), ("MODIFIED", "3"), ("DELETED", "3")] {
        let (found, object) = events.next().await;
        assert_eq!((found.as_str(), object.str_at(&["data", "mutation"])), (kind, mutation));
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_watchers_see_one_order() {
    let api = Api::start().await;
    let ns = api.namespace("ordered").await;
    let maps = format!("/api/v1/namespaces/{ns}/configmaps");
    let version = version_of(&api.get(&maps).await).to_owned();
    let mut first = api.watch(&maps, &version, "").await;
    let writes = async {
        let mut versions = Vec::new();
        for i in 0..20 {
            let path = format!("{maps}/m{}", i % 4);
            let written = match i / 4 {
                0 | 3 => api.post(&maps, config_map(&format!("m{}", i % 4), "x")).await,
                2 => {
                    api.delete(&path).await;
                    continue;
                }
                _ => api.merge(&path, json!({"data": {"i": i.to_string()}})).await,
            };
            versions.push(version_of(&written).to_owned());
        }
        versions
    };
    let versions = writes.await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let (kind, object) = first.next().await;
        seen.push((kind, version_of(&object).to_owned()));
    }
    let written: Vec<&String> = seen.iter().filter(|(kind, _)| kind != "DELETED").map(|(_, v)| v).collect();
    assert_eq!(written, versions.iter().collect::<Vec<_>>());
    // Watchers that start at each of the versions see the rest of the same sequence.
    for (i, (_, start)) in seen.iter().enumerate().take(19) {
        let mut events = api.watch(&maps, start, "").await;
        for want in &seen[i + 1..] {
            let (kind, object) = events.next().await;
            assert_eq!((kind, version_of(&object).to_owned()), *want, "from {start}");
        }
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_chunks_of_one_version() {
    let api = Api::start().await;
    let ns = api.namespace("chunks").await;
    let templates = format!("/api/v1/namespaces/{ns}/podtemplates");
    for i in 0..40 {
        api.post(
            &templates,
            json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": format!("template-{i:04}")},
            "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}),
        )
        .await;
    }
    for limit in [1, 7, 40] {
        let (mut names, mut token, mut version) = (Vec::new(), String::new(), String::new());
        loop {
            let page = api.get(&format!("{templates}?limit={limit}&continue={token}")).await;
            let items = page.array_at(&["items"]);
            assert!(items.len() <= limit);
            names.extend(items.iter().map(|i| name_of(i).to_owned()));
            if version.is_empty() {
                version = version_of(&page).to_owned();
            }
            assert_eq!(version_of(&page), version, "all pages are of one version");
            token = page.str_at(&["metadata", "continue"]).to_owned();
            let left = page.at(&["metadata", "remainingItemCount"]).and_then(Value::as_i64);
            if token.is_empty() {
                assert_eq!(left, None);
                break;
            }
            assert_eq!(left, Some(40 - names.len() as i64));
        }
        assert_eq!(names.len(), 40);
        assert!(names.is_sorted());
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_tells_groups_versions_and_resources() {
    let api = Api::start().await;
    let version = api.get("/version").await;
    assert!(version.str_at(&["gitVersion"]).starts_with("v1.36."), "{version}");
    assert_eq!((version.str_at(&["major"]), version.str_at(&["minor"])), ("1", "36"));
    assert!(api.get("/api").await.array_at(&["versions"]).iter().any(|v| *v == "v1"));
    let groups = api.get("/apis").await;
    for group in groups.array_at(&["groups"]) {
        let name = group.str_at(&["name"]);
        let preferred = group.str_at(&["preferredVersion", "groupVersion"]);
        let versions = group.array_at(&["versions"]);
        assert!(versions.iter().any(|v| v.str_at(&["groupVersion"]) == preferred), "{name}");
        let own = api.get(&format!("/apis/{name}")).await;
        assert_eq!(own.str_at(&["preferredVersion", "groupVersion"]), preferred);
        for version in versions {
            let version = version.str_at(&["groupVersion"]);
            let list = api.get(&format!("/apis/{version}")).await;
            assert_eq!(list.str_at(&["groupVersion"]), version);
            assert!(!list.array_at(&["resources"]).is_empty(), "{version}");
        }
    }
    // The aggregated document has them all at once, and says by its content type that it is one.
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let text = api.text("GET", "/apis", &[("accept", accept)], "").await.expect("aggregated discovery");
    let all = Value::from_slice(text.as_bytes()).expect("JSON");
    assert_eq!(all.str_at(&["kind"]), "APIGroupDiscoveryList");
    let names = |v: &Value, list: &str, path: &[&str]| -> Vec<String> {
        v.array_at(&[list]).iter().map(|g| g.str_at(path).to_owned()).collect()
    };
    assert_eq!(names(&all, "items", &["metadata", "name"]), names(&groups, "groups", &["name"]));
    let core = api.text("GET", "/api", &[("accept", accept)], "").await.expect("aggregated discovery");
    assert!(core.contains("\"APIGroupDiscoveryList\"") && core.contains("\"pods\""));
    let admission =
        all.array_at(&["items"]).iter().find(|g| name_of(g) == "admissionregistration.k8s.io").expect("a group");
    let resources = names(&admission["versions"][0], "resources", &["resource"]);
    for resource in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert!(resources.iter().any(|r| r == resource));
    }
    // Metadata of what has none is refused.
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let refused = api
        .text(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[("accept", table), ("content-type", "application/json")],
            &review.to_string(),
        )
        .await
        .expect_err("there is no Table of a review");
    assert_eq!(refused.code, 406, "{}", refused.message);
    api.stop().await;
}
