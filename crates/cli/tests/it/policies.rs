//! `policies` of the configuration, as tenants meet them.

use crate::support::World;

const PRIVILEGED: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
    {"name": "c", "image": "i", "securityContext": {"privileged": true}}]}}"#;
const PLAIN: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;

#[test]
#[cfg_attr(not(kubectl), ignore = "there is no kubectl in PATH")]
fn a_pod_security_standard_holds_in_every_namespace_and_cannot_be_lifted() {
    let world = World::up();
    world.alcove(&["create", "team-a", "--set", "policies.podSecurityStandard=baseline"]);
    let (code, said) = world.kubectl(&["create", "namespace", "free"], "");
    assert_eq!(code, 0, "{said}");
    // As soon as the namespace exists, and also when its owner says otherwise.
    let lift = ["label", "namespace", "free", "--overwrite", "pod-security.kubernetes.io/enforce=privileged"];
    let (code, said) = world.kubectl(&["-n", "free", "apply", "-f", "-"], PRIVILEGED);
    assert!(code != 0 && said.contains("violates PodSecurity \"baseline:latest\""), "{said}");
    let (code, said) = world.kubectl(&lift, "");
    assert_eq!(code, 0, "{said}");
    let (code, said) = world.kubectl(&["-n", "free", "apply", "-f", "-"], PRIVILEGED);
    assert!(code != 0 && said.contains("violates PodSecurity \"baseline:latest\""), "{said}");
    let (code, said) = world.kubectl(&["-n", "free", "apply", "-f", "-"], PLAIN);
    assert_eq!(code, 0, "{said}");
    for namespace in ["default", "free"] {
        let wait = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}=baseline";
        let object = format!("namespace/{namespace}");
        let (code, said) = world.kubectl(&["wait", &object, "--for", wait, "--timeout", "20s"], "");
        assert_eq!(code, 0, "{said}");
    }
}
