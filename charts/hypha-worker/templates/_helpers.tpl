{{- define "hypha-worker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "hypha-worker.fullname" -}}
{{- $name := include "hypha-worker.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of cluster-wide objects. It contains the namespace, because releases in two namespaces may have the same name. */}}
{{- define "hypha-worker.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "hypha-worker.fullname" .) -}}
{{- end -}}

{{- define "hypha-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "hypha-worker.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is empty. Name the account that the operator uses, or set serviceAccount.create" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "hypha-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "hypha-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "hypha-worker.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "hypha-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The reference of an image. The argument is (list $ "worker"). */}}
{{- define "hypha-worker.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- with $root.Values.images.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ coalesce $image.tag $root.Values.images.tag $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* Whether pods name their user: "true" or "false". */}}
{{- define "hypha-worker.userIds" -}}
{{- if eq (toString .Values.podSecurity.userIds) "auto" -}}
{{- not (.Capabilities.APIVersions.Has "security.openshift.io/v1") -}}
{{- else -}}
{{- .Values.podSecurity.userIds -}}
{{- end -}}
{{- end -}}

{{/* The arguments that name what the operator serves. */}}
{{- define "hypha-worker.scope" -}}
{{- if .Values.watchNamespace -}}
- --namespace={{ .Values.watchNamespace }}
{{- else -}}
- --all-namespaces
{{- end }}
- --release={{ .Release.Namespace }}/{{ include "hypha-worker.fullname" . }}
{{- end -}}

{{/* Labels and annotations that keep the proxies of service meshes out of a pod. With a proxy, a hook's pod would never end. */}}
{{- define "hypha-worker.noMeshLabels" -}}
sidecar.istio.io/inject: "false"
istio.io/dataplane-mode: none
{{- end -}}
{{- define "hypha-worker.noMeshAnnotations" -}}
linkerd.io/inject: disabled
{{- end -}}

{{/* The parts that the specifications of the chart's pods share. */}}
{{- define "hypha-worker.pod" -}}
enableServiceLinks: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $context := .Values.operator.podSecurityContext }}
{{- if ne (include "hypha-worker.userIds" .) "true" }}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
{{- with $context }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
