//! kubectl against a virtual cluster and its host. Ignored, and reported so, where there is no kubectl.

use crate::support::World;

/// (arguments, input, exit code, what the output must contain)
type Step<'a> = (&'a str, &'a str, i32, &'a str);

#[track_caller]
fn run(world: &World, steps: &[Step<'_>]) {
    let mut wrong = Vec::new();
    for (arguments, input, code, want) in steps {
        let words: Vec<&str> = arguments.split(' ').collect();
        let (got_code, got) = world.kubectl(&words, input);
        if got_code != *code || !got.contains(want) {
            wrong.push(format!("$ kubectl {arguments}\nexit {got_code}, wanted {code} and {want:?}\n{got}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} steps failed:\n{}\n{}",
        wrong.len(),
        steps.len(),
        wrong.join("\n"),
        world.log()
    );
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: nginx, image: nginx:1.29, ports: [{containerPort: 80}]}
";

#[test]
#[cfg_attr(not(kubectl), ignore = "kubectl is not installed")]
fn kubectl_works_on_a_virtual_cluster() {
    let world = World::up();
    world.alcove(&["create", "team-a"]);
    let shop = format!("{}/../../examples/shop", env!("CARGO_MANIFEST_DIR"));
    let changed = WEB.replace("nginx:1.29", "nginx:1.30");
    run(
        &world,
        &[
            ("get namespaces", "", 0, "kube-system"),
            ("api-resources --no-headers", "", 0, "deployments"),
            ("explain deployment.spec.replicas", "", 0, "replicas"),
            ("apply -f -", WEB, 0, "deployment.apps/web created"),
            ("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            ("get deployments", "", 0, "2/2"),
            ("get pods -o wide", "", 0, "Running"),
            ("describe deployment web", "", 0, "2 available"),
            ("diff -f -", &changed, 1, "+      - image: nginx:1.30"),
            ("apply -f -", &changed, 0, "deployment.apps/web configured"),
            ("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            ("rollout history deployment/web", "", 0, "2"),
            ("rollout undo deployment/web", "", 0, "rolled back"),
            ("rollout status deployment/web --timeout=60s", "", 0, "successfully rolled out"),
            ("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}", "", 0, "nginx:1.29"),
            ("scale deployment web --replicas=3", "", 0, "scaled"),
            ("wait --for=jsonpath={.status.readyReplicas}=3 deployment/web --timeout=60s", "", 0, "condition met"),
            ("patch deployment web -p {\"spec\":{\"replicas\":1}}", "", 0, "patched"),
            ("label deployment web tier=front", "", 0, "labeled"),
            ("annotate deployment web note=x", "", 0, "annotated"),
            ("get deployments -l tier=front -o name", "", 0, "deployment.apps/web"),
            ("auth can-i create pods", "", 0, "yes"),
            ("create token default", "", 0, "ey"),
            ("logs deployment/web", "", 0, "simulated"),
            ("expose deployment web --port=80", "", 0, "exposed"),
            ("get service web", "", 0, "ClusterIP"),
            ("delete deployment web --wait=true", "", 0, "deleted"),
            ("get pods --field-selector=status.phase=Failed", "", 0, "No resources found"),
            ("get deployment web", "", 1, "NotFound"),
            (&format!("apply -f {shop}"), "", 0, "deployment.apps/frontend created"),
            ("wait --for=condition=Available deployment --all -n shop --timeout=90s", "", 0, "condition met"),
            ("wait --for=condition=Complete job/migrate-schema -n shop --timeout=60s", "", 0, "condition met"),
            ("get pvc -n shop-data", "", 0, "Bound"),
            (&format!("apply -f {shop}"), "", 0, "unchanged"),
            ("get events -n shop", "", 0, "Scheduled"),
            ("delete namespace shop shop-data", "", 0, "deleted"),
        ],
    );
    world.alcove(&["disconnect"]);
    run(
        &world,
        &[
            ("get nodes", "", 0, "Ready"),
            ("get secret vc-team-a -n vcluster-team-a -o name", "", 0, "secret/vc-team-a"),
        ],
    );
}

#[test]
#[cfg_attr(not(kubectl), ignore = "kubectl is not installed")]
fn the_readme_quick_start_works() {
    let world = World::up();
    world.alcove(&["create", "team-a"]);
    run(
        &world,
        &[
            ("create deployment web --image=nginx --replicas=3", "", 0, "created"),
            ("wait --for=condition=Available deployment/web --timeout=60s", "", 0, "condition met"),
            ("get pods -o wide", "", 0, "Running"),
        ],
    );
    world.alcove(&["disconnect"]);
    run(&world, &[("get pods -A", "", 0, "-x-default-x-team-a")]);
    world.alcove(&["delete", "team-a"]);
    run(&world, &[("get namespace vcluster-team-a", "", 1, "NotFound")]);
}
