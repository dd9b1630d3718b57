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

#[test]
#[cfg_attr(not(kubectl), ignore = "kubectl is not installed")]
fn kubectl_looks_into_pods_of_a_virtual_cluster() {
    let world = World::up();
    world.alcove(&["create", "team-a"]);
    run(
        &world,
        &[
            ("run web --image=nginx --port=80 --env=COLOUR=red", "", 0, "pod/web created"),
            ("wait --for=condition=Ready pod/web --timeout=60s", "", 0, "condition met"),
            ("exec web -- echo hello", "", 0, "hello"),
            ("exec web -- printenv COLOUR", "", 0, "red"),
            ("exec web -- hostname", "", 0, "web"),
            ("exec -i web -- cat", "through stdin", 0, "through stdin"),
            ("exec web -- false", "", 1, "exit code 1"),
            ("exec -i web -- sh", "exit 42\n", 42, "exit code 42"),
            ("exec web -- nonsense", "", 1, "executable file not found"),
            ("exec web -c other -- true", "", 1, "container other is not valid for pod web"),
            ("exec nothing -- true", "", 1, "NotFound"),
            ("logs web", "", 0, "simulated"),
            ("run say --image=busybox --restart=Never -- echo said", "", 0, "pod/say created"),
            ("wait --for=jsonpath={.status.phase}=Succeeded pod/say --timeout=60s", "", 0, "condition met"),
            ("logs say", "", 0, "said"),
            ("exec say -- true", "", 1, "completed pod"),
            ("run shell --image=busybox --stdin -- sh", "echo attached; exit\n", 0, "attached"),
        ],
    );
    // The older protocol, SPDY, too.
    let home = world.home.path();
    let spdy = |words: &[&str], input: &str| {
        world.kubectl_with(&[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")], words, input)
    };
    assert_eq!(spdy(&["exec", "-i", "web", "--", "cat"], "over spdy"), (0, "over spdy".to_string()));
    let (code, text) = spdy(&["exec", "-i", "web", "--", "sh"], "echo to-err; exit 9\n");
    assert!(code == 9 && text.contains("to-err"), "{code} {text}");

    // Files go in and come out.
    let large: String = (0..40_000).map(|line| format!("line {line}\n")).collect();
    std::fs::create_dir(home.join("in")).unwrap();
    std::fs::write(home.join("in/large.txt"), &large).unwrap();
    run(
        &world,
        &[
            ("cp in/large.txt web:/tmp/large.txt", "", 0, ""),
            ("cp in web:/tmp/", "", 0, ""),
            ("exec web -- wc -l /tmp/large.txt", "", 0, "40000"),
            ("cp web:/tmp/in/large.txt back.txt", "", 0, ""),
        ],
    );
    assert_eq!(std::fs::read_to_string(home.join("back.txt")).unwrap(), large);

    for environment in [&[][..], &[("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")]] {
        let mut forward = world.kubectl_in_background(environment, &["port-forward", "pod/web", ":80"]);
        let line = forward.line();
        let port: u16 =
            line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect(&line);
        let answer = http_get(port);
        assert!(answer.contains("port 80: simulated"), "{answer}");
    }
    world.alcove(&["delete", "team-a"]);
}

/// Reads `/` from a local port, as a browser does.
fn http_get(port: u16) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("simulated\n") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the connection ended: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
