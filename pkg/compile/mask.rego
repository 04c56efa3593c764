# What decision logs leave out unless the policies define data.system.log.mask
# themselves: what Secrets hold, wherever one is in the input or in the result. Others may
# have rules in this package, so its helpers have names that nobody else takes.
package system.log

mask contains path if {
	some part in ["input", "result"]
	_kube_rego_has_secret(input[part])
	walk(input[part], [steps, value])
	some field in _kube_rego_secret_fields(value)
	path := _kube_rego_pointer(part, array.concat(steps, field))
}

# What built-ins were asked and gave may have been made of it.
mask contains "/nd_builtin_cache" if {
	input.nd_builtin_cache
	_kube_rego_has_secret(input.input)
}

# Most decisions are about something else: to walk without the paths is five times as
# quick as with them.
_kube_rego_has_secret(whole) if {
	walk(whole, [_, value])
	value.kind in {"Secret", "SecretList"}
}

_kube_rego_secret_fields(value) := {[field] | some field in ["data", "stringData"]; value[field]} | _kube_rego_annotations(value) if {
	value.kind == "Secret"
}

_kube_rego_secret_fields(value) := {["items"]} if value.kind == "SecretList"

# kubectl apply keeps a copy of the whole object in an annotation. OPA's masks cannot
# name one whose key has a slash.
_kube_rego_annotations(value) := {["metadata", "annotations"]} if {
	value.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]
} else := set()

# A step that OPA's masks cannot name takes all with it.
_kube_rego_pointer(part, steps) := concat("/", array.concat(["", part], [sprintf("%v", [step]) | some step in steps])) if {
	every step in steps {
		regex.match(`^[A-Za-z0-9._-]+$`, sprintf("%v", [step]))
	}
} else := concat("/", ["", part])
