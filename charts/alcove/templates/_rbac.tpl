{{/* Rights of the control plane on the host: no more than the configuration needs. See docs/rbac.md. */}}

{{/* {"resources": "a", "group": "b.c"} of `a.b.c[/version]`. */}}
{{- define "alcove.resource" -}}
{{- $key := splitList "/" . | first -}}
{{- $parts := splitn "." 2 $key -}}
{{- dict "name" $parts._0 "group" ($parts._1 | default "") | toJson -}}
{{- end -}}

{{/* Is a kind of the Gateway API copied to the host? Takes root, kind. */}}
{{- define "alcove.gatewayKind" -}}
{{- $api := .root.Values.sync.toHost.gatewayApi -}}
{{- if or (index $api .kind).enabled (and $api.enabled (has .kind (list "gateways" "httpRoutes"))) -}}true{{- end -}}
{{- end -}}

{{- define "alcove.virtualScheduler" -}}
{{- if or .Values.controlPlane.distro.k8s.scheduler.enabled .Values.controlPlane.advanced.virtualScheduler.enabled .Values.sync.toHost.pods.hybridScheduling.enabled -}}true{{- end -}}
{{- end -}}

{{/* {"rules": [...]} of the Role. */}}
{{- define "alcove.roleRules" -}}
{{- $values := .Values -}}
{{- $all := list "create" "delete" "patch" "update" "get" "list" "watch" -}}
{{- $read := list "get" "list" "watch" -}}
{{- $gateway := list "gateway.networking.k8s.io" -}}
{{- $toHost := $values.sync.toHost -}}
{{- $rules := list -}}
{{- if $values.rbac.role.overwriteRules -}}
{{- $rules = $values.rbac.role.overwriteRules -}}
{{- else -}}
{{- $rules = list
      (dict "apiGroups" (list "") "resources" (list "configmaps" "secrets" "services" "pods" "pods/attach" "pods/portforward" "pods/exec" "persistentvolumeclaims") "verbs" $all)
      (dict "apiGroups" (list "") "resources" (list "pods/status" "pods/ephemeralcontainers" "pods/resize") "verbs" (list "patch" "update"))
      (dict "apiGroups" (list "") "resources" (list "endpoints" "pods/log") "verbs" $read)
      (dict "apiGroups" (list "" "events.k8s.io") "resources" (list "events") "verbs" (list "create" "get" "list" "watch")) -}}
{{- if $toHost.endpoints.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "endpoints") "verbs" (list "create" "delete" "patch" "update")) -}}
{{- end -}}
{{- if $toHost.endpointSlices.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "discovery.k8s.io") "resources" (list "endpointslices") "verbs" $all) -}}
{{- end -}}
{{- if or (gt (int $values.controlPlane.statefulSet.highAvailability.replicas) 1) $values.controlPlane.backingStore.etcd.embedded.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "coordination.k8s.io") "resources" (list "leases") "verbs" $all) -}}
{{- end -}}
{{- if and $values.integrations.metricsServer.enabled $values.integrations.metricsServer.pods -}}
{{- $rules = append $rules (dict "apiGroups" (list "metrics.k8s.io") "resources" (list "pods") "verbs" (list "get" "list")) -}}
{{- end -}}
{{- if $toHost.ingresses.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "networking.k8s.io") "resources" (list "ingresses") "verbs" $all) -}}
{{- end -}}
{{- $routes := false -}}
{{- range $kind := list "gateways" "httpRoutes" "tlsRoutes" "grpcRoutes" "tcpRoutes" "udpRoutes" "backendTLSPolicies" -}}
{{- if include "alcove.gatewayKind" (dict "root" $ "kind" $kind) -}}
{{- $rules = append $rules (dict "apiGroups" $gateway "resources" (list (lower $kind)) "verbs" $all) -}}
{{- if ne $kind "gateways" -}}{{- $routes = true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if or (eq (toString $toHost.gatewayApi.referenceGrants.enabled) "true") (and $routes $toHost.namespaces.enabled) -}}
{{- $rules = append $rules (dict "apiGroups" $gateway "resources" (list "referencegrants") "verbs" $all) -}}
{{- else if $routes -}}
{{- $rules = append $rules (dict "apiGroups" $gateway "resources" (list "referencegrants") "verbs" $read) -}}
{{- end -}}
{{- range $kind := list (list "networkPolicies" "networking.k8s.io" "networkpolicies") (list "serviceAccounts" "" "serviceaccounts") (list "podDisruptionBudgets" "policy" "poddisruptionbudgets") (list "resourceClaims" "resource.k8s.io" "resourceclaims") (list "resourceClaimTemplates" "resource.k8s.io" "resourceclaimtemplates") -}}
{{- if (index $toHost (index $kind 0)).enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list (index $kind 1)) "resources" (list (index $kind 2)) "verbs" $all) -}}
{{- end -}}
{{- end -}}
{{- if $toHost.resourceClaims.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "resource.k8s.io") "resources" (list "resourceclaims/status") "verbs" (list "patch" "update")) -}}
{{- end -}}
{{- range $key, $resource := $toHost.customResources -}}
{{- if $resource.enabled -}}
{{- $of := include "alcove.resource" $key | fromJson -}}
{{- $rules = append $rules (dict "apiGroups" (list $of.group) "resources" (list $of.name) "verbs" $all) -}}
{{- end -}}
{{- end -}}
{{- $rules = concat $rules ($values.rbac.role.extraRules | default list) -}}
{{- end -}}
{{- dict "rules" $rules | toJson -}}
{{- end -}}

{{/* {"rules": [...]}: reading named objects of other namespaces. A watch cannot be limited by name, a get can. Takes root,
     kind, mappings. */}}
{{- define "alcove.importRules" -}}
{{- $namespaces := list -}}
{{- $objects := list -}}
{{- $every := false -}}
{{- range $key, $target := .mappings -}}
{{- $parts := splitList "/" $key -}}
{{- $namespaces = append $namespaces (first $parts | default $.root.Release.Namespace) -}}
{{- if or (eq (len $parts) 1) (eq (last $parts) "*") -}}
{{- $every = true -}}
{{- else -}}
{{- $objects = append $objects (last $parts) -}}
{{- end -}}
{{- end -}}
{{- $get := dict "apiGroups" (list "") "resources" (list .kind) "verbs" (list "get") -}}
{{- if not $every -}}{{- $_ := set $get "resourceNames" (sortAlpha (uniq $objects)) -}}{{- end -}}
{{- $rules := list
      (dict "apiGroups" (list "") "resources" (list "namespaces") "verbs" (list "get" "list" "watch") "resourceNames" (sortAlpha (uniq $namespaces)))
      (dict "apiGroups" (list "") "resources" (list .kind) "verbs" (list "list" "watch"))
      $get -}}
{{- dict "rules" $rules | toJson -}}
{{- end -}}

{{/* {"rules": [...]} of the ClusterRole. */}}
{{- define "alcove.clusterRoleRules" -}}
{{- $values := .Values -}}
{{- $all := list "create" "delete" "patch" "update" "get" "list" "watch" -}}
{{- $read := list "get" "list" "watch" -}}
{{- $toHost := $values.sync.toHost -}}
{{- $fromHost := $values.sync.fromHost -}}
{{- $gateway := "gateway.networking.k8s.io" -}}
{{- $rules := list -}}
{{- if $values.rbac.clusterRole.overwriteRules -}}
{{- $rules = $values.rbac.clusterRole.overwriteRules -}}
{{- else -}}
{{- if $fromHost.nodes.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "nodes" "nodes/status") "verbs" $read) -}}
{{- $kubelets := $values.networking.advanced.proxyKubelets -}}
{{- if or $kubelets.byHostname $kubelets.byIP -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "nodes/metrics" "nodes/stats" "nodes/proxy") "verbs" (list "get")) -}}
{{- end -}}
{{- if $fromHost.nodes.syncBackChanges -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "nodes" "nodes/status") "verbs" (list "patch" "update")) -}}
{{- end -}}
{{- end -}}
{{- $scheduler := include "alcove.virtualScheduler" . -}}
{{- if $scheduler -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "pods") "verbs" $read) -}}
{{- end -}}
{{- $anyGateway := false -}}
{{- range $kind := list "gateways" "httpRoutes" "tlsRoutes" "grpcRoutes" "tcpRoutes" "udpRoutes" "backendTLSPolicies" -}}
{{- if include "alcove.gatewayKind" (dict "root" $ "kind" $kind) -}}{{- $anyGateway = true -}}{{- end -}}
{{- end -}}
{{- $classes := or $fromHost.gatewayClasses.enabled $fromHost.gateways.enabled $toHost.gatewayApi.enabled -}}
{{- $claims := or $toHost.resourceClaims.enabled $toHost.resourceClaimTemplates.enabled $fromHost.deviceClasses.enabled -}}
{{- range $row := list
      (list $toHost.ingresses.enabled "networking.k8s.io" "ingresses" (list "list" "watch"))
      (list (or $scheduler (eq (toString $fromHost.storageClasses.enabled) "true")) "storage.k8s.io" "storageclasses" $read)
      (list (or $scheduler (eq (toString $fromHost.csiNodes.enabled) "true")) "storage.k8s.io" "csinodes" $read)
      (list (or $scheduler (eq (toString $fromHost.csiDrivers.enabled) "true")) "storage.k8s.io" "csidrivers" $read)
      (list (or $scheduler (eq (toString $fromHost.csiStorageCapacities.enabled) "true")) "storage.k8s.io" "csistoragecapacities" $read)
      (list $fromHost.ingressClasses.enabled "networking.k8s.io" "ingressclasses" $read)
      (list $classes $gateway "gatewayclasses" $read)
      (list $fromHost.gateways.enabled $gateway "gateways" $read)
      (list $fromHost.runtimeClasses.enabled "node.k8s.io" "runtimeclasses" $read)
      (list $fromHost.priorityClasses.enabled "scheduling.k8s.io" "priorityclasses" $read)
      (list $claims "resource.k8s.io" "deviceclasses" $read)
      (list $toHost.storageClasses.enabled "storage.k8s.io" "storageclasses" $all)
      (list $toHost.persistentVolumes.enabled "" "persistentvolumes" $all)
      (list $toHost.priorityClasses.enabled "scheduling.k8s.io" "priorityclasses" $all) -}}
{{- if index $row 0 -}}
{{- $rules = append $rules (dict "apiGroups" (list (index $row 1)) "resources" (list (index $row 2)) "verbs" (index $row 3)) -}}
{{- end -}}
{{- end -}}
{{- if ($values.networking.replicateServices | default dict).fromHost -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "services" "endpoints") "verbs" $read) -}}
{{- end -}}
{{- if $toHost.namespaces.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "namespaces" "serviceaccounts") "verbs" $all) -}}
{{- end -}}
{{- if and $values.integrations.metricsServer.enabled $values.integrations.metricsServer.nodes -}}
{{- $rules = append $rules (dict "apiGroups" (list "metrics.k8s.io") "resources" (list "nodes") "verbs" (list "get" "list")) -}}
{{- end -}}
{{- if or $toHost.customResources $fromHost.customResources $anyGateway $fromHost.gatewayClasses.enabled $fromHost.gateways.enabled -}}
{{- $rules = append $rules (dict "apiGroups" (list "apiextensions.k8s.io") "resources" (list "customresourcedefinitions") "verbs" $read) -}}
{{- end -}}
{{- range $pair := list (list "configmaps" $fromHost.configMaps) (list "secrets" $fromHost.secrets) -}}
{{- $import := index $pair 1 -}}
{{- if $import.enabled -}}
{{- $rules = concat $rules (include "alcove.importRules" (dict "root" $ "kind" (index $pair 0) "mappings" ($import.mappings.byName | default dict)) | fromJson).rules -}}
{{- end -}}
{{- end -}}
{{- range $key, $resource := $fromHost.customResources -}}
{{- if $resource.enabled -}}
{{- $of := include "alcove.resource" $key | fromJson -}}
{{- $rules = append $rules (dict "apiGroups" (list $of.group) "resources" (list $of.name) "verbs" $read) -}}
{{- end -}}
{{- end -}}
{{- $rules = concat $rules ($values.rbac.clusterRole.extraRules | default list) -}}
{{- end -}}
{{- dict "rules" $rules | toJson -}}
{{- end -}}

{{/* A role and its binding. Takes root, kind, name, rules. */}}
{{- define "alcove.role" -}}
{{- $metadata := include "alcove.metadata" (dict "root" .root "name" .name "cluster" (ne .kind "Role")) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}
metadata: {{ $metadata }}
rules: {{ toJson .rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata: {{ $metadata }}
subjects:
- kind: ServiceAccount
  name: {{ include "alcove.serviceAccount" .root }}
  namespace: {{ .root.Release.Namespace }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .name }}
{{- end -}}
