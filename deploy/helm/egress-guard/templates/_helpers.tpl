{{/* Of every object; what selects pods goes by the first alone. */}}
{{- define "egress-guard.labels" -}}
app.kubernetes.io/name: egress-guard
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "egress-guard.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* One that is engaged in the cluster stays so, whatever the values say: an upgrade is no release. */}}
{{- define "egress-guard.killSwitch" -}}
{{- $live := lookup "v1" "ConfigMap" .Release.Namespace "egress-guard" -}}
{{- $said := dig "data" "kill-switch" .Values.killSwitch $live -}}
{{- if eq $said "off" }}{{ .Values.killSwitch }}{{ else }}{{ $said }}{{ end -}}
{{- end }}
