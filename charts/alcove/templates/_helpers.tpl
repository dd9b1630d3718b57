{{/* Objects are built as maps and written by toYaml, so that nothing a user writes can change their shape. The same
     objects come from crates/deploy; a test compares. Helpers answer in JSON. */}}

{{/* `alcove-VERSION` as a label value. */}}
{{- define "alcove.chart" -}}
{{- $label := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | replace "@" "_" | trunc 63 -}}
{{- regexReplaceAll "[-_.]+$" $label "" -}}
{{- end -}}

{{/* Labels of all objects. */}}
{{- define "alcove.labels" -}}
{{- dict "app" "vcluster" "chart" (include "alcove.chart" .) "release" .Release.Name "heritage" "Helm" "app.kubernetes.io/managed-by" "Helm" | toJson -}}
{{- end -}}

{{/* metadata. Takes root, name, and when needed labels, annotations, cluster (true: not in a namespace). */}}
{{- define "alcove.metadata" -}}
{{- $own := dict "meta.helm.sh/release-name" .root.Release.Name "meta.helm.sh/release-namespace" .root.Release.Namespace -}}
{{- $global := .root.Values.controlPlane.advanced.globalMetadata.annotations | default dict -}}
{{- $metadata := dict "name" .name -}}
{{- $_ := set $metadata "labels" (merge (dict) (fromJson (include "alcove.labels" .root)) (.labels | default dict)) -}}
{{- $_ := set $metadata "annotations" (merge (dict) $own (.annotations | default dict) $global) -}}
{{- if not .cluster -}}
{{- $_ := set $metadata "namespace" .root.Release.Namespace -}}
{{- end -}}
{{- toJson $metadata -}}
{{- end -}}

{{/* What the values have other than the defaults; a removed default is null. Takes values, defaults. */}}
{{- define "alcove.difference" -}}
{{- $out := dict -}}
{{- range $key, $value := .values -}}
{{- if hasKey $.defaults $key -}}
{{- $default := index $.defaults $key -}}
{{- if ne (toJson $value) (toJson $default) -}}
{{- if and (kindIs "map" $value) (kindIs "map" $default) -}}
{{- $_ := set $out $key (include "alcove.difference" (dict "values" $value "defaults" $default) | fromJson) -}}
{{- else -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- range $key, $default := .defaults -}}
{{- if not (hasKey $.values $key) -}}
{{- $_ := set $out $key nil -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* vcluster.yaml as it was set. */}}
{{- define "alcove.config" -}}
{{- $defaults := .Files.Get "files/defaults.json" | fromJson -}}
{{- include "alcove.difference" (dict "values" .Values "defaults" $defaults) -}}
{{- end -}}

{{/* Changes with the configuration, and with nothing else. */}}
{{- define "alcove.configHash" -}}
{{- $config := include "alcove.config" . | fromJson -}}
{{- if $config.privateNodes -}}
{{- $_ := unset $config.privateNodes "autoNodes" -}}
{{- end -}}
{{- toJson $config | sha256sum -}}
{{- end -}}

{{/* registry/repository:tag. Takes image (a map or a string), registry (in the place of the image's own), tag (when the
     image has none). */}}
{{- define "alcove.image" -}}
{{- $image := .image | default dict -}}
{{- if kindIs "string" $image -}}
{{- $name := $image -}}
{{- $tag := "" -}}
{{- if contains "@" $image -}}
{{- $name = regexReplaceAll "@.*$" $image "" -}}
{{- $tag = regexReplaceAll "^[^@]*@" $image "" -}}
{{- else if regexMatch ":[^/:]*$" $image -}}
{{- $name = regexReplaceAll ":[^/:]*$" $image "" -}}
{{- $tag = regexReplaceAll "^.*:" $image "" -}}
{{- end -}}
{{- $first := splitList "/" $name | first -}}
{{- if and (contains "/" $name) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
{{- $image = dict "registry" $first "repository" (trimPrefix (printf "%s/" $first) $name) "tag" $tag -}}
{{- else -}}
{{- $image = dict "registry" "" "repository" $name "tag" $tag -}}
{{- end -}}
{{- end -}}
{{- $registry := .registry | default $image.registry | default "" -}}
{{- $tag := $image.tag | default .tag | default "" -}}
{{- if $registry -}}{{ regexReplaceAll "/+$" $registry "" }}/{{- end -}}
{{- $image.repository -}}
{{- if hasPrefix "sha256:" $tag -}}@{{ $tag }}{{- else if $tag -}}:{{ $tag }}{{- end -}}
{{- end -}}

{{/* Names. */}}
{{- define "alcove.serviceAccount" -}}
{{- .Values.controlPlane.advanced.serviceAccount.name | default (printf "vc-%s" .Release.Name) -}}
{{- end -}}
{{- define "alcove.workloadServiceAccount" -}}
{{- .Values.controlPlane.advanced.workloadServiceAccount.name | default (printf "vc-workload-%s" .Release.Name) -}}
{{- end -}}
{{- define "alcove.short" -}}
{{- if le (len .) 63 -}}
{{- . -}}
{{- else -}}
{{- printf "%s-%s" (regexReplaceAll "[-.]+$" (trunc 52 .) "") (sha256sum . | trunc 10) -}}
{{- end -}}
{{- end -}}
{{- define "alcove.clusterRole" -}}
{{- include "alcove.short" (printf "vc-%s-v-%s" .Release.Name .Release.Namespace) -}}
{{- end -}}
{{- define "alcove.namespacesRole" -}}
{{- include "alcove.short" (printf "vc-mn-%s-v-%s" .Release.Name .Release.Namespace) -}}
{{- end -}}
{{- define "alcove.selector" -}}
{{- dict "app" "vcluster" "release" .Release.Name | toJson -}}
{{- end -}}

{{/* Where the data is kept. */}}
{{- define "alcove.store" -}}
{{- $store := .Values.controlPlane.backingStore -}}
{{- if $store.etcd.embedded.enabled -}}embedded-etcd
{{- else if $store.etcd.external.enabled -}}external-etcd
{{- else if $store.etcd.deploy.enabled -}}deployed-etcd
{{- else if $store.database.external.enabled -}}external-database
{{- else -}}embedded-database
{{- end -}}
{{- end -}}

{{/* "true" when there is an etcd beside the control plane, also one whose data is about to move into the embedded one. */}}
{{- define "alcove.hasDeployedEtcd" -}}
{{- $embedded := .Values.controlPlane.backingStore.etcd.embedded -}}
{{- if or (eq (include "alcove.store" .) "deployed-etcd") (and $embedded.enabled $embedded.migrateFromDeployedEtcd) -}}true{{- end -}}
{{- end -}}

{{/* "true" when the data is on the pod's own disk. */}}
{{- define "alcove.ownDisk" -}}
{{- if has (include "alcove.store" .) (list "embedded-database" "embedded-etcd") -}}true{{- end -}}
{{- end -}}

{{/* "true" when a claim is made for each pod. */}}
{{- define "alcove.claim" -}}
{{- $persistence := .Values.controlPlane.statefulSet.persistence -}}
{{- $enabled := toString $persistence.volumeClaim.enabled -}}
{{- if or $persistence.volumeClaimTemplates (eq $enabled "true") (and (ne $enabled "false") (include "alcove.ownDisk" .)) -}}true{{- end -}}
{{- end -}}
{{- define "alcove.stateful" -}}
{{- if or (include "alcove.claim" .) (eq (include "alcove.store" .) "embedded-etcd") -}}true{{- end -}}
{{- end -}}

{{/* {"templates": [...]}: of the claims. */}}
{{- define "alcove.claims" -}}
{{- $persistence := .Values.controlPlane.statefulSet.persistence -}}
{{- $templates := list -}}
{{- if $persistence.volumeClaimTemplates -}}
{{- $templates = $persistence.volumeClaimTemplates -}}
{{- else if and (include "alcove.claim" .) (not $persistence.dataVolume) -}}
{{- $claim := $persistence.volumeClaim -}}
{{- $spec := dict "accessModes" $claim.accessModes "resources" (dict "requests" (dict "storage" $claim.size)) -}}
{{- with $claim.storageClass -}}{{- $_ := set $spec "storageClassName" . -}}{{- end -}}
{{- $templates = list (dict "metadata" (dict "name" "data") "spec" $spec) -}}
{{- end -}}
{{- dict "templates" $templates | toJson -}}
{{- end -}}

{{- define "alcove.validate" -}}
{{- $name := .Release.Name -}}
{{- if or (gt (len $name) 52) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) -}}
{{- fail (printf "%q cannot be the name of a virtual cluster: it must be at most 52 lower case letters, digits and '-', and begin with a letter and end with a letter or digit" $name) -}}
{{- end -}}
{{- if and (gt (int .Values.controlPlane.statefulSet.highAvailability.replicas) 1) (eq (include "alcove.store" .) "embedded-database") -}}
{{- fail "controlPlane.statefulSet.highAvailability.replicas must be 1 with the embedded database; choose another controlPlane.backingStore for more replicas" -}}
{{- end -}}
{{- $store := .Values.controlPlane.backingStore -}}
{{- $moving := and $store.etcd.embedded.enabled $store.etcd.embedded.migrateFromDeployedEtcd -}}
{{- $enabled := 0 -}}
{{- range list $store.etcd.embedded.enabled $store.etcd.external.enabled (and $store.etcd.deploy.enabled (not $moving)) $store.database.embedded.enabled $store.database.external.enabled -}}
{{- if . -}}{{- $enabled = add1 $enabled -}}{{- end -}}
{{- end -}}
{{- if gt (int $enabled) 1 -}}
{{- fail "controlPlane.backingStore must have only one store that is enabled" -}}
{{- end -}}
{{- if not .Values.controlPlane.service.enabled -}}
{{- fail "controlPlane.service.enabled must be true: pods reach the API through this Service, and it owns what is synced" -}}
{{- end -}}
{{- end -}}
